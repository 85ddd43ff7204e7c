"""Prompts: weights, phases, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dalle.apps.vqgan_clip.prompts import (
    Prompt,
    check_weights,
    describe,
    parse_images,
    parse_noise,
    parse_text,
    phase_of,
)


def texts(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(part.content, part.weight) for part in phase] for phase in parse_text(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "a lighthouse:1 | oil painting:0.5 | text:-0.3",
            [[("a lighthouse", 1), ("oil painting", 0.5), ("text", -0.3)]],
        ),
        ("a red heart", [[("a red heart", 1)]]),
        ("a dog:2 ^ a cat | night : .5", [[("a dog", 2)], [("a cat", 1), ("night", 0.5)]]),
        ("the clock at 12:30:1", [[("the clock at 12:30", 1)]]),
        (r"photo at 16\:9", [[("photo at 16:9", 1)]]),
        (r"photo at 16\:9:0.5 | a cat", [[("photo at 16:9", 0.5), ("a cat", 1)]]),
        ("note: a song", [[("note: a song", 1)]]),
        ("a cat:nan", [[("a cat:nan", 1)]]),  # no number that could be meant
        ("गुलाबी हात्ती:0.7 | 雪", [[("गुलाबी हात्ती", 0.7), ("雪", 1)]]),
    ],
)
def test_text_prompts_are_parsed_with_weights_and_phases(prompt: str, expected: list[list[tuple[str, float]]]) -> None:
    assert texts(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("  ", "the prompt is empty"),
        (":0.5", "a weight without a text"),
        (":1 | :0.5", "a weight without a text"),
        ("a cat | ", "an empty part"),
        ("a cat ^ ", r"nothing on one side of \^"),
    ],
)
def test_invalid_text_prompts_are_errors(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_text(prompt)
    assert "\n" not in str(error.value)


def test_image_and_noise_prompts_are_parsed(tmp_path: Path) -> None:
    assert parse_images(["ref.png:0.4", "other.png"]) == [
        Prompt("image", "ref.png", 0.4),
        Prompt("image", "other.png", 1.0),
    ]
    odd = tmp_path / "ref:2"
    odd.write_bytes(b"")
    assert parse_images([str(odd)]) == [Prompt("image", str(odd), 1.0)]
    assert parse_noise(["7:0.2", "8"]) == [Prompt("noise", "7", 0.2), Prompt("noise", "8", 1.0)]
    with pytest.raises(ValueError, match="give a whole number"):
        parse_noise(["seven:0.2"])


def test_no_positive_weight_is_refused_without_an_image() -> None:
    phases = parse_text("fog:-1 | rain:0")
    with pytest.raises(ValueError, match="no prompt has a weight above 0"):
        check_weights(phases, from_image=False)
    check_weights(phases, from_image=True)


def test_phases_split_the_steps_or_alternate() -> None:
    assert [phase_of(step, 7, 3, None) for step in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert [phase_of(step, 7, 3, 2) for step in range(7)] == [0, 0, 1, 1, 2, 2, 0]
    assert {phase_of(step, 7, 1, None) for step in range(7)} == {0}


def test_numbers_read_as_weights_are_echoed() -> None:
    assert describe(parse_text("photo at 16:9")) == "'photo at 16' with weight 9"
    assert describe(parse_text("a dog:2 | night ^ a cat")) == (
        "'a dog' with weight 2 and 'night' with weight 1, then 'a cat' with weight 1"
    )
    assert describe(parse_text("a red heart")) is None and describe(parse_text(r"photo at 16\:9")) is None
