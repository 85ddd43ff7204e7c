"""What several stages that stand on a CLIP use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dalle.checkpoints import model_folder
from dalle.config import to_dict
from dalle.models.clip import CLIP
from support.tiny_configs import clip_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a CLIP with random weights that reads by the tokenizer `emoji-bpe`."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    config = clip_config(depth=1, text_vocab=4096)
    torch.manual_seed(0)
    parts = {"text_tokenizer": ROOT / "tokenizers/emoji-bpe"}
    model_folder.save(folder, {"stage": "clip", "model": to_dict(config)}, CLIP(config).state_dict(), parts=parts)
    return str(folder)
