"""Text tokenizers of published models give the ids that their own code gives.

What that code gave is in references/published.json, made by references/published.py.
"""

from __future__ import annotations

import gzip
import json
import pickle
import random
import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from dalle.files import install_command
from dalle.text_tokenizers import (
    CharTokenizer,
    CharTokenizerConfig,
    ClassTokenizer,
    ClassTokenizerConfig,
    CLIPTokenizer,
    CLIPTokenizerConfig,
    TextTokenizer,
    YTTMTokenizer,
    YTTMTokenizerConfig,
    clip_bpe,
    load,
)
from dalle.text_tokenizers.bpe import merge
from dalle.text_tokenizers.clip_bpe import MERGES

REFERENCE = json.loads((Path(__file__).parent / "references" / "published.json").read_text())
TEXTS: list[str] = REFERENCE["texts"]


# Thirty rules of YouTokenToMe, of which each doubles the token of the one before
DOUBLED = "1 30\n9601 4\n" + "".join(f"{i} {i} {i + 1}\n" for i in range(4, 34)) + "1 0 2 3\n"


def clip(ends: bool = False) -> CLIPTokenizer:
    lines = ["#version: 0.2", *REFERENCE["clip"]["merges"], ""]
    return CLIPTokenizer(CLIPTokenizerConfig(ends=ends), "\n".join(lines).encode())


def char() -> CharTokenizer:
    vocab, merges = (REFERENCE["char"][part] for part in ("vocab", "merges"))
    return CharTokenizer(CharTokenizerConfig(), json.dumps(vocab).encode(), merges.encode())


def yttm(ends: bool = False) -> YTTMTokenizer:
    return YTTMTokenizer(YTTMTokenizerConfig(ends=ends), REFERENCE["yttm"]["model"].encode())


def is_known(text: str) -> bool:
    """Whether this Python's Unicode has the characters; Python 3.10 has not all of 3.11's."""
    return all(unicodedata.category(character) != "Cn" for character in text.replace("\ufffe", ""))


@pytest.mark.parametrize("make, name", [(clip, "clip"), (char, "char"), (yttm, "yttm")])
def test_ids_equal_their_own_codes(make: object, name: str) -> None:
    if name == "clip":
        pytest.importorskip("ftfy", reason='pip install "dalle[clip]"')
    tokenizer: TextTokenizer = make()  # type: ignore[operator]
    expected = REFERENCE[name]["ids"]
    known = [(text, right) for text, right in zip(TEXTS, expected) if is_known(text)]
    assert len(known) > 0.9 * len(TEXTS)
    found = tokenizer.encode_ragged([text for text, _ in known])
    wrong = [(text, row, right) for (text, right), row in zip(known, found) if row != right]
    assert not wrong, f"{len(wrong)} of {len(TEXTS)}: {wrong[:3]}"
    assert tokenizer.vocab_size > max(i for row in expected for i in row)


def test_clip_rows_have_start_end_and_padding() -> None:
    tokenizer = clip(ends=True)
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert (start, end) == (512 + 300, 512 + 301)
    plain = clip().encode_ragged(["a red heart"])[0]
    assert tokenizer.encode(["a red heart"], 77).tolist() == [[start, *plain, end] + [0] * (75 - len(plain))]
    cut = tokenizer.encode(["a red heart " * 40], 10).tolist()[0]
    assert cut[0] == start and cut[-1] == end and len(cut) == 10 and tokenizer.truncated == 1
    assert tokenizer.encode([""]).tolist() == [[start, end]]
    assert clip().encode(["a " * 9], 4).tolist() == [clip().encode_ragged(["a a a a"])[0]]


def test_mindalle_rows_are_padded_and_truncated() -> None:
    tokenizer = char()
    assert tokenizer.pad_id == REFERENCE["char"]["pad"]
    row = tokenizer.encode_ragged(["a red heart"])[0]
    assert tokenizer.encode(["a red heart"], 64).tolist() == [row + [tokenizer.pad_id] * (64 - len(row))]
    assert tokenizer.encode(["a red heart"], 2).tolist() == [row[:2]]
    assert tokenizer.encode([""], 3).tolist() == [[tokenizer.pad_id] * 3]


def test_rudalle_rows_have_start_end_and_zeros() -> None:
    """`encode_text` of rudalle/tokenizer.py: begin 2, end 3, zeros; a row that is too long loses its end."""
    tokenizer = yttm(ends=True)
    plain = yttm().encode_ragged(["лиса в лесу"])[0]
    assert tokenizer.encode([" ЛИСА в Лесу\n"], 32).tolist() == [[2, *plain, 3] + [0] * (30 - len(plain))]
    assert tokenizer.encode(["лиса в лесу"], 5).tolist() == [[2, *plain[:4]]]
    assert tokenizer.encode([""], 4).tolist() == [[2, 3, 0, 0]]


