"""Converters from published checkpoints to our modules, one Python module per family."""
