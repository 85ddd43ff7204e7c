"""Training that starts from weights: init_from and LoRA."""
