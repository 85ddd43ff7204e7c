"""Setup and output of a run: accelerator, precision, compilation, run folder, log, trackers."""
