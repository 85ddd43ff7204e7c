"""A run's log as one HTML page of curves and samples."""
