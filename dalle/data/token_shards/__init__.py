"""Shards: captions with image codes or CLIP embeddings, encoded once so that training needs no images."""
