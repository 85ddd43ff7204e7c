"""The transformers that are trained: DALL-E, CLIP, and the priors of unCLIP."""