def test_class_tokenizer_takes_class_numbers_only() -> None:
    tokenizer = ClassTokenizer(ClassTokenizerConfig(classes=10))
    assert tokenizer.encode(["3", " 9 ", ""], 1).tolist() == [[3], [9], [10]]
    assert tokenizer.decode(tokenizer.encode(["3", ""])) == ["3", ""]
    for wrong in ("10", "-1", "fox", "३", "1.5", "1" * 5000):
        with pytest.raises(ValueError, match="give a class from 0 to 9 as the prompt"):
            tokenizer.encode([wrong])


@pytest.mark.parametrize("make", [lambda: clip(True), char, lambda: yttm(True)])
def test_ids_decode_to_text_after_saving_and_pickling(make: object, tmp_path: Path) -> None:
    tokenizer: TextTokenizer = make()  # type: ignore[operator]
    words = ["a red heart", "the cat and the dog"]
    ids = tokenizer.encode(words)
    tokenizer.save(tmp_path)
    for again in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), load(tmp_path)):
        assert again.encode(words).tolist() == ids.tolist() and again.config == tokenizer.config
        assert again.decode(ids) == words
    with pytest.raises(ValueError, match="outside the text vocabulary"):
        tokenizer.decode([[tokenizer.vocab_size]])


def test_bpe_dropout_is_seeded_and_splits_more() -> None:
    tokenizer = yttm()
    plain, dropped = (sum(map(len, tokenizer.encode_ragged(TEXTS, dropout=d, seed=1))) for d in (0.0, 0.5))
    assert dropped > plain
    one = tokenizer.encode_ragged(["лиса в лесу", "a red heart"], dropout=0.5, seed=[3, 4])
    assert one[1] == tokenizer.encode_ragged(["a red heart"], dropout=0.5, seed=[4])[0]


@pytest.mark.parametrize("make", [lambda: clip(True), char, lambda: yttm(True)])
def test_bpe_dropout_of_a_word_does_not_depend_on_later_words(make: Callable[[], TextTokenizer]) -> None:
    tokenizer = make()
    spellings = set()
    for seed in range(100):
        short, long = (
            tokenizer.encode_ragged([caption], dropout=0.3, seed=seed)[0]
            for caption in ("a red heart", "a red heart the cat")
        )
        kept = len(short) - len(tokenizer.end)
        assert long[:kept] == short[:kept]
        spellings.add(tuple(short))
    assert len(spellings) > 1


def test_clip_token_0_decodes_unless_it_is_padding() -> None:
    for ends in (True, False):
        tokenizer = clip(ends)
        assert 0 in tokenizer.encode_ragged(["!~"])[0]
        assert tokenizer.decode(tokenizer.encode(["a !~ b"], 20)) == ["a !~ b"]


def test_clip_pattern_drops_lone_marks() -> None:
    """U+0345 is no letter, but its capital is: where case does not count, the `regex` package finds it nowhere."""
    assert clip_bpe.split_words("a\u0345b1\u0345") == ["a", "b", "1"]


def test_random_texts_equal_hugging_face_tokenizers(tmp_path: Path) -> None:
    """Against Hugging Face's library itself, built as dalle/models/tokenizer.py of kakaobrain/minDALL-E does."""
    library = pytest.importorskip("tokenizers.implementations", reason="pip install tokenizers")
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab.write_text(json.dumps(REFERENCE["char"]["vocab"]))
    merges.write_text(REFERENCE["char"]["merges"])
    theirs = library.CharBPETokenizer.from_file(
        vocab_filename=str(vocab), merges_filename=str(merges), unk_token="[UNK]", lowercase=True
    )
    theirs.add_special_tokens(["[PAD]"])
    chance = random.Random(1)
    letters = "".join(REFERENCE["texts"])
    texts = ["".join(chance.choices(letters, k=chance.randint(1, 20))) for _ in range(2000)]
    texts = [text for text in texts if is_known(text)]
    ours = char()
    assert ours.encode_ragged(texts) == [row.ids for row in theirs.encode_batch(texts)]


def test_merging_equals_a_slow_loop() -> None:
    """Rules in any order, also such as no training makes: always the first rule that fits, at the leftmost place."""
    chance = random.Random(0)
    for _ in range(300):
        pairs = [(chance.randrange(6), chance.randrange(6)) for _ in range(12)]
        rules = {pair: (rank, chance.randrange(6)) for rank, pair in enumerate(pairs)}
        symbols = [chance.randrange(6) for _ in range(chance.randrange(12))]
        slow = list(symbols)
        while found := [(rules[pair][0], i) for i, pair in enumerate(pairwise(slow)) if pair in rules]:
            _, i = min(found)
            slow[i : i + 2] = [rules[slow[i], slow[i + 1]][1]]
        assert merge(symbols, lambda a, b, rules=rules: rules.get((a, b))) == slow


