"""Token shards: captions and image codes encoded once, and trained from."""
