"""Names of the layers of both towers as Hugging Face writes CLIP and SigLIP, which have them in common."""

from __future__ import annotations

_LAYER = r"(vision|text)_model\.encoder\.layers\.(\d+)"
_PARTS = (
    (r"self_attn\.q_proj", "attention.q"),
    (r"self_attn\.k_proj", "attention.k"),
    (r"self_attn\.v_proj", "attention.v"),
    (r"self_attn\.out_proj", "attention.out"),
    (r"layer_norm1", "attention_norm"),
    (r"layer_norm2", "feed_forward_norm"),
    (r"mlp\.fc1", "feed_forward.up"),
    (r"mlp\.fc2", "feed_forward.down"),
)
TOWER_RULES = tuple((rf"{_LAYER}\.{theirs}\.(.+)", rf"\1.transformer.blocks.\2.{ours}.\3") for theirs, ours in _PARTS)
"""(pattern of their name, ours) of each layer's tensors; queries, keys and values are still apart."""
