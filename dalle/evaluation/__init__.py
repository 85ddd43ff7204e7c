"""The same protocol for any trained weights: `python -m dalle eval`; docs/evaluation.md defines every measure."""
