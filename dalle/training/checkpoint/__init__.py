"""Training checkpoints: writing, finding the latest complete one, restoring, optimizer state, checksums."""
