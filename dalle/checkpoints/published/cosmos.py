"""Cosmos' discrete tokenizer of videos (nvidia/Cosmos-1.0-Tokenizer-DV8x16x16), read from its TorchScript archives.

Nothing in the archives is run. For one image its convolutions in space and in time, its wavelets and its averages are
linear maps in a row, which become one convolution; see `dalle.image_tokenizers.cosmos`. Time is padded by copies of
the first frame, so that a kernel over time is the sum of its matrices.

Letters: C channels, k side of a kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.checkpoints.published.cosmos_wavelets import eye, pixels_of_wavelets, wavelets_of_pixels
from dalle.checkpoints.published.folding import Part, fold, plain
from dalle.checkpoints.published.pickles import read_code, read_pickled
from dalle.checkpoints.published.state import Published, count, shape
from dalle.checkpoints.published.stored_state import stored_state
from dalle.image_tokenizers.cosmos import LEVELS, PATCH, CosmosConfig

FAMILY = "the image tokenizer of Cosmos"
LICENSE = "NVIDIA Open Model License (huggingface.co/nvidia/Cosmos-1.0-Tokenizer-DV8x16x16)"
ARCHIVES = ("encoder.jit", "decoder.jit")
_WHOLE = "autoencoder.jit"
_SIZE = 1024  # pixels
_BANDS = 3 * PATCH**3  # channels of the patches of four frames
_FSQ = [8, 8, 8, 5, 5, 5]
# Constants of the code, and what one frame does not need: weights of attention over time, which has one place to look
# at, and steps in time of levels that have none, whose kernels are stored all the same
_DROPPED = (
    r"(quantizer|inv_quant)\..+|.+\.(un)?patcher3d\..+|(encoder|decoder)\.mid\.attn_1\.1\.[qk]\.conv3d\.(weight|bias)"
    r"|encoder\.down\.1\.downsample\.conv2\.conv3d\.(weight|bias)"
    r"|decoder\.up\.2\.upsample\.conv1\.conv3d\.(weight|bias)"
)
_MODEL = re.compile(r"[CD][IV]\d+x\d+(x\d+)?(?![\dx])")
_SUPPORTED = "DV8x16x16"
# What a traced program does once for each step in space: means of 2x2 pixels, and rows of pixels written twice
_STEPS = (r"avg_pool3d\(.+\[1, 2, 2\]", r"repeat_interleave\(.+, 2, 3\)")


def is_there(source: Path) -> bool:
    """Whether a source is a TorchScript archive of a tokenizer, or a folder with archives named as Cosmos'."""
    return source.suffix == ".jit" or any((source / name).is_file() for name in (*ARCHIVES, _WHOLE))


def is_alone(source: Path) -> bool:
    """Whether `is_there`, and no model's weights are beside it."""
    # Its repository has the same again as autoencoder.jit and in pickles; a model has a config.json that says its kind
    beside = any(source.glob("*.safetensors")) or any(source.glob("*.index.json"))
    return is_there(source) and not beside and not (source / "tokenizer.json").is_file()


def find(folder: Path) -> Path | None:
    """Where the tokenizer is in the folder of a model: in it or in one of its folders; None if it is in neither."""
    found = [place for place in (folder, *sorted(folder.iterdir())) if place.is_dir() and is_there(place)]
    return found[0] if found else None


def read(source: Path, rows: int | None = None) -> Published:
    """Read the tokenizer in a folder of both archives, in one of them with the other beside it, or in one of both.

    Args:
        source: the folder, or an archive.
        rows: rows of codes of an image; None: those of 1024 pixels.

    Raises:
        ValueError: an archive is missing or damaged, or of another tokenizer.
    """
    folder = source.parent if source.name in ARCHIVES else source
    if folder.is_dir() and (folder / _WHOLE).is_file() and not all((folder / name).is_file() for name in ARCHIVES):
        folder = folder / _WHOLE
    files = [folder / name for name in ARCHIVES] if folder.is_dir() else [folder]
    for file in files:
        if not file.is_file():
            other = " and ".join(ARCHIVES)
            raise ValueError(f"{file.parent} has no {file.name}: put {other} of one repository in one folder")
    names = [match[0] for match in _MODEL.finditer(str(source))]
    if names and names[-1] != _SUPPORTED:
        raise ValueError(f"it is the Cosmos tokenizer {names[-1]}, which is not supported: give {_SUPPORTED}")
    published: dict[str, Tensor] = {}
    for file in files:
        published |= stored_state(read_pickled(file))
        _check_steps(file)
    return of_tensors(published, rows)


