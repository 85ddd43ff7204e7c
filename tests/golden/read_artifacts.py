"""What the code makes of the stored files, in the working folder that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

import dalle
from dalle.__main__ import main
from dalle.data import open_training
from dalle.data.token_shards.dataset import TokenShardsConfig


def read() -> dict[str, Any]:
    """Codes and captions of the token shards, hits of a search, and the painting two steps later."""
    return {"shards": _shards(), "index": _index(), "painting": _painting()}


def _shards() -> list[dict[str, Any]]:
    rows = open_training(TokenShardsConfig(path=Path("shards")), 16)
    pairs = [rows.pair(index, 0) for index in range(len(rows))]
    return [{"caption": pair.caption, "codes": pair.image.flatten().tolist()} for pair in pairs]


def _index() -> dict[str, float]:
    index = dalle.ImageIndex("photos.index", clip="clip/model", device="cpu")
    return {hit.path: hit.score for hit in index.search("a red circle", top=6)}


def _painting() -> list[int]:
    """The picture's pixels, [16 * 16 * 3]."""
    assert main(["paint", "--resume", "state.safetensors", "--steps", "4", "--device", "cpu", "--out", "painted"]) == 0
    with Image.open(next(Path("painted").iterdir()) / "image.png") as picture:
        return list(picture.convert("RGB").tobytes())
