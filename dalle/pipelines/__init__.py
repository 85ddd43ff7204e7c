"""Loaded models at work, from prompts to images: `TextToImage` samples tokens, `UnCLIP` decodes embeddings."""
