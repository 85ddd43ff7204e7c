"""The tables of an unCLIP beside its baselines: prior, decoder, inversion, blends, edits, inpainting, cost."""
