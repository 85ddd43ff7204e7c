"""VQGAN+CLIP: images optimized, in latent, pixel or Fourier space, until CLIP finds that they fit a prompt.

Crowson et al. 2022, "VQGAN-CLIP" (arXiv 2204.08583).
"""
