"""Drawings of a model judged by a CNN that has had no part in it, beside real images and other baselines."""
