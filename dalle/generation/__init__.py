"""Generating image codes with a DALL-E: the loop, its decoders, sampling from logits, batching, and CLIP reranking."""
