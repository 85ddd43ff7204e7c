"""A run: its accelerator, folder, log and trackers."""
