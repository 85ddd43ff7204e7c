"""Losses of the image tokenizer: adversarial (PatchGAN) and perceptual (LPIPS and others)."""
