"""The quality of trained weights on a held-out split: pure metrics, and evaluation of each kind of model."""
