"""Checkpoints of a run: writing them, finding the latest whole one, optimizer state, checksums."""
