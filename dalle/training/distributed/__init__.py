"""Training in several processes: FSDP2, initialization and checkpoints in shards, PowerSGD."""
