"""DALL-E: what predicts what, padding, losses, cached = uncached, the paper's size, and that it can learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.kernels.masks import Kind
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig
from support.generation import generate, sample
from support.tiny_configs import dalle_config, random_dalle, transformer_config

SMALL = dalle_config(depth=4)
KINDS: list[Kind] = ["full", "row", "column", "conv"]
FEATURES = {"text_features": 6, "text_head": False}
QK_NORM = transformer_config(depth=4, qk_norm=True)
VARIANTS = [
    *(replace(SMALL, attention=(kind,), positions=positions) for kind in KINDS for positions in ("learned", "rope")),
    replace(SMALL, attention=("row", "column", "row", "row"), last_attention="conv", transformer=QK_NORM),
    replace(SMALL, transformer=QK_NORM, positions="rope"),
    replace(SMALL, positions="rope_1d", padding="left", text_head=False, head_hidden=True),
]


def build(config: DALLEConfig = SMALL) -> DALLE:
    return random_dalle(config, std=0.3)


def pairs(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(1, 20, (batch, 5), generator=generator)
    text[0, 2:] = 0
    return text, torch.randint(0, 11, (batch, 12), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("config", VARIANTS)
def test_cached_equals_uncached(config: DALLEConfig) -> None:
    model, (text, image_ids) = build(config), pairs()
    expected = model(text, image_ids)
    first, cache = model.prefill(text)
    whole = model.new_cache(3)
    whole.load_prefixes([cache.row(row) for row in range(3)])
    steps = [first] + [model.extend(image_ids[:, i : i + 1], whole) for i in range(11)]
    torch.testing.assert_close(torch.stack(steps, 1), expected, atol=1e-4, rtol=1e-4)
    assert whole.position == whole.keys.shape[3]  # its size is exact
    whole.load_prefixes([cache.row(row) for row in range(3)])
    torch.testing.assert_close(model.extend(image_ids[:, :7], whole), expected[:, 7], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.extend(image_ids[:, 7:9], whole), expected[:, 9], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("config", VARIANTS)
def test_logits_depend_on_earlier_tokens_only(config: DALLEConfig) -> None:
    model, (text, image_ids) = build(config), pairs()
    plain = model(text, image_ids)
    for i in range(12):
        changed = image_ids.clone()
        changed[:, i] = (changed[:, i] + 1) % 11
        logits = model(text, changed)
        torch.testing.assert_close(logits[:, : i + 1], plain[:, : i + 1])
        if i < 11:
            assert not torch.allclose(logits[:, i + 1 :], plain[:, i + 1 :])
    changed = text.clone()
    changed[:, 0] = changed[:, 0] % 19 + 1
    assert (model(changed, image_ids) != plain).any(-1).all()  # the whole image sees the text


@torch.no_grad()
def test_logits_of_a_prefix_equal_those_of_the_sequence() -> None:
    model, (text, image_ids) = build(), pairs()
    whole = model(text, image_ids)
    assert whole.shape == (3, 12, 11)
    for count in (0, 1, 7, 11):
        part = model(text, image_ids[:, :count])
        torch.testing.assert_close(part, whole[:, : count + 1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_losses_equal_log_probabilities_token_by_token() -> None:
    model, (text, image_ids) = build(), pairs()
    losses = model.losses(text, image_ids, accuracy=True)
    log_probabilities = model(text, image_ids).log_softmax(-1)
    right = [int(log_probabilities[b, i].argmax()) == image_ids[b, i] for b in range(3) for i in range(12)]
    assert losses["image_accuracy"].item() == pytest.approx(sum(map(int, right)) / 36)
    nats = [-log_probabilities[b, i, image_ids[b, i]] for b in range(3) for i in range(12)]
    torch.testing.assert_close(losses["image"], torch.stack(nats).mean())
    words = text.clone()
    words[0, 2:] = torch.tensor([20 + 2, 20 + 3, 20 + 4])  # each position's own padding token
    x = model.text_embedding(words) + model.text_position
    x = model.transformer(x, torch.ones(5, 5, dtype=torch.bool).tril())
    expected = F.cross_entropy(model.text_head(x[:, :-1]).transpose(1, 2), words[:, 1:])
    torch.testing.assert_close(losses["text"], expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [*VARIANTS[:-1], replace(SMALL, begin_id=3), replace(SMALL, padding="word"), replace(SMALL, shift_tokens=True)],
)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_losses_of_texts_alone_equal_those_before_an_image(config: DALLEConfig, count: int) -> None:
    model, (text, image_ids) = build(config), pairs()
    expected = model.token_losses_and_predictions(text, image_ids)[0]  # of padded texts, with the image
    if config.begin_id is None:
        expected = F.pad(expected, (1, 0))
    assert (expected[:, 1:] > 0).all()
    torch.testing.assert_close(model.text_losses(text[:, :count]), expected[:, :count], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_embeddings_are_per_position_and_short_text_is_padded() -> None:
    model, (_, image_ids) = build(), pairs()
    text = torch.tensor([[4, 9, 0, 0, 0]])
    plain = model(text, image_ids[:1])
    torch.testing.assert_close(model(text[:, :2], image_ids[:1]), plain)
    model.text_embedding.weight[20 + 1] += 1  # the padding of position 1, where there is a word
    torch.testing.assert_close(model(text, image_ids[:1]), plain)
    model.text_embedding.weight[20 + 3] += 1
    assert not torch.allclose(model(text, image_ids[:1]), plain)


@torch.no_grad()
def test_image_positions_are_row_plus_column() -> None:
    """Moving every row's or every column's embedding by the same vector is one and the same change."""
    model, (text, image_ids) = build(), pairs()
    model.row_position += 0.7
    by_rows = model(text, image_ids)
    model.row_position -= 0.7
    model.column_position += 0.7
    torch.testing.assert_close(model(text, image_ids), by_rows, atol=1e-4, rtol=1e-4)


def test_captions_in_front_of_the_image_have_the_length_that_they_have() -> None:
    """Padded, in a batch, with padding ids inside: each gives the logits that it gives alone without padding."""
    model = build(replace(SMALL, positions="rope_1d", padding="left", text_head=False, null_ids=(4, 0, 9)))
    rows, image_ids = [[3], [5, 0, 2], [1, 7, 0, 0, 6]], pairs()[1]
    text = torch.tensor([row + [0] * (5 - len(row)) for row in rows])
    with torch.no_grad():
        together = model(text, image_ids)
        for row, ids in enumerate(rows):
            alone = model(torch.tensor([ids]), image_ids[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)
        other = model(torch.tensor([[5, 3, 2]]), image_ids[1:2])
        assert (other - together[1]).abs().max() > 1e-2
        null = model.null_text(text)
        assert null.tolist() == [[4, 0, 9, 0, 0]] * 3 and model.trim(null).tolist() == [[4, 0, 9]] * 3
    drawn = generate(model, text, [[1], [2], [3]], guidance=3.0)
    alone = [
        generate(model, torch.tensor([ids + [0] * (5 - len(ids))]), [[i + 1]], guidance=3.0)
        for i, ids in enumerate(rows)
    ]
    assert torch.equal(drawn, torch.cat(alone)) and len(drawn.unique()) > 4
    with pytest.raises(ValueError, match="the text has 2 positions, but the null caption 3 ids"):
        model.null_text(text[:, :2])


ROWS = replace(SMALL, positions="rope_1d", row_ends=True)


def test_row_ends_are_read_and_not_predicted() -> None:
    """As a model that has them as a code more, in a column more, whose logits there are left out."""
    model, (text, image_ids) = build(ROWS), pairs()
    other = build(replace(SMALL, positions="rope_1d", image_vocab=12, grid=(3, 5)))
    state = model.state_dict()
    for name in ("image_head.weight", "image_head.bias"):  # row ends are never drawn
        state[name] = F.pad(state[name], (0, 0, 0, 1) if name.endswith("weight") else (0, 1))
    other.load_state_dict(state)
    tokens = F.pad(image_ids.view(3, 3, 4), (0, 1), value=11).flatten(1)
    with torch.no_grad():
        wanted = other(text, tokens).view(3, 3, 5, 12)[:, :, :4, :11].flatten(1, 2)
        torch.testing.assert_close(model(text, image_ids), wanted)
        for count in (0, 3, 4, 7, 11):  # and of the first codes only
            torch.testing.assert_close(model(text, image_ids[:, :count]), wanted[:, : count + 1], atol=1e-5, rtol=1e-5)
        nats = F.cross_entropy(wanted.flatten(0, 1), image_ids.flatten())
        torch.testing.assert_close(model.losses(text, image_ids)["image"], nats)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"guidance": 2.0, "guidance_until": 5}])
def test_row_ends_are_forced_while_drawing(options: dict) -> None:
    """Codes are those of a slow loop, with and without known rows; previews have codes only."""
    model, (text, _) = build(ROWS), pairs()
    uniform = torch.stack([torch.rand(12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)])
    codes = torch.zeros(3, 0, dtype=torch.int64)
    with torch.no_grad():
        for code in range(12):
            logits = model(text, codes)[:, -1]
            if code < options.get("guidance_until", 0):
                blank = model(model.null_text(text), codes)[:, -1]
                logits = blank + 2.0 * (logits - blank)
            codes = torch.cat((codes, sample(logits, uniform[:, code])[:, None]), dim=1)
    seen: list[tuple[int, int]] = []
    seeds = [[1], [2], [3]]
    drawn = generate(model, text, seeds, watch=lambda ids, count: seen.append((ids.shape[1], count)), **options)
    assert torch.equal(drawn.flatten(1), codes) and len(codes.unique()) > 3
    assert {width for width, _ in seen} == {12} and seen[-1][1] == 12
    known = torch.zeros(3, 4, dtype=torch.bool)
    known[:2] = True
    forced = torch.arange(12).view(3, 4) % 11
    kept = generate(model, text, seeds, known_codes=forced, known_mask=known, **options)
    assert torch.equal(kept[:, :2], forced[None, :2].expand(3, -1, -1)) and not torch.equal(kept[:, 2], drawn[:, 2])


def test_too_many_tokens_are_refused() -> None:
    model, (text, image_ids) = build(), pairs()
    with pytest.raises(ValueError, match="the text has 6 tokens, but the model only 5 text positions"):
        model(F.pad(text, (0, 1)), image_ids)
    with pytest.raises(ValueError, match="the image has 13 tokens, but the model only 12 image positions"):
        model(text, F.pad(image_ids, (0, 1)))


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"attention": ()}, "attention is empty"),
        ({"conv_kernel": 4}, "conv_kernel is 4"),
        ({"image_vocab": 0}, "image_vocab is 0"),
        ({"grid": (0, 4)}, r"grid\[0\] is 0; it must be at least 1"),
        ({"positions": "rope", "transformer": TransformerConfig(width=12, depth=1, heads=2)}, "head width"),
        ({"padding": "left"}, "padding: left needs rotary positions"),
        ({"row_ends": True}, "row_ends needs positions: rope_1d"),
        ({"padding": "left", "positions": "rope_1d"}, "padding: left needs text_head: false"),
        ({"null_ids": (3, 20)}, "null_ids has 20"),
        ({"null_ids": (1,) * 6}, "null_ids has 6 ids"),
        ({"dropped_ids": (1,) * 6}, "dropped_ids has 6 ids"),
        ({"null_ids": (1,), "null_keeps_ends": True}, "two kinds of null captions"),
        (FEATURES | {"begin_id": 3}, "text_features needs no begin_id"),
        (FEATURES | {"dropped_ids": (3,)}, "text_features needs no begin_id, no dropped_ids"),
        (FEATURES | {"padding": "left", "positions": "rope_1d"}, "and no padding: left"),
    ],
)
def test_wrong_shapes_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)


def paper(depth: int) -> DALLEConfig:
    """Ramesh et al. 2021, section 2.2 and appendix B.1."""
    return DALLEConfig(
        transformer=TransformerConfig(width=3968, depth=depth, heads=62),
        text_vocab=16384,
        text_length=256,
        image_vocab=8192,
        grid=(32, 32),
        attention=("row", "column", "row", "row"),
        last_attention="conv",
    )


def parameter_count(config: DALLEConfig) -> int:
    with torch.device("meta"):  # 12 billion of them are not allocated
        return sum(parameter.numel() for parameter in DALLE(config).parameters())


def test_paper_config_has_12_billion_parameters() -> None:
    per_layer = parameter_count(paper(2)) - parameter_count(paper(1))
    count = parameter_count(paper(1)) + 63 * per_layer  # as 64 layers, and quicker
    assert 12.0e9 < count < 12.5e9
    assert per_layer == 12 * 3968**2 + (3 + 1 + 4 + 1 + 4) * 3968  # weights; biases and two norms
    kinds = paper(64).kinds
    for i in range(1, 64):  # the paper counts layers from 1
        assert kinds[i - 1] == ("column" if (i - 2) % 4 == 0 else "row")
    assert kinds[63] == "conv"


@pytest.mark.slow
def test_overfits_16_pairs() -> None:
    torch.manual_seed(0)
    shape = {"width": 64, "heads": 4, "text_vocab": 50, "text_length": 6, "image_vocab": 32, "grid": (4, 4)}
    config = dalle_config(**shape, attention=("row", "column"))
    model = DALLE(config)
    text, image_ids = torch.randint(1, 50, (16, 6)), torch.randint(0, 32, (16, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        losses = model.losses(text, image_ids)
        optimizer.zero_grad()
        (losses["text"] / 8 + losses["image"] * 7 / 8).backward()
        optimizer.step()
    drawn = generate(model, text, [[0]] * 16, temperature=0)
    assert torch.equal(drawn.flatten(1), image_ids)
    sampled = generate(model, text, [[seed] for seed in range(16)], guidance=1.5, top_p=0.9)
    assert (sampled.flatten(1) == image_ids).float().mean() > 0.95
