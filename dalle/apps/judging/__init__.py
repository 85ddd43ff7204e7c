"""Evaluates generated images with an independently trained classifier, beside real images and other baselines."""
