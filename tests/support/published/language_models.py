"""Tokenizers, and greedy drawing with guidance as projects do it, for small language models that draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.models.dalle import DALLE

LINES = ["a red fox in the snow", "two cats, 12 dogs", "лиса в лесу", "雪中的狐狸", "हिउँमा स्याल"] * 3
TEXTS = [*LINES[:5], "", "  \t a fox \n", "🦊🏔️ e\u0301", "word " * 300, "it's\n\nnew: {} lines"]
CAPTIONS = ["a red fox", "two cats, 12 dogs in the snow"]


def byte_level(special: Sequence[str], size: int) -> Any:
    """A byte-level BPE of at most `size` tokens, of which `special` are the first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def randomize(model: Any, seed: int = 0, scale: float = 1.5) -> Any:
    """Random weights that make codes differ; norms and biases not trivial."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            matrix = parameter.ndim > 1 and "embed" not in name and "norm" not in name
            wide = "embed" in name or "lm_head" in name
            size = scale * parameter.shape[-1] ** -0.5 if matrix else 0.3
            parameter.add_(torch.randn_like(parameter) * (1.0 if wide else size))
    return model.eval()


def greedy(
    logits: Callable[[list[int]], Tensor],
    prompt: list[int],
    null: list[int],
    ids: Tensor,
    count: int,
    scale: float,
    row_end: tuple[int, int] | None = None,
) -> Tensor:
    """The likeliest codes one after the other, each stream run anew over all its ids, with positions of its own.

    Args:
        logits: ids to logits of the next id over the whole vocabulary.
        prompt: ids in front of the image.
        null: those of the null prompt.
        ids: id of each code, int64 [V].
        count: number of codes.
        scale: of guidance.
        row_end: columns, and the id that is forced behind each row of codes; None: there is none.

    Returns:
        int64 [count].
    """
    codes: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            drawn = with_row_ends([int(ids[code]) for code in codes], row_end)
            conditional, unconditional = logits(prompt + drawn)[ids], logits(null + drawn)[ids]
            codes.append(int((unconditional + scale * (conditional - unconditional)).argmax()))
    return torch.tensor(codes)


def with_row_ends(ids: Sequence[int], row_end: tuple[int, int] | None) -> list[int]:
    """Ids of codes with another behind each whole row of them."""
    if row_end is None:
        return list(ids)
    columns, end = row_end
    tokens: list[int] = []
    for count, number in enumerate(ids, 1):
        tokens += [number, end] if count % columns == 0 else [number]
    return tokens


def check_logits_between_row_ends(
    model: DALLE,
    text: Tensor,
    fronts: Sequence[tuple[list[int], list[int]]],
    ids: Tensor,
    row_end: tuple[int, int],
    next_logits: Callable[[list[int]], Tensor],
) -> None:
    """Logits of random codes equal the reference's, where a code follows: what predicts a row end is left out.

    Args:
        model: model with a square grid.
        text: text ids of two prompts, [2, T].
        fronts: for each prompt, the ids before the image and those of the null prompt.
        ids: ids of the codes, [codes].
        row_end: columns of the grid, and the id behind each row.
        next_logits: the reference: ids to the logits behind each of them.
    """
    columns, _ = row_end
    codes = torch.randint(len(ids), (2, columns**2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, blank = model(text, codes), model(model.null_text(text), codes)
    places = torch.arange(columns**2) + torch.arange(columns**2) // columns
    for row, (own, null) in enumerate(fronts):
        drawn = with_row_ends(ids[codes[row, :-1]].tolist(), row_end)
        for got, front in ((ours[row], own), (blank[row], null)):
            wanted = next_logits(front + drawn)[len(front) - 1 :, ids][places]
            span = wanted.max() - wanted.min()
            assert (got - wanted).abs().max() < 2e-5 * span and span > 1


def check_image(image: Image.Image, size: tuple[int, int], decoded: Tensor) -> None:
    """An 8-bit image of `size` equals decoded pixels [1, 3, H, W], which are clamped to [0, 1]."""
    pixels = decoded.clamp(0, 1)[0].permute(1, 2, 0)
    made = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(pixels.shape)
    assert image.size == size and (made.float() - 255 * pixels).abs().max() < 0.52


def check_converted(
    folder: Path, out: Path, rows: int, size: str, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `inspect` says of a model of several sizes, and that it draws the same images after `convert` to `out`.

    Args:
        folder: the published model, with its image tokenizer.
        out: the folder to convert it to.
        rows: rows of codes of its images, square.
        size: another size, "WIDTHxHEIGHT", to draw.
        family: what `inspect` calls it; its license is Apache 2.0.
        capsys: for the output of the commands.
    """
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", grid=rows)
    (result,) = pipe("a red fox", n=2, seed=5, size=size, temperature=4.0)
    assert main(["inspect", str(folder), f"grid={rows}"]) == 0
    told = capsys.readouterr().out
    assert family in told and "Apache-2.0" in told and told.count("tokenizer: in these files") == 2
    assert main(["convert", str(folder), str(out), f"grid={rows}"]) == 0
    again = dalle.TextToImage.from_pretrained(out, device="cpu")
    assert again.model.config == pipe.model.config and again.sampling == pipe.sampling
    (same,) = again("a red fox", n=2, seed=5, size=size, temperature=4.0)
    assert torch.equal(same.codes, result.codes) and same.images[0].tobytes() == result.images[0].tobytes()
