"""Emu3's image tokenizer (BAAI/Emu3-VisionTokenizer), in its project's layout and in that of transformers.

Of its 3-D convolutions an image needs some slices in time, see `dalle.image_tokenizers.emu3`.

Letters: L channels of the latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dalle.checkpoints.published.folding import Part, conv, fold, plain, same
from dalle.checkpoints.published.state import Published, count, quantizer_statistics, shape
from dalle.checkpoints.tensors import stored_tensors
from dalle.image_tokenizers import Emu3VQConfig, VQGANConfig

FAMILY = "the image tokenizer of Emu3"
LICENSE = "Apache-2.0 (huggingface.co/BAAI/Emu3-VisionTokenizer)"
PREFIXES = ("vqmodel.", "model.vqmodel.")
"""What is in front of its names where it lies in one file with the transformer."""
_FILE = "model.safetensors"
_SIZE = 720  # pixels of the published models' images
_EPS = 1e-5  # of the batch norms
_STEPS = 2  # in time, from 4 frames to 1


def is_of(names: Iterable[str]) -> bool:
    """Whether tensors, by their published names, are of this family."""
    return any(".time_res_stack." in name for name in names)


def of_model(published: Mapping[str, Tensor], rows: int | None = None) -> Published | None:
    """The image tokenizer in one file with a transformer; None if there is none.

    Raises:
        ValueError: it is incomplete or of another architecture.
    """
    own = {
        name.removeprefix(prefix): tensor
        for prefix in PREFIXES
        for name, tensor in published.items()
        if name.startswith(prefix)
    }
    return read(own, rows) if own else None


def find(folder: Path, rows: int) -> Published | None:
    """The image tokenizer in a folder of the folder of a model; None if there is none.

    Raises:
        ValueError: as `of_model`, or a file is damaged.
    """
    for place in sorted(folder.iterdir()):
        if (place / _FILE).is_file() and is_of(found := stored_tensors(place / _FILE)):
            return read(found, rows)
    return None


def read(published: Mapping[str, Tensor], rows: int | None = None) -> Published:
    """Convert the tensors of a checkpoint, by names without a prefix.

    Args:
        published: tensors by their published names.
        rows: rows of codes of an image; None: those of 720 pixels.

    Raises:
        ValueError: they are of something else, or incomplete.
    """
    theirs = any(name.startswith("encoder.down_block.") for name in published)  # transformers' layout
    config = _config(published, "encoder.down_block.down" if theirs else "encoder.down", rows)
    tensors, rules, others = fold(published, _parts(config, theirs))
    dropped = [name for name in published if name.endswith(".num_batches_tracked")]  # counters of batch norms
    unknown = [name for name in others if name not in dropped]
    if unknown:
        raise ValueError(f"it has unknown tensor names: {', '.join(unknown[:3])}; it is no tokenizer of Emu3")
    tensors.update(quantizer_statistics(config.codebook_size))
    return Published(FAMILY, LICENSE, config, tensors, dropped, rules)


def _config(published: Mapping[str, Tensor], down: str, rows: int | None) -> Emu3VQConfig:
    pattern = down.replace(".", r"\.")
    channels = shape(published, "encoder.conv_in.weight", 4)[0]
    levels = count(published, rf"{pattern}\.(\d+)\.")
    if not levels:
        raise ValueError("it has no levels in its encoder: it is incomplete")
    widths = [shape(published, f"{down}.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    codes, latents = shape(published, "quantize.embedding.weight", 2)
    if shape(published, "encoder.conv_out.weight", 4)[0] != latents or any(width % channels for width in widths):
        raise ValueError("its latents or levels have other channels than those of Emu3's tokenizer")
    if count(published, r"encoder\.time_conv\.(\d+)\.") != _STEPS:
        raise ValueError("it does not take 4 frames to 1, as Emu3's tokenizer does")
    # Each level but the last halves the side
    return Emu3VQConfig(
        image_size=_SIZE if rows is None else rows * 2 ** (levels - 1),
        channels=channels,
        channel_multipliers=[width // channels for width in widths],
        blocks=count(published, rf"{pattern}\.\d+\.block\.(\d+)\."),
        latent_channels=latents,
        codebook_size=codes,
    )


def _parts(config: Emu3VQConfig, theirs: bool) -> Iterator[Part]:
    """All tensors; `theirs`: in transformers' layout."""
    yield "quantize.codebook", ["quantize.embedding.weight"], same
    for name in ("quant_conv", "post_quant_conv"):
        yield from conv(name, f"{name}.conv", _last)
    for side in ("encoder", "decoder"):
        for block in range(config.blocks):
            yield from _stack(f"{side}_stack.{block}", f"{side}.time_res_stack.{block}")
        for step in range(_STEPS):
            kernel = _last if side == "decoder" else (_two_frames, _one_frame)[step]
            # The first step makes two frames side by side, each with the bias
            bias = _twice if side == "encoder" and not step else same
            yield from conv(f"{side}_time.{step}", f"{side}.time_conv.{step}.conv.conv", kernel, bias)
    yield from autoencoder(config.encoder(), theirs)


