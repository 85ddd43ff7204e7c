"""The text tokenizer: exact round trips, rows and cuts, BPE dropout, and what users get wrong."""

from __future__ import annotations

import collections
import itertools
import logging
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig

CAPTIONS = [
    "a red heart, 3d style",
    "a cat to the left of a red car on a pale blue background",
    "a yellow star 123",
    "लाल दिल",
    "रातो मुटु",
    "गुलाबी हात्ती",
] * 20
CONFIG = TextTokenizerConfig(vocab_size=400)


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(CONFIG, CAPTIONS)


def nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


ODD = [
    "", " ", "   ", " a  b ", "\n", "a\r\nb\tc\n", "\0", "a\0b", "\x1b", "\x1bs\x1be\x1b\u2581", "\u2581", "\u2581 a",
    "\u2585", "\ufffd", "\ufeffa", "\u2047", " \u2047 ", "<pad>", "</s>", "<s>", "<unk>", "<0x41>", "\u2581<s>",
    "🙂", "👩\u200d👩\u200d👧\u200d👦 🇳🇵", "गुलाबी हात्ती", "क्षत्रिय ज्ञान", "日本語", "ﬁ ½ Ａ", "e\u0301", "\u0301a",
    "\u3000\u00a0", "مرحبا", "\U0010ffff", "\ufdd0",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_odd_strings_round_trip(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode([text])) == [nfkc(text)]
    assert tokenizer.decode(tokenizer.encode([text], dropout=0.5, seed=1)) == [nfkc(text)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u2581\x1bes <>/\0\n")), max_size=3)
)
def test_any_strings_round_trip(tokenizer: SentencePieceTokenizer, texts: list[str]) -> None:
    expected = [nfkc(text) for text in texts]
    assert tokenizer.decode(tokenizer.encode(texts)) == expected
    assert tokenizer.decode(tokenizer.encode(texts, dropout=0.3, seed=7)) == expected


def test_rows_end_with_eos_and_padding(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode(["a red heart", "", "a cat"])
    assert ids.dtype == torch.int64
    for row in ids.tolist():
        end = row.index(tokenizer.eos_id)
        assert all(i > 3 for i in row[:end])
        assert all(i == tokenizer.pad_id for i in row[end + 1 :])
    assert ids[1, 0] == tokenizer.eos_id
    assert ids.shape[1] == max(row.index(3) for row in ids.tolist()) + 1
    padded = tokenizer.encode(["a red heart", "", "a cat"], 20)
    assert padded.shape == (3, 20)
    assert torch.equal(padded[:, : ids.shape[1]], ids)
    assert not padded[:, ids.shape[1] :].any()
    assert tokenizer.encode([], 5).shape == (0, 5)


def test_long_captions_are_truncated_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = SentencePieceTokenizer.train(CONFIG, CAPTIONS)
    long = "a cat to the left of a red car"
    whole = tokenizer.encode([long])
    with caplog.at_level(logging.WARNING):
        ids = tokenizer.encode([long, "a", long], 4)
        tokenizer.encode([long], 4)
    assert torch.equal(ids[0, :3], whole[0, :3])
    assert ids[0, 3] == ids[2, 3] == tokenizer.eos_id
    assert tokenizer.truncated == 3
    assert len(caplog.records) == 1
    assert tokenizer.encode(["a cat"], 1).tolist() == [[tokenizer.eos_id]]


def test_exact_fit_is_not_truncated(tokenizer: SentencePieceTokenizer) -> None:
    before = tokenizer.truncated
    whole = tokenizer.encode(["a red heart"])
    assert torch.equal(tokenizer.encode(["a red heart"], whole.shape[1]), whole)
    assert tokenizer.truncated == before


def test_digits_are_split(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode(["123"])[0, :-1]
    assert "".join(tokenizer.decode(ids[:, None])) == "123"
    assert len(ids) >= 3


def test_training_is_deterministic_and_special_ids_are_fixed(tokenizer: SentencePieceTokenizer) -> None:
    again = SentencePieceTokenizer.train(CONFIG, iter(CAPTIONS))
    assert pickle.dumps(again) == pickle.dumps(tokenizer)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 400


def test_lower_case_and_no_normalization() -> None:
    lower = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=350, lower_case=True), CAPTIONS)
    assert lower.decode(lower.encode(["A Red HEART ﬁ"])) == ["a red heart fi"]
    plain = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=350, normalization="none"), CAPTIONS)
    assert plain.decode(plain.encode(["ﬁ e\u0301"])) == ["ﬁ e\u0301"]


