"""Write the files that later code must still read: python tests/golden/make_artifacts.py, at the commit to be kept.

A token-shard folder, an image index, the state of a painting and the run of a DALL-E whose newest checkpoint is its
middle one, all small, go into artifacts.tar.xz; what this code makes of them goes into artifacts.json.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from golden import read_artifacts, recipes  # noqa: E402


def main() -> None:
    """Make, read, pack."""
    from dalle.__main__ import main as dalle

    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        recipes.run("bpe", recipes.BPE, 0)
        recipes.run("vqgan", recipes.VQGAN, 3)
        recipes.run("clip", recipes.CLIP, 3)
        for name in ("bpe", "vqgan", "clip"):
            shutil.move(f"{name}/model", "kept")
            shutil.rmtree(name)
            Path(name).mkdir()
            shutil.move("kept", f"{name}/model")
        recipes.run("dalle", recipes.DALLE, 6, save_every=3, validate_every=6, sample_every=6)
        losses = {name: values[3:] for name, values in recipes.losses(Path("dalle")).items()}
        newest = sorted(Path("dalle/checkpoints").iterdir())[-1]
        for folder in (newest, Path("dalle/model"), Path("dalle/samples")):
            shutil.rmtree(folder)
        Path("photos").mkdir()
        for number in range(6):
            cells = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
            Image.fromarray(cells).resize((16, 16), Image.Resampling.NEAREST).save(f"photos/{number}.png")
        assert dalle(["index", "photos", "--out", "photos.index", "--clip", "clip/model", "--device", "cpu"]) == 0
        assert dalle(["encode", "dalle.yaml", "shards", "data.size=12", "--device", "cpu"]) == 0
        paint = ["--steps", "4", "--cutouts", "2", "--augment", "none", "--device", "cpu", "--save-every", "2"]
        models = ["--image-tokenizer", "vqgan/model", "--clip", "clip/model"]
        assert dalle(["paint", "a red circle", *paint, *models, "--steps", "2", "--out", "painted"]) == 0
        shutil.move(str(next(Path("painted").iterdir()) / "state.safetensors"), "state.safetensors")
        shutil.rmtree("painted")
        with tarfile.open(ROOT / "tests/golden/artifacts.tar.xz", "w:xz") as archive:
            for path in sorted(Path().iterdir()):
                archive.add(path)
        found = {"losses": losses, **read_artifacts.read()}
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (ROOT / "tests/golden/artifacts.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