def autoencoder(config: VQGANConfig, theirs: bool) -> Iterator[Part]:
    """Encoder and decoder of a MoVQGAN, which Emu3's tokenizer has too.

    Args:
        config: the shape of the encoder.
        theirs: in transformers' layout, not that of the projects.
    """
    for side in ("encoder", "decoder"):
        yield from plain((f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out"))
    yield from plain([("encoder.norm_out", "encoder.norm_out")])
    yield from plain(_modulated("decoder.norm_out", "decoder.norm_out"))
    yield from _encoder(config, theirs)
    yield from _decoder(config, theirs)


def _encoder(config: VQGANConfig, theirs: bool) -> Iterator[Part]:
    down = "encoder.down_block.down" if theirs else "encoder.down"
    last = len(config.channel_multipliers) - 1
    blocks, before = [], config.channels
    for level, width in enumerate(config.widths):
        for block in range(config.blocks):
            # The last says whether widths differ: then there is a shortcut
            blocks.append((f"encoder.down.{level}.block.{block}", f"{down}.{level}.block.{block}", before != width))
            before = width
        if level < last:
            yield from plain([(f"encoder.down.{level}.resample.conv", f"{down}.{level}.downsample.conv")])
    mid = "encoder.middle_block" if theirs else "encoder.mid"
    # 1 is attention, between them
    blocks += [(f"encoder.mid.{2 * number}", f"{mid}.block_{number + 1}", False) for number in range(2)]
    for ours, name, wider in blocks:
        parts = ("norm1", "conv1", "norm2", "conv2", *(("nin_shortcut",) if wider else ()))
        yield from plain((f"{ours}.{part}", f"{name}.{part}") for part in parts)
    places = [(f"encoder.down.{last}.attn.{block}", f"{down}.{last}", f".{block}") for block in range(config.blocks)]
    for ours, place, number in [*places, ("encoder.mid.1", mid, "")]:
        attention, norm = _attention(place, number, theirs)
        yield from plain([(f"{ours}.norm", norm)])
        for part, mine in zip(attention, ("q", "k", "v", "proj_out"), strict=True):
            yield from conv(f"{ours}.{mine}", part, _kernel)


def _decoder(config: VQGANConfig, theirs: bool) -> Iterator[Part]:
    up, mid = ("decoder.up_block.up", "decoder.middle_block") if theirs else ("decoder.up", "decoder.mid")
    last = len(config.channel_multipliers) - 1
    blocks = [(f"decoder.mid.{2 * number}", f"{mid}.block_{number + 1}", False) for number in range(2)]
    attentions = [("decoder.mid.1", mid, "")]
    widths, number = config.widths, 0
    before = widths[-1]
    for level in range(last, -1, -1):  # in the order in which they run
        for block in range(config.blocks + 1):  # one more than the encoder has
            blocks.append((f"decoder.up.{number}", f"{up}.{level}.block.{block}", before != widths[level]))
            before, number = widths[level], number + 1
            if level == last:
                attentions.append((f"decoder.up.{number}", f"{up}.{level}", f".{block}"))
                number += 1
        if level:
            yield from plain([(f"decoder.up.{number}.conv", f"{up}.{level}.upsample.conv")])
            number += 1
    for ours, name, wider in blocks:
        for norm in ("norm1", "norm2"):
            yield from plain(_modulated(f"{ours}.{norm}", f"{name}.{norm}"))
        yield from plain((f"{ours}.{part}", f"{name}.{part}") for part in ("conv1", "conv2"))
        if wider:
            yield from plain([(f"{ours}.shortcut", f"{name}.nin_shortcut")])
    for ours, place, at in attentions:
        (*qkv, out), norm = _attention(place, at, theirs)
        yield from plain(_modulated(f"{ours}.norm", norm))
        yield f"{ours}.qkv.weight", [f"{part}.weight" for part in qkv], _rows
        yield f"{ours}.qkv.bias", [f"{part}.bias" for part in qkv], _rows
        yield f"{ours}.out.weight", [f"{out}.weight"], _rows
        yield f"{ours}.out.bias", [f"{out}.bias"], same


def _attention(place: str, number: str, theirs: bool) -> tuple[list[str], str]:
    """The published names of the four projections and of the norm of attention `number` ("": the middle's)."""
    own = f"{place}.attn{number}" if number else f"{place}.attn_1"
    if theirs:
        norm = f"{place}.attn_norms{number}" if number else f"{place}.attn_norm"
        return [f"{own}.{part}_proj" for part in ("q", "k", "v", "out")], norm
    return [f"{own}.{part}" for part in ("q", "k", "v", "proj_out")], f"{own}.norm"


def _stack(ours: str, theirs: str) -> Iterator[Part]:
    """A residual block of the short stacks: the first norm's statistics apart, the second's in the convolution."""
    norm1, norm2 = (
        [f"{theirs}.{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        for norm in ("norm1", "norm2")
    )
    yield f"{ours}.scale", norm1, lambda weight, bias, mean, var: _scale(weight, var)[:, None, None]  # [C, 1, 1]
    yield f"{ours}.shift", norm1, lambda *norm: _shift(*norm)[:, None, None]
    conv1 = f"{theirs}.conv1.conv"
    yield (
        f"{ours}.conv1.weight",
        [f"{conv1}.weight", *norm2],
        lambda kernel, weight, bias, mean, var: _last(kernel) * _scale(weight, var)[:, None, None, None],
    )
    yield (
        f"{ours}.conv1.bias",
        [f"{conv1}.bias", *norm2],
        lambda own, weight, bias, mean, var: own * _scale(weight, var) + _shift(weight, bias, mean, var),
    )
    yield from conv(f"{ours}.conv2", f"{theirs}.conv2.conv", _last)


def _scale(weight: Tensor, var: Tensor) -> Tensor:
    return weight / (var + _EPS).sqrt()


def _shift(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return bias - mean * _scale(weight, var)


def _modulated(ours: str, theirs: str) -> list[tuple[str, str]]:
    parts = (("norm", "norm_layer"), ("scale", "conv_y"), ("shift", "conv_b"))
    return [(f"{ours}.{mine}", f"{theirs}.{part}") for mine, part in parts]


def _last(kernel: Tensor) -> Tensor:
    """The slice in time that acts on the first frame: those before it meet zeros."""
    return kernel[:, :, -1]


def _two_frames(kernel: Tensor) -> Tensor:
    """Behind two frames of zeros: the first output sees two equal frames, the second four. [2 L, L, 3, 3]."""
    return torch.cat((kernel[:, :, 2:].sum(2), kernel.sum(2)))


def _one_frame(kernel: Tensor) -> Tensor:
    """Behind two frames of zeros: the only output sees both. [L, 2 L, 3, 3]."""
    return torch.cat((kernel[:, :, 2], kernel[:, :, 3]), dim=1)


def _twice(bias: Tensor) -> Tensor:
    return torch.cat((bias, bias))


def _kernel(matrix: Tensor) -> Tensor:
    """A matrix, or a kernel of one pixel, as such a kernel."""
    return matrix.reshape(*matrix.shape[:2], 1, 1)


def _rows(*parts: Tensor) -> Tensor:
    """Matrices, kernels of one pixel, or biases below each other, kernels as matrices."""
    return torch.cat([part.flatten(1) if part.ndim > 1 else part for part in parts])
