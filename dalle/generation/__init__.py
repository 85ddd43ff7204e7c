"""Sampling image codes from a DALL-E: the loop, its decoders, sampling from logits, batching, and CLIP reranking."""