def _check_steps(file: Path) -> None:
    """Check how often an archive's program halves or doubles height and width.

    Tokenizers of other steps in space and time have the same tensors, as those of a step that is not taken are stored
    all the same. The published archives are traced: each step that is taken is written out once. A scripted one, in
    which several modules may share a text, shows nothing here.

    Raises:
        ValueError: it is of another tokenizer.
    """
    code = read_code(file)
    if "torch._convolution(" not in code:
        return
    for step in _STEPS:
        found = len(re.findall(step, code))
        if found not in (0, LEVELS - 1):
            side = PATCH * 2**found
            raise ValueError(
                f"{file.name} makes codes of {side}x{side} pixels: it is another Cosmos tokenizer, such as DV8x8x8 or "
                f"DV4x8x8, which is not supported: give {_SUPPORTED}"
            )


def of_tensors(published: Mapping[str, Tensor], rows: int | None = None) -> Published:
    """Convert the tensors of both archives, by their published names.

    Raises:
        ValueError: they are of something else, or incomplete.
    """
    if not any(".conv3d." in name for name in published):
        raise ValueError("it is no tokenizer of videos: of Cosmos' tokenizers DV8x16x16 is supported")
    config = _config(published, rows)
    dropped = [name for name in published if re.fullmatch(_DROPPED, name)]
    found = fold(published, _parts(config))
    unknown = [name for name in found.unknown if name not in dropped]
    if unknown:
        raise ValueError(
            f"it has unknown tensor names: {', '.join(unknown[:3])}; it is no tokenizer DV8x16x16 of Cosmos"
        )
    return Published(FAMILY, LICENSE, config, found.tensors, dropped, found.rules)