def test_dropout_near_0_equals_sentencepiece(tokenizer: SentencePieceTokenizer) -> None:
    texts = [*CAPTIONS[:6], *ODD, "a redder catcart yellowish heartsleft मुटुहात्ती"]
    assert torch.equal(tokenizer.encode(texts, dropout=1e-15, seed=0), tokenizer.encode(texts))


def test_dropout_of_1_gives_characters(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode(["a red heart"], dropout=1.0)[0]
    assert len(ids) == len(" a red heart") + 1


def _outcomes(symbols: tuple[str, ...], order: list[str], p: float) -> dict[tuple[str, ...], float]:
    """Probability of each segmentation, by algorithm 1 of Provilkov et al. (2020), over all drawings."""
    merges = [(order.index(a + b), i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in order]
    result: collections.Counter[tuple[str, ...]] = collections.Counter()
    reached = 1.0  # probability that all better merges were dropped in this step
    for _, i in sorted(merges):
        merged = (*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :])
        for outcome, probability in _outcomes(merged, order, p).items():
            result[outcome] += reached * (1 - p) * probability
        reached *= p
    result[symbols] += reached
    return dict(result)


def test_bpe_dropout_has_the_papers_distribution(tokenizer: SentencePieceTokenizer) -> None:
    p, draws = 0.4, 4000
    raw = tokenizer._processor
    order = [raw.id_to_piece(i) for i in sorted(range(260, tokenizer.vocab_size), key=lambda i: -raw.get_score(i))]
    assert "▁heart" in order
    exact = _outcomes(tuple("▁heart"), order, p)
    assert sum(exact.values()) == pytest.approx(1)
    rows = tokenizer.encode(["heart"] * draws, dropout=p, seed=list(range(draws))).tolist()
    counts = collections.Counter(tuple(raw.id_to_piece(i) for i in row if i > 3) for row in rows)
    assert set(counts) <= set(exact)
    for outcome, probability in exact.items():
        assert counts[outcome] / draws == pytest.approx(probability, abs=4 * (probability / draws) ** 0.5 + 1e-3)


def test_dropout_is_repeatable_and_independent_of_the_batch(tokenizer: SentencePieceTokenizer) -> None:
    texts = CAPTIONS[:6]
    batch = tokenizer.encode(texts, 64, dropout=0.5, seed=[5, 6, 7, 8, 9, 10])
    for i, text in enumerate(texts):
        assert torch.equal(tokenizer.encode([text], 64, dropout=0.5, seed=[5 + i])[0], batch[i])
    once = tokenizer.encode(texts, 64, dropout=0.5, seed=3)
    assert torch.equal(tokenizer.encode(texts, 64, dropout=0.5, seed=3), once)
    assert not torch.equal(tokenizer.encode(texts, 64, dropout=0.5, seed=4), once)
    assert tokenizer.decode(batch) == texts


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_rate_of_a_word_does_not_depend_on_its_neighbors(tokenizer: SentencePieceTokenizer, p: float) -> None:
    raw = tokenizer._processor
    order = [raw.id_to_piece(i) for i in sorted(range(260, tokenizer.vocab_size), key=lambda i: -raw.get_score(i))]
    words = ["heart", "yellow", "background", "हात्ती"]
    plain = {word: tuple(tokenizer.encode_ragged([word])[0][:-1]) for word in words}
    for word in words:
        pieces = tuple(raw.id_to_piece(i) for i in plain[word])
        changed = 1 - _outcomes(tuple(f"▁{word}"), order, p)[pieces]
        for around in (1, 8, 32):
            draws = 2048 // around
            rows = tokenizer.encode_ragged([" ".join([word] * around)] * draws, dropout=p, seed=list(range(draws)))
            cut = [spelled for row in rows for spelled in _words(raw, row)]
            assert len(cut) == 2048
            found = sum(spelled != plain[word] for spelled in cut) / len(cut)
            assert found == pytest.approx(changed, abs=4 * (changed * (1 - changed) / 2048) ** 0.5)


def _words(raw: Any, row: list[int]) -> list[tuple[int, ...]]:
    """A row's tokens word by word, without its end."""
    starts = [i for i, token in enumerate(row) if raw.id_to_piece(token).startswith("▁")]
    return [tuple(row[i:j]) for i, j in itertools.pairwise([*starts, len(row) - 1])]


def test_bpe_dropout_of_a_word_does_not_depend_on_later_words(tokenizer: SentencePieceTokenizer) -> None:
    captions = ["a yellow heart", "a yellow heart on a pale blue background"]
    for seed in range(50):
        short, long = (tokenizer.encode_ragged([caption], dropout=0.3, seed=seed)[0][:-1] for caption in captions)
        assert long[: len(short)] == short


@pytest.mark.slow
def test_dropout_is_the_same_in_another_process(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    code = (
        "import sys; from dalle.text_tokenizers import SentencePieceTokenizer; "
        "t = SentencePieceTokenizer.load(sys.argv[1]); "
        "print(t.encode([sys.argv[2]], dropout=0.5, seed=11).tolist())"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code, tmp_path, CAPTIONS[1]], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert outputs == {f"{tokenizer.encode([CAPTIONS[1]], dropout=0.5, seed=11).tolist()}\n".encode()}


def test_saved_and_pickled_tokenizers_are_equal(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    loaded = SentencePieceTokenizer.load(tmp_path / "a")
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert loaded.config == copied.config == tokenizer.config
    expected = tokenizer.encode(ODD, dropout=0.2, seed=1)
    assert torch.equal(loaded.encode(ODD, dropout=0.2, seed=1), expected)
    assert torch.equal(copied.encode(ODD, dropout=0.2, seed=1), expected)
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["bpe.model", "config.yaml"]


def test_save_keeps_an_existing_recipe(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    recipe = "stage: text_tokenizer\nmodel: {vocab_size: 400}\ndata: {kind: drawings, sets: [emoji]}\n"
    (tmp_path / "config.yaml").write_text(recipe)
    tokenizer.save(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == recipe
    assert torch.equal(SentencePieceTokenizer.load(tmp_path).encode(CAPTIONS[:6]), tokenizer.encode(CAPTIONS[:6]))


def _one_line(error: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_wrong_inputs_give_a_one_line_error(
    tokenizer: SentencePieceTokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError) as error:
        tokenizer.encode(["ab\ud800c"])
    _one_line(error, "surrogate", "position 2")
    with pytest.raises(ValueError) as error:
        tokenizer.encode("a cat")
    _one_line(error, "list")
    with pytest.raises(ValueError) as error:
        tokenizer.encode(["a cat"], 0)
    _one_line(error, "at least 1")
    with pytest.raises(ValueError) as error:
        tokenizer.decode([[5, 400]])
    _one_line(error, "400", "399")
    with pytest.raises(ValueError) as error:
        SentencePieceTokenizer.load(tmp_path)
    _one_line(error, "bpe.model", str(tmp_path))
    tokenizer.save(tmp_path)
    for damaged in (b"no model", b""):  # of no bytes SentencePiece would log that it is not initialized
        (tmp_path / "bpe.model").write_bytes(damaged)
        with pytest.raises(ValueError) as error:
            SentencePieceTokenizer.load(tmp_path)
        _one_line(error, "bpe.model", f"these {len(damaged)} bytes", "truncated or of another kind")
    assert not capfd.readouterr().err


def test_few_captions_train_a_smaller_vocabulary(caplog: pytest.LogCaptureFixture) -> None:
    made = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=100_000), iter(CAPTIONS))
    assert f"vocab_size is 100000; these captions fill only {made.vocab_size} tokens" in caplog.text
    assert made.config.vocab_size == made.vocab_size < 100_000
    exact = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=made.vocab_size), CAPTIONS)
    assert exact.files() == made.files(), "as if that size had been asked for"


def test_too_small_vocabulary_suggests_a_size() -> None:
    with pytest.raises(ValueError) as error:
        SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=262), CAPTIONS)
    _one_line(error, "vocab_size=262", "or more")
    numbers = [int(word) for word in str(error.value).replace(",", "").split() if word.isdigit()]
    SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=numbers[0]), CAPTIONS)
    with pytest.raises(ValueError) as error:
        SentencePieceTokenizer.train(CONFIG, ["", ""])
    _one_line(error, "no captions")


def test_model_of_another_vocabulary_size_is_named(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("stage: text_tokenizer\nmodel: {vocab_size: 512}\n")
    tokenizer.save(tmp_path)
    with pytest.raises(ValueError) as error:
        SentencePieceTokenizer.load(tmp_path)
    _one_line(error, "400", "512")
