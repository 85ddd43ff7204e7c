"""Token shards: captions with image codes, encoded once so that training skips the image tokenizer."""