def _config(published: Mapping[str, Tensor], rows: int | None) -> CosmosConfig:
    channels, bands, *_ = shape(published, "encoder.conv_in.0.conv3d.weight", 5)
    levels = count(published, r"encoder\.down\.(\d+)\.")
    if bands != _BANDS or levels != LEVELS:
        raise ValueError(
            f"it has {bands} channels of patches and {levels} levels; Cosmos' DV8x16x16 has {_BANDS} and {LEVELS}"
        )
    widths = [shape(published, f"encoder.down.{i}.block.0.conv1.0.conv3d.weight", 5)[0] for i in range(levels)]
    digits = shape(published, "quant_conv.conv3d.weight", 5)[0]
    stored = published.get("quantizer._levels")
    steps = _FSQ if stored is None else [int(step) for step in stored.flatten().tolist()]
    if digits != len(steps) or any(width % channels for width in widths):
        raise ValueError(
            f"its latents have {digits} channels, not {len(steps)}: it is a Cosmos tokenizer of continuous latents, or "
            "another"
        )
    return CosmosConfig(
        image_size=_SIZE if rows is None else rows * PATCH * 2 ** (levels - 1),
        channels=channels,
        channel_multipliers=[width // channels for width in widths],
        blocks=count(published, r"encoder\.down\.\d+\.block\.(\d+)\."),
        latent_channels=shape(published, "encoder.conv_out.0.conv3d.weight", 5)[0],
        levels=steps,
    )


def _parts(config: CosmosConfig) -> Iterator[Part]:
    widths = config.networks().widths
    for name in ("quant_conv", "post_quant_conv"):
        yield from _chain(name, [name])
    for side, levels in (("encoder", "down"), ("decoder", "up")):
        encodes = side == "encoder"
        for end, kernel, last in (
            ("conv_in", _of_wavelets if encodes else _space, None),
            ("conv_out", _space, None if encodes else pixels_of_wavelets),
        ):
            yield from _chain(f"{side}.{end}", [f"{side}.{end}.0", f"{side}.{end}.1"], kernel, last=last)
        yield from plain([(f"{side}.norm_out", f"{side}.norm_out.norm")])
        yield from _middle(f"{side}.mid")
        # The first block of a level reads the channels of the level that runs before it
        before = [config.channels, *widths] if encodes else [*widths[1:], widths[-1]]
        for level in range(LEVELS):
            for block in range(config.blocks if encodes else config.blocks + 1):
                name = f"{side}.{levels}.{level}.block.{block}"
                yield from _block(name, name, widens=block == 0 and before[level] != widths[level])
    for level in range(LEVELS - 1):
        yield from _down(level)
        yield from _up(level + 1)


def _block(ours: str, theirs: str, widens: bool) -> Iterator[Part]:
    for number in (1, 2):
        yield from plain([(f"{ours}.norm{number}", f"{theirs}.norm{number}.norm")])
        yield from _chain(f"{ours}.conv{number}", [f"{theirs}.conv{number}.{part}" for part in (0, 1)])
    if widens:
        yield from _chain(f"{ours}.nin_shortcut", [f"{theirs}.nin_shortcut"])


def _middle(place: str) -> Iterator[Part]:
    """Two blocks, between them attention in space, and that in time: of one frame its value and output maps."""
    for ours, theirs in ((0, "block_1"), (3, "block_2")):
        yield from _block(f"{place}.{ours}", f"{place}.{theirs}", widens=False)
    yield from plain((f"{place}.{kind + 1}.norm", f"{place}.attn_1.{kind}.norm.norm") for kind in (0, 1))
    for part in ("q", "k", "v", "proj_out"):
        yield from _chain(f"{place}.1.{part}", [f"{place}.attn_1.0.{part}"])
    yield from _chain(f"{place}.2.conv", [f"{place}.attn_1.1.v", f"{place}.attn_1.1.proj_out"])


def _down(level: int) -> Iterator[Part]:
    """A level's end in the encoder: a convolution and the mean of 2x2 cells, a step in time, a map of pixels."""
    place = f"encoder.down.{level}.downsample"
    steps = [f"{place}.conv2"] if level == 0 else []
    chain = [f"{place}.conv1", *steps, f"{place}.conv3"]
    yield from _chain(f"encoder.down.{level}.resample.conv", chain, _with_mean, added=steps)


def _up(level: int) -> Iterator[Part]:
    """A level's end in the decoder: perhaps a step in time, nearest neighbors, a convolution, a map of pixels."""
    place, ours = f"decoder.up.{level}.upsample", f"decoder.up.{level}.resample"
    if level == 1:
        yield from _chain(f"{ours}.0", [f"{place}.conv1"], _with_center)
        ours += ".1"
    yield from _chain(f"{ours}.conv", [f"{place}.conv2", f"{place}.conv3"], _with_center)


def _chain(
    ours: str,
    theirs: Sequence[str],
    kernel: Callable[[Tensor], Tensor] | None = None,
    *,
    added: Sequence[str] = (),
    last: Callable[[], Tensor] | None = None,
) -> Iterator[Part]:
    """One convolution for a convolution and maps of single pixels behind it, computed in float64.

    Args:
        ours: name of ours.
        theirs: names of theirs, in the order in which they run.
        kernel: makes the kernel of the first one 2-D; None: `_space`.
        added: those of the maps whose input is added to their output.
        last: one more map, without a bias.
    """
    first, *maps = (f"{name}.conv3d" for name in theirs)

    def through(made: Tensor, matrices: Sequence[Tensor], biases: Sequence[Tensor | float]) -> Tensor:
        for name, matrix, bias in zip(theirs[1:], matrices, biases, strict=True):
            pixels = (_with_center if name in added else _space)(matrix.double())[:, :, 0, 0]
            made = torch.tensordot(pixels, made, 1) + bias
        return (made if last is None else torch.tensordot(last(), made, 1)).float()

    def weight(of_first: Tensor, *matrices: Tensor) -> Tensor:
        return through((kernel or _space)(of_first.double()), matrices, [0.0] * len(matrices))

    def bias(of_first: Tensor, *rest: Tensor) -> Tensor:
        return through(of_first.double(), rest[::2], rest[1::2])

    yield f"{ours}.weight", [f"{first}.weight", *(f"{name}.weight" for name in maps)], weight
    sources = [f"{name}.{kind}" for name in maps for kind in ("weight", "bias")]
    yield f"{ours}.bias", [f"{first}.bias", *sources], bias


def _space(kernel: Tensor) -> Tensor:
    """A kernel [C', C, t, k, k] over equal frames: [C', C, k, k]."""
    return kernel.sum(2)


def _with_center(kernel: Tensor) -> Tensor:
    """The kernel of a convolution whose input is added to its output."""
    side = kernel.shape[-1] // 2
    return _space(kernel) + F.pad(eye(len(kernel)), (side, side, side, side))


def _with_mean(kernel: Tensor) -> Tensor:
    """The kernel of a convolution to whose output the mean of 2x2 cells is added; it is padded on one side only."""
    return _space(kernel) + F.pad(eye(len(kernel)).expand(-1, -1, 2, 2) / 4, (0, 1, 0, 1))


def _of_wavelets(kernel: Tensor) -> Tensor:
    """The kernel over pixels of patches, 3 PATCH^2 channels, for one over wavelets, 3 PATCH^3."""
    return torch.einsum("ouab,up->opab", _space(kernel), wavelets_of_pixels())
