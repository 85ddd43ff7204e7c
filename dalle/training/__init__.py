"""Training: recipes, tasks (what differs between stages), optimization, checkpoints. The loop itself is train.py."""
