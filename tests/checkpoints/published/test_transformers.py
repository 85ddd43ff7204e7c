"""Published transformers give the logits and the tokens that their own code gives.

What that code gave is in tests/support/published/references/models/, made by transformers.py beside it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.checkpoints.modules import check_fit
from dalle.checkpoints.published import llamagen, mindalle, rudalle
from dalle.checkpoints.published.state import published_name, rename_tensors
from dalle.models.dalle import DALLE
from support.generation import generate
from support.published import REFERENCES
from support.published.references.transformers import CASES, CODES, ROWS, TEXT, WORDS, features, inputs
from support.published.transformers import built, read, reference


@pytest.mark.parametrize("case", CASES)
def test_logits_and_tokens_equal_their_own_code(case: str, tmp_path: Path) -> None:
    state, expected = reference(case)
    model = built(read(case, state, tmp_path))
    text, image = inputs()
    if case == "llamagen-t2i":
        text = features()
    if case == "llamagen-c2i":
        text = torch.tensor([[3], [7]])
    config = model.config
    assert (config.image_vocab, config.grid) == (CODES, (ROWS, ROWS))
    if not case.startswith("llamagen"):
        assert (config.text_vocab, config.text_length) == (WORDS, TEXT)
    greedy = generate(model, text, [[0], [1]], temperature=0).flatten(1)
    assert torch.equal(greedy, expected["greedy"]) and len(greedy.unique()) > 2
    if case.startswith("llamagen"):  # its logits are those of the tokens it took
        image = greedy
        guided = generate(model, text, [[0], [1]], temperature=0, guidance=3.0).flatten(1)
        assert torch.equal(guided, expected["guided"]) and not torch.equal(guided, greedy)
    with torch.no_grad():
        logits = model(text, image)
    scale = float(expected["logits"].max() - expected["logits"].min())
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("case", CASES)
def test_cached_logits_equal_uncached(case: str, tmp_path: Path) -> None:
    model = built(read(case, reference(case)[0], tmp_path)).double()  # in float32, CPUs differ by 1e-5 of the largest
    text, image = inputs()
    if case.startswith("llamagen"):
        text = features().double() if case == "llamagen-t2i" else torch.tensor([[3], [7]])
    with torch.no_grad():
        whole = model(text, image)
        logits, state = model.prefill(text)
        cache = model.new_cache(2)
        cache.load_prefixes([state.row(0), state.row(1)])
        steps = [logits]
        for i in range(3):
            steps.append(model.extend(image[:, i : i + 1], cache))
        steps.append(model.extend(image[:, 3:10], cache))  # several at once, as an image to go on from
        for i in range(10, ROWS**2 - 1):
            steps.append(model.extend(image[:, i : i + 1], cache))
    seen = [0, 1, 2, 3, *range(10, ROWS**2)]
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, seen], rtol=0, atol=1e-11 * float(whole.abs().max()))


MANIFESTS: dict[str, Any] = json.loads((REFERENCES / "manifests.json").read_text())
PARAMETERS = {  # as published
    "minDALL-E 1.3B": 1_291_081_728,
    "ruDALL-E XL": 1_310_410_880,
    "Kandinsky": 11_519_306_624,
    "LlamaGen t2i XL": 777_923_840 - 120 * 2048,  # less the unconditional features, which are no parameter
    "LlamaGen c2i B": 110_888_448,
    "LlamaGen c2i L": 342_910_976,
    "LlamaGen c2i XL": 774_699_520,
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_published_shapes_fit_at_full_width(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = MANIFESTS[name]
    state = {
        key.replace(".*.", f".{layer}."): torch.empty(shape, device="meta")
        for key, shape in manifest["shapes"].items()
        for layer in range(manifest["depth"] if ".*." in key else 1)
    }
    if name.startswith("minDALL-E"):
        monkeypatch.setattr(mindalle, "read_pickled", lambda file: {"state_dict": state})
        found = mindalle.read(tmp_path, 0, {})
    elif name.startswith("LlamaGen"):
        found = llamagen.read(state, {}, "t2i_XL_stage2_512.pt", {})
        assert found.config.grid == (32, 32)
    else:
        found = rudalle.read(state, {"convention": "v3"})
        assert found.dropped[-1] == "text_pos_embeddings.weight[128]"
    with torch.device("meta"):
        model = DALLE(found.config)
    check_fit(model, found.tensors, name)
    ours = sum(parameter.numel() for parameter in model.parameters())
    theirs = manifest["parameters"]
    assert theirs == PARAMETERS.get(name, theirs)
    assert ours == theirs - (
        found.config.transformer.width if "text_pos_embeddings.weight[128]" in found.dropped else 0
    )


def test_rudalle_masks_equal_digests_of_its_own_code() -> None:
    """Digests of what rudalle/dalle/image_attention.py makes of 3 text tokens and 13 x 13 of the image."""
    expected = {
        "v2": ["4af51d6d60bd6a45", "29bb3d35947a4dde", "d0944feb6c8cba29"],
        "v3": ["4af51d6d60bd6a45", "29bb3d35947a4dde", "3fdf2476b2712244"],
    }
    for convention, digests in expected.items():
        tables = rudalle.masks(3, 13, convention)  # type: ignore[arg-type]
        found = [hashlib.sha256(t.to(torch.uint8).numpy().tobytes()).hexdigest()[:16] for t in tables]
        assert found == digests
        file = {"transformer.conv_mask": tables[2].half()}  # as v2 stores it
        assert rudalle.convention_of(file, 3, 13, {}) == convention
    with pytest.raises(ValueError, match="give convention=v3"):
        rudalle.convention_of({}, 3, 13, {})


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("dalle-pytorch")])
def test_published_name_inverts_the_renaming_rules(case: str) -> None:
    family = {"mindalle": mindalle, "rudalle": rudalle, "llamagen": llamagen}[case.partition("-")[0]]
    for name in reference(case)[0]:
        for ours in rename_tensors({name: torch.empty(0)}, family._RULES, family._DROPPED)[0]:
            assert published_name(ours, family._RULES) == name
    assert published_name("something.else", family._RULES) is None
