"""Metrics of trained weights, by one protocol: `python -m dalle eval`; docs/evaluation.md defines each metric."""
