"""What CLIP and the tokenizers are used for: zero-shot classification, search, VQGAN+CLIP. Only the CLI imports it."""
