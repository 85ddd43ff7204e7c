"""Training: recipes, what differs between the stages, optimisation, checkpoints. The loop itself is in train.py."""
