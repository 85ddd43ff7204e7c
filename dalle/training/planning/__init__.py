"""Before a run: memory, time and layout by formulas, and the largest micro-batch by trying."""
