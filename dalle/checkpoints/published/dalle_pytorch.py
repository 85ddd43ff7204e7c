"""DALLE-pytorch of lucidrains, 0.9 to 1.6: .pt files with `hparams` and the weights of model and image tokenizer.

Tensor names contain wrappers (`.fn`), whose number depends on the version; they are removed. Differences between
versions are detected by names, by `hparams`, and for convolutional attention by `version`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.heads import deinterleave, permute_rope_rows
from dalle.checkpoints.published.state import Published, concat_lazy, derived, rename_tensors, shape, square
from dalle.checkpoints.published.stored_state import strip_wrappers
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

FAMILY = "DALLE-pytorch"
LICENSE = "that of whoever trained it (the code: MIT, github.com/lucidrains/DALLE-pytorch)"
_KERNEL = 5  # side of the conv_like window
_MASKS = ("axial_row", "axial_col", "conv_like")
_BRANCH = r"transformer\.layers\.layers\.(\d+)\.{}\."
_RULES = (
    (r"(text|image)_emb\.weight", r"\1_embedding.weight"),
    (r"text_pos_emb\.weight", "text_position"),
    (r"image_pos_emb\.weights[_.]0", "row_position"),
    (r"image_pos_emb\.weights[_.]1", "column_position"),
    (r"to_logits\.0\.(.+)", r"transformer.norm.\1"),
    (r"to_logits\.1\.(.+)", r"to_logits.\1"),
    (r"transformer\.pos_emb", "pos_emb"),
    *(
        (_BRANCH.format(number) + theirs, rf"transformer.blocks.\1.{ours}")
        for number, branch in enumerate(("attention", "feed_forward"))
        for theirs, ours in (
            (r"scale", f"{branch}_end.scale"),
            (r"norm\.(.+)", rf"{branch}_norm.\2"),
            (r"norm_out\.(.+)", rf"{branch}_end.0.\2"),
        )
    ),
    (_BRANCH.format(0) + r"to_qkv\.weight", r"transformer.blocks.\1.attention.qkv.weight"),
    (_BRANCH.format(0) + r"to_out\.0\.(.+)", r"transformer.blocks.\1.attention.out.\2"),
    # net.1 is the GEGLU, net.2 a dropout: neither has weights
    (_BRANCH.format(1) + r"net\.0\.(.+)", r"transformer.blocks.\1.feed_forward.up.\2"),
    (_BRANCH.format(1) + r"net\.3\.(.+)", r"transformer.blocks.\1.feed_forward.down.\2"),
)
# A buffer of 0.9; the image tokenizer; duplicates of embeddings that are shared with the output layer.
_DROPPED = r"logits_mask|vae\..+|(?:text|image)_emb\.linear\..+"


def is_of(tree: Any) -> bool:
    """Whether the content of a checkpoint is of this family."""
    return isinstance(tree, dict) and {"hparams", "vae_params", "weights"} <= set(tree)


def read(tree: dict[str, Any]) -> Published:
    """Convert the transformer of a checkpoint.

    Raises:
        ValueError: an option is not supported, or a tensor is missing or of another family.
    """
    options, published = tree["hparams"], tree["weights"]
    if not isinstance(options, dict) or not isinstance(published, dict):
        raise ValueError("it has no weights: for a DeepSpeed checkpoint, give the file made by its zero_to_fp32.py")
    published = strip_wrappers(published)
    named = {_without_wrappers(name): value for name, value in published.items()}
    # Token shifting added one more wrapper around each layer, before it became a hyperparameter.
    wrappers = max((name.count(".fn") for name in published if name.endswith("net.0.weight")), default=0)
    tensors, dropped = rename_tensors(named, _RULES, _DROPPED)
    for option in ("text_seq_len", "dim", "depth", "heads"):
        if not isinstance(options.get(option, 8 if option == "heads" else None), int):
            raise ValueError(f"its hparams have no integer {option}: give a complete checkpoint")
    length, depth, heads = options["text_seq_len"], options["depth"], options.get("heads", 8)
    rotary, sandwich = "pos_emb" in tensors, "transformer.blocks.0.attention_end.0.weight" in tensors
    grid = _grid(tensors, length)
    prefix = length + 1  # with the begin token
    inputs = prefix + grid[0] * grid[1] - 1  # the last image token is never read
    state: dict[str, Tensor | LazyTensor] = dict(tensors)
    words = _text_vocab(tensors, options, length)
    _split_logits(state, tensors, words)
    width, inner = shape(tensors, "transformer.blocks.0.attention.out.weight")
    if inner % heads:
        raise ValueError(f"its {inner} attention channels do not divide into the {heads} heads of its hparams")
    for layer in range(depth):
        _convert_layer(state, f"transformer.blocks.{layer}", heads, rotary, sandwich)
    if rotary:
        state["rope_cos"], state["rope_sin"] = _rope(tensors["pos_emb"], inputs, inner // heads)
        del state["pos_emb"]
    else:
        for name in ("row_position", "column_position"):
            state[name] = tensors[name][0]  # without a leading dimension of 1
    kinds = _kinds(options, depth)
    tables = [kind for kind in _MASKS if kind in kinds]
    if tables:
        old = _version(tree.get("version")) < (1, 5)
        made = [mask(kind, prefix, grid[0], old)[:inputs, :inputs] for kind in tables]  # without the last query and key
        state["masks"] = torch.stack(made)
    config = DALLEConfig(
        transformer=TransformerConfig(
            width=width,
            depth=depth,
            heads=heads,
            head_channels=inner // heads,
            hidden=shape(tensors, "transformer.blocks.0.feed_forward.down.weight")[1],
            feed_forward="geglu",
            sandwich=sandwich,
            layer_scale=True,
            biases="not_qkv",
            # With rotary positions it rotates the values too
            rotate_values=rotary,
            reversible=any(".blocks." in name for name in published),
            # `stable` also divides scores before their softmax and multiplies them inside, which cancels
            divide_by_max=bool(options.get("stable")),
        ),
        text_vocab=words - length,
        text_length=length,
        image_vocab=shape(state, "image_embedding.weight")[0],
        grid=grid,
        positions="stored_rope" if rotary else "learned",
        stored_masks=tuple(tables.index(kind) if kind in tables else -1 for kind in kinds) if tables else (),
        # Its forward pads every text with a 0 in front, which it calls bos
        begin_id=0,
        shift_tokens=wrappers > 2 if "shift_tokens" not in options else bool(options["shift_tokens"]),
    )
    return Published(FAMILY, LICENSE, config, state, dropped, _RULES)


def _without_wrappers(name: str) -> str:
    """A published name without wrappers, and with reversible layers named like the others."""
    name = re.sub(r"(\.fn)+(?=\.)", "", name)
    # RevNet's f and g: attention and feed-forward
    return re.sub(
        r"^transformer\.layers\.blocks\.(\d+)\.([fg])\.net\.",
        lambda match: f"transformer.layers.layers.{match[1]}.{'fg'.index(match[2])}.",
        name,
    )


def _text_vocab(tensors: dict[str, Tensor], options: dict[str, Any], length: int) -> int:
    """Size of the text vocabulary, including one padding token per position."""
    if "text_embedding.weight" in tensors:
        return shape(tensors, "text_embedding.weight")[0]
    return int(options.get("num_text_tokens", 10_000)) + length


def _grid(tensors: dict[str, Tensor], length: int) -> tuple[int, int]:
    """Rows and columns of image tokens, from the position embeddings."""
    if "pos_emb" not in tensors:
        return shape(tensors, "row_position")[1], shape(tensors, "column_position")[2]
    table = tensors["pos_emb"]  # [1, 1, T + N, R] before 1.1, then [1, T + 1 + N, R]
    return square(table.shape[-2] - length - (table.ndim == 3))


def _split_logits(state: dict[str, Tensor | LazyTensor], tensors: dict[str, Tensor], words: int) -> None:
    """Split the joint output layer into text and image heads; embeddings shared with it become copies."""
    for kind in ("weight", "bias"):
        shape(tensors, f"to_logits.{kind}")
        both = tensors[f"to_logits.{kind}"]
        state[f"text_head.{kind}"], state[f"image_head.{kind}"] = both[:words], both[words:]  # text first
        del state[f"to_logits.{kind}"]
    for part in ("text", "image"):
        state.setdefault(f"{part}_embedding.weight", state[f"{part}_head.weight"])


def _convert_layer(state: dict[str, Tensor | LazyTensor], place: str, heads: int, rotary: bool, sandwich: bool) -> None:
    """Convert one layer's tensors to our layout, in place."""
    for branch in ("attention", "feed_forward"):
        # Layer scale is published as [1, 1, C]
        scale = state.pop(f"{place}.{branch}_end.scale", None)
        if isinstance(scale, Tensor):
            state[f"{place}.{branch}_end.{int(sandwich)}.weight"] = scale.flatten()
    for kind in ("weight", "bias"):
        name = f"{place}.feed_forward.up.{kind}"
        both = state.get(name)
        if isinstance(both, Tensor):  # GEGLU: value then gate there, gate then value here
            state[name] = concat_lazy(*reversed(both.chunk(2)))
    fused, out = state.get(f"{place}.attention.qkv.weight"), state.get(f"{place}.attention.out.weight")
    if rotary and isinstance(fused, Tensor) and isinstance(out, Tensor):
        state[f"{place}.attention.qkv.weight"] = permute_rope_rows(fused, heads, "qkv")
        state[f"{place}.attention.out.weight"] = derived([out], out.shape, lambda: _deinterleave_columns(out, heads))


