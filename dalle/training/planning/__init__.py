"""Planning a run before it starts: formulas for memory, time and cost, and the choice of DDP or FSDP."""
