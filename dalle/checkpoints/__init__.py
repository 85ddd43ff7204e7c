"""Weights on disk: our model folders and published files, local or from a hub, and modules made of them."""