def _deinterleave_columns(out: Tensor, heads: int) -> Tensor:
    """Reorder the columns of the output projection [C, heads * D] to match reordered values."""
    each = out.unflatten(1, (heads, -1))
    return each[:, :, deinterleave(each.shape[2])].flatten(1)


def _rope(angles: Tensor, inputs: int, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [inputs, dim / 2] from angles [..., R], stored twice each; channels from R on do not rotate."""
    angle = F.pad(angles.flatten(0, -2).float()[:inputs, ::2], (0, (dim - angles.shape[-1]) // 2))
    return angle.cos(), angle.sin()


def _kinds(options: dict[str, Any], depth: int) -> list[str]:
    """The attention type of each layer.

    Raises:
        ValueError: a type is not supported.
    """
    named = options.get("attn_types") or ("full",)
    types = [named] if isinstance(named, str) else list(named)
    for kind in types:
        if kind not in ("full", *_MASKS):
            raise ValueError(
                f"its attn_types include {kind!r}, which is not supported (full, axial_row, axial_col, conv_like are): "
                "the pattern of sparse attention is random, and mlp layers have no attention"
            )
    return [types[layer % len(types)] for layer in range(depth)]


def _version(text: Any) -> tuple[int, ...]:
    """Parse a version; (0,) for files from before it was stored."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3]) if isinstance(text, str) else (0,)


def mask(kind: str, prefix: int, side: int, old: bool = False) -> Tensor:
    """The attention mask of a sparse type, bool [S, S] with S = prefix + side^2, True where a query attends.

    Text is causal, and images attend to all of it. axial_row: the same row; axial_col: the same column; conv_like: a
    window of 5 x 5 with the query in its lower right corner or (`old`, before 1.5) in its center.
    """
    position = torch.arange(prefix + side**2)
    # Of text tokens too, where it means nothing and is masked below
    cell = (position - prefix).clamp(min=0)
    down = (cell // side)[:, None] - (cell // side)[None]
    across = (cell % side)[:, None] - (cell % side)[None]
    text = position < prefix
    if kind == "axial_row":
        visible = down == 0
    elif kind == "axial_col":
        visible = across == 0
    elif old:
        visible = (down.abs() <= _KERNEL // 2) & (across.abs() <= _KERNEL // 2)
    else:
        visible = (down >= 0) & (down < _KERNEL) & (across >= 0) & (across < _KERNEL)
    causal = position[:, None] >= position[None]
    return causal & (text[None] | visible | text[:, None])  # of text queries, text keys only, as images come later
