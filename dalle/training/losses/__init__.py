"""Losses of the image tokenizer: adversarial and perceptual."""
