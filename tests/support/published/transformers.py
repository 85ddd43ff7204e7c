"""Published transformers with random weights, read as their own files are, and what their own code gives for them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.modules import check_fit
from dalle.checkpoints.published import dalle_pytorch, llamagen, mindalle, rudalle
from dalle.checkpoints.published.state import Published
from dalle.models.dalle import DALLE
from support.published import REFERENCES
from support.published.references.transformers import CASES, GAIN, ROWS
from support.published.references.weights import weight

HEADS = {"heads": 2}
RESULTS = ("logits", "greedy", "guided", "codes", "pictures")


def reference(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a case's model under published names, and what its own code made of the inputs."""
    with safe_open(REFERENCES / "models" / f"{case}.safetensors", framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    results = {name: held.pop(name) for name in RESULTS if name in held}
    return {name: weight(drawn_as, shape, GAIN) for name, (drawn_as, shape) in shapes.items()} | held, results


def read(case: str, state: dict[str, Tensor], folder: Path) -> Published:
    if case == "mindalle":
        torch.save({"state_dict": state}, folder / "stage2_last.ckpt")
        return mindalle.read(folder, pad_id=0, given=HEADS)
    if case.startswith("rudalle"):
        return rudalle.read(state, {**HEADS, "convention": case[-2:]})  # on this grid both masks are full
    if case.startswith("llamagen"):
        return llamagen.read(state, {"image_size": 16 * ROWS, "downsample_size": 16}, "", HEADS)
    version = case.split("-")[2]
    tree = {"hparams": CASES[case], "vae_params": {}, "weights": state}
    return dalle_pytorch.read(tree | ({"version": version} if version > "1.1" else {}))


def built(found: Published) -> DALLE:
    model = DALLE(found.config).eval()
    check_fit(model, found.tensors, "the file")
    model.load_state_dict({name: t() if isinstance(t, LazyTensor) else t for name, t in found.tensors.items()})
    return model
