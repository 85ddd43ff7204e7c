"""Captions are cleaned as LlamaGen's own code cleans them; features are those of transformers' T5, at the right end.

references/t5_cleaned.json holds captions and what `T5Embedder.text_preprocessing` of LlamaGen's language/t5.py made of
them (commit ce98ec4).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from published import folders

from dalle.text.t5 import T5Encoder, clean

CLEANED = json.loads((Path(__file__).parent / "references" / "t5_cleaned.json").read_text())


def test_cleaned_as_their_own_code_does() -> None:
    pytest.importorskip("bs4", reason='pip install "dalle[t5]"')
    wrong = [(text, clean(clean(text)), expected) for text, expected in CLEANED if clean(clean(text)) != expected]
    assert not wrong and len(CLEANED) > 100


def test_features_at_the_right_end(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
    pytest.importorskip("bs4")
    folder = folders.t5(tmp_path)
    encoder = T5Encoder.load(folder)
    assert encoder.width == folders.T5_WIDTH
    texts = ["A red FOX", "a red fox in the forest", ""]
    made = encoder.encode(texts, length=6)
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    rows = ([3, 5, 4, 1], [3, 5, 4, 6, 7, 1], [1])  # of the words, cut to five and the end
    for row, ids in enumerate(rows):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(made[row, 6 - len(ids) :], expected, rtol=0, atol=1e-5)
        assert not made[row, : 6 - len(ids)].any()
    assert T5Encoder.load(folder, dtype=torch.bfloat16).encode(texts, 6).dtype == torch.float32


def test_what_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'pip install "dalle\[t5\]"'):
        T5Encoder.load(tmp_path)
    monkeypatch.undo()
    pytest.importorskip("transformers")
    pytest.importorskip("bs4")
    with pytest.raises(ValueError, match="cannot be loaded as a T5 encoder") as caught:
        T5Encoder.load(tmp_path)
    assert "\n" not in str(caught.value)
