"""Painting with CLIP: the codes of an image tokenizer, or pixels, optimised until CLIP finds the prompts in them.

Crowson et al. 2022, "VQGAN-CLIP" (arXiv 2204.08583).
"""