def test_clip_merges_may_be_gzipped_or_longer() -> None:
    lines = REFERENCE["clip"]["merges"]
    text = "\n".join(["bpe_simple_vocab_16e6.txt", *lines])
    packed = CLIPTokenizer(CLIPTokenizerConfig(ends=False), gzip.compress(text.encode()))
    assert packed.encode_ragged(["a red heart"]) == clip().encode_ragged(["a red heart"])
    more = "\n".join([text, *["a b"] * (MERGES - len(lines)), "more and more"])  # OpenAI's list goes on behind CLIP's
    assert CLIPTokenizer(CLIPTokenizerConfig(), more.encode()).vocab_size == 512 + MERGES + 2 == 49_408


def test_damaged_files_give_a_one_line_error(tmp_path: Path) -> None:
    model = REFERENCE["yttm"]["model"]
    vocab = REFERENCE["char"]["vocab"]
    cases = [
        (lambda: YTTMTokenizer(YTTMTokenizerConfig(), b"\x89PNG"), "not a YouTokenToMe model"),
        (lambda: YTTMTokenizer(YTTMTokenizerConfig(), model[:-20].encode()), "the file is damaged"),
        (lambda: YTTMTokenizer(YTTMTokenizerConfig(), b"1 0\n9601 77\n1 0 2 3\n"), "are not all between 0 and"),
        (lambda: YTTMTokenizer(YTTMTokenizerConfig(), b""), "expected a text file of numbers"),
        (lambda: YTTMTokenizer(YTTMTokenizerConfig(), b"1 0\n9601 4\n1 0 2 300\n"), "are not all between 0 and 4"),
        (
            lambda: YTTMTokenizer(YTTMTokenizerConfig(), b"2 0\n9601 4\n1114112 5\n1 0 2 3\n"),
            "that Unicode does not have",
        ),
        (
            lambda: YTTMTokenizer(YTTMTokenizerConfig(), b"2 0\n9601 4\n%d 5\n1 0 2 3\n" % 10**30),
            "Unicode does not have",
        ),
        (lambda: YTTMTokenizer(YTTMTokenizerConfig(), DOUBLED.encode()), "has over 4096 characters"),
        (lambda: CLIPTokenizer(CLIPTokenizerConfig(), "#version\nĠ t\n".encode()), "another model's, such as GPT-2"),
        (lambda: CLIPTokenizer(CLIPTokenizerConfig(), gzip.compress(bytes(1 << 25))), "have over 16,777,216 bytes"),
        (lambda: CLIPTokenizer(CLIPTokenizerConfig(), b""), "the merges file is empty"),
        (lambda: CLIPTokenizer(CLIPTokenizerConfig(), b"#version\nqq zz\n"), "expected two known tokens"),
        (lambda: CLIPTokenizer(CLIPTokenizerConfig(), b"\x1f\x8b\x00"), "a damaged .gz"),
        (lambda: CLIPTokenizer(CLIPTokenizerConfig(), b"\xff\xfe\x00"), "are not text"),
        (lambda: CharTokenizer(CharTokenizerConfig(), b"{", b""), "not JSON"),
        (lambda: CharTokenizer(CharTokenizerConfig(), b"[]", b""), "must be a JSON object"),
        (lambda: CharTokenizer(CharTokenizerConfig(), b'{"a": 0}', b""), r"has no \[UNK\]"),
        (lambda: CharTokenizer(CharTokenizerConfig(), b'{"[UNK]": 0, "a": 7}', b""), "are not numbered from 0 to 1"),
        (lambda: CharTokenizer(CharTokenizerConfig(), b"[" * 100_000, b""), "not JSON"),
        (lambda: CharTokenizer(CharTokenizerConfig(), json.dumps(vocab).encode(), b"q z9\n"), "not in the vocabulary"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    char().save(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"no merges.txt in"):
        load(tmp_path)
    (tmp_path / "config.yaml").write_text("stage: text_tokenizer\nmodel: {kind: other}\n")
    with pytest.raises(ValueError, match="model.kind is 'other', expected clip_bpe"):
        load(tmp_path)


def test_without_ftfy_only_plain_text_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    assert clip().encode_ragged(["a red heart"])
    with pytest.raises(ValueError, match="needs ftfy for .*" + re.escape(install_command("clip"))):
        clip().encode_ragged(["लाल मुटु"])
