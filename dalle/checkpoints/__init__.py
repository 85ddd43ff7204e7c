"""Weights on disk: our model folders and published checkpoints, local or on a hub, and loading them into modules."""
