"""XLM-RoBERTa text towers of open_clip's multilingual CLIPs, such as xlm-roberta-base-ViT-B-32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.state import count, derived, fuse_qkv, shape
from dalle.models.transformer_config import TransformerConfig
from dalle.models.xlm_roberta import PAD_ID

_VOCAB = 250_002  # of the published ones
_TEXT_LENGTH = 77  # tokens; open_clip's default
_LAYERS = (
    (r"attention\.self\.query", "attention.q"),
    (r"attention\.self\.key", "attention.k"),
    (r"attention\.self\.value", "attention.v"),
    (r"attention\.output\.dense", "attention.out"),
    (r"attention\.output\.LayerNorm", "attention_norm"),
    (r"intermediate\.dense", "feed_forward.up"),
    (r"output\.dense", "feed_forward.down"),
    (r"output\.LayerNorm", "feed_forward_norm"),
)
NAMES = (
    (r"text\.transformer\.embeddings\.word_embeddings\.weight", "text.tokens.weight"),
    (r"text\.transformer\.embeddings\.position_embeddings\.weight", "text.positions"),
    (r"text\.transformer\.embeddings\.token_type_embeddings\.weight", "text.kinds"),
    (r"text\.transformer\.embeddings\.LayerNorm\.(.+)", r"text.norm.\1"),
    (r"text\.proj\.0\.weight", "text.hidden.weight"),
    (r"text\.proj\.2\.weight", "text.projection.weight"),
    *(
        (rf"text\.transformer\.encoder\.layer\.(\d+)\.{theirs}\.(.+)", rf"text.transformer.blocks.\1.{ours}.\2")
        for theirs, ours in _LAYERS
    ),
)
DROPPED = r"text\.transformer\.(?:pooler\..*|embeddings\.(?:position|token_type)_ids)"


def is_of(names: Mapping[str, object]) -> bool:
    """Whether the text tower of a CLIP is a BERT of Hugging Face."""
    return "text.transformer.embeddings.word_embeddings.weight" in names


def convert(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], heads: int | None
) -> tuple[dict[str, Tensor | LazyTensor], TransformerConfig, int]:
    """Convert a text tower.

    Args:
        tensors: those of the tower by the names that `NAMES` gives.
        settings: `text_cfg` of open_clip_config.json; {} if there is none.
        heads: number of attention heads, if given.

    Returns:
        Its tensors by ours, its architecture, and how many tokens it reads.

    Raises:
        ValueError: a tensor is missing, or the tower is of another kind.
    """
    vocab = shape(tensors, "text.tokens.weight", 2)[0]
    name = str(settings.get("hf_model_name") or ("xlm-roberta-base" if vocab == _VOCAB else "not named"))
    kinds_of = settings.get("hf_pooler_type", "mean_pooler"), settings.get("hf_proj_type", "mlp")
    if "xlm-roberta" not in name or kinds_of != ("mean_pooler", "mlp"):
        raise ValueError(
            f"its text tower is {name}, pooled by {kinds_of[0]} and {kinds_of[1]}, which is not supported: expected "
            "xlm-roberta, mean_pooler and mlp (in open_clip_config.json beside it)"
        )
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    rows, width = shape(tensors, "text.positions", 2)
    # Positions begin behind the padding id, as in fairseq
    length = min(int(settings.get("context_length") or _TEXT_LENGTH), rows - PAD_ID - 1)
    positions, kinds = tensors["text.positions"], tensors["text.kinds"]
    if shape(tensors, "text.kinds", 2)[0] != 1 or length < 1:
        raise ValueError(f"its text tower has {kinds.shape[0]} kinds of tokens, or {rows} positions: it is no XLM-R")
    first = PAD_ID + 1

    def of(start: int, stop: int) -> Tensor:
        # Every token is of the one kind there is
        return positions[start:stop] + kinds[0]

    state["text.positions"] = derived([positions], positions[:length].shape, lambda: of(first, first + length))
    state["text.padding"] = derived([positions], kinds[0].shape, lambda: of(PAD_ID, first)[0])
    del state["text.kinds"]
    fuse_qkv(state, tensors)
    found = heads or (width // 64 if width % 64 == 0 else None)
    if not found or width % found:
        raise ValueError(f"its number of text attention heads is not recorded (width {width}): give text_heads=NUMBER")
    blocks = r"text\.transformer\.blocks\.(\d+)\."
    hidden = shape(tensors, "text.transformer.blocks.0.feed_forward.up.weight")[0]
    return state, TransformerConfig(width=width, depth=count(tensors, blocks), heads=found, hidden=hidden), length
