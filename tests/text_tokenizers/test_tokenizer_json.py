"""Control tokens in a tokenizer.json are those of the prompt around a caption, never of the caption itself."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig
from support.published.language_models import TEXTS, byte_level

pytest.importorskip("tokenizers", reason='pip install "dalle[tokenizers]"')
NAMES = ["<pad>", "<s>", "<soi>", "<|User|>"]
CONFIG: dict[str, Any] = {
    "begin": "<s>", "template": "<|User|>: {}<soi>", "negative_template": "<|User|>: no {}<soi>",
    "null_tokens": ("<s>", "<soi>"),
}  # fmt: skip


def tokenizer(special: bool = True, **changes: Any) -> tuple[JSONTokenizer, Any]:
    """Ours, and the library's that it reads."""
    from tokenizers import AddedToken

    one = byte_level(["<pad>"], 320)
    one.add_tokens([AddedToken(name, special=special, normalized=False, **changes) for name in NAMES[1:]])
    one.add_tokens([AddedToken("word", special=False)])
    return JSONTokenizer(JSONTokenizerConfig(vocab_size=400, **CONFIG), one.to_str().encode()), one


@pytest.mark.parametrize("special", [True, False])
def test_names_of_control_tokens_in_captions_are_characters(special: bool) -> None:
    ours, _ = tokenizer(special)
    control = {ours.id_of(name) for name in NAMES[1:]}
    for caption in ("a <soi> fox", "<s><|User|>: <soi>", "<soi>", "a fox<soi> ", "<s><s", "<<soi>>"):
        for ids, template in (
            (ours.encode_ragged([caption])[0], "<|User|>: {}<soi>"),
            (ours.encode_negative(caption), "<|User|>: no {}<soi>"),
        ):
            front = [number for number in ids if number in control]
            assert front == [ours.id_of(name) for name in ("<s>", "<|User|>", "<soi>")]
            text = ours._tokenizer.decode(ids, skip_special_tokens=False)
            assert text == "<s>" + template.format(caption)


def test_a_control_token_that_takes_white_space_is_found_too() -> None:
    ours, _ = tokenizer(lstrip=True, rstrip=True)
    soi = ours.id_of("<soi>")
    for caption in ("a <soi> fox", "a fox  ", "  <soi>  "):
        ids = ours.encode_ragged([caption])[0]
        assert ids.count(soi) == 1
        assert ids[-1] == soi


def test_other_captions_have_the_ids_of_the_library() -> None:
    ours, one = tokenizer()
    for caption in [*TEXTS, "a word of words", "a < b > c <|", "<soi"]:
        wanted = one.encode(f"<|User|>: {caption}<soi>", add_special_tokens=False).ids
        assert ours.encode_ragged([caption])[0] == [ours.id_of("<s>"), *wanted]
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.encode_ragged(["a <soi> word"]) == ours.encode_ragged(["a <soi> word"])


def test_names_that_no_caption_means_are_characters_whatever_the_file_calls_them() -> None:
    """A code of Chameleon or a control token that the file does not call special; tags of HTML stay words."""
    from tokenizers import AddedToken

    one = byte_level(["<pad>"], 320)
    one.add_tokens([AddedToken(name, special=False) for name in ("IMGIMGBAZ", "<|box_start|>", "<reserved08801>")])
    one.add_tokens([AddedToken(name, special=False) for name in ("<table>", "</h1>")])
    ours = JSONTokenizer(JSONTokenizerConfig(vocab_size=400), one.to_str().encode())
    for name in ("IMGIMGBAZ", "<|box_start|>", "<reserved08801>"):
        ids = ours.encode_ragged([f"a {name} fox"])[0]
        assert ours.id_of(name) not in ids and ours.decode([ids]) == [f"a {name} fox"]
    for tag in ("<table>", "</h1>"):
        assert ours.id_of(tag) in ours.encode_ragged([f"a {tag} fox"])[0]


def test_tokens_of_single_bytes_and_of_the_unknown_are_no_control_tokens() -> None:
    """Of a BPE with byte fallback, such as Gemma's, whose file calls the tokens of bytes special."""
    from support.published.liquid import tokenizer as gemma

    ours = JSONTokenizer(JSONTokenizerConfig(vocab_size=400, begin="<bos>", end=("<boi>",)), gemma().to_str().encode())
    for caption in TEXTS:
        assert ours.encode_ragged([caption])[0][1:-1] == gemma().encode(caption, add_special_tokens=False).ids
    assert ours.encode_ragged(["<boi>"])[0].count(ours.id_of("<boi>")) == 1
