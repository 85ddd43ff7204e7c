"""SigLIPs give the embeddings, ids and probabilities of transformers and of open_clip, on random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.clip import read_clip
from dalle.generation.rerank import best, score
from dalle.models.clip import CLIP
from dalle.text_tokenizers import SigLIPTokenizer
from support.published.references import siglip_open_clip
from support.published.siglips import EXPECTED, LENGTH, LINES, SHAPES, SIDE, hub_folder, open_clip_folder, words

transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
TEXTS = [*LINES, "", "  two   spaces\tand a tab ", "Don't: 3.5 cats; naïve", "\u2581 bar", "word " * 40, "日本語"]


@pytest.fixture(scope="module", params=[1, 2])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, int]:
    """A model of transformers, the folder that it writes, and the version of its tokenizer."""
    version: int = request.param
    folder = tmp_path_factory.mktemp("siglip")
    content = words(version, 60)
    return hub_folder(folder, content, version), folder, version


def theirs(folder: Path, version: int) -> Any:
    """The tokenizer of transformers for the same pieces."""
    if version == 1:
        return transformers.SiglipTokenizer(str(folder / "spiece.model"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (vocab[piece], piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if not processor.is_byte(vocab[piece]) and piece[:cut] in vocab and piece[cut:] in vocab
    ]
    return transformers.Siglip2Tokenizer(vocab=vocab, merges=[(a, b) for _, a, b in sorted(merges)])


def test_embeddings_and_probabilities_equal_transformers(published: tuple[Any, Path, int]) -> None:
    model, folder, _ = published
    clip = dalle.load_clip(folder)
    assert isinstance(clip.tokenizer, SigLIPTokenizer) and not clip.training
    config = clip.config
    assert (config.towers, config.sigmoid, config.mean, config.std) == ("siglip", True, (0.5,) * 3, (0.5,) * 3)
    assert (config.image_size, config.text_length, config.vision.heads, config.text.heads) == (SIDE, LENGTH, 2, 4)
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    ids = clip.tokenizer.encode(TEXTS[:5], LENGTH)
    with torch.no_grad():
        wanted = model(input_ids=ids, pixel_values=(images - 0.5) / 0.5)
        of_images, of_texts = clip.encode_image(images), clip.encode_text(TEXTS[:5])
        torch.testing.assert_close(of_images, wanted.image_embeds, rtol=0, atol=2e-6)
        torch.testing.assert_close(of_texts, wanted.text_embeds, rtol=0, atol=2e-6)
        found = clip.probabilities(of_images @ of_texts.T)
    torch.testing.assert_close(found, wanted.logits_per_image.sigmoid(), rtol=0, atol=2e-6)
    assert found.std() > 1e-3 and of_images[0].sub(of_images[1]).abs().max() > 0.05


def test_text_ids_equal_transformers(published: tuple[Any, Path, int]) -> None:
    _, folder, version = published
    tokenizer = dalle.load_text_tokenizer(folder)
    reference = theirs(folder, version)
    for text in TEXTS:
        if version == 1 and not text.strip():
            continue  # transformers puts a lone space there, big_vision nothing
        wanted = reference(text)["input_ids"]
        assert tokenizer.encode_ragged([text])[0] == (wanted if version == 1 else [*wanted, 1]), text
    padded = tokenizer.encode(["a lion", "word " * 40], LENGTH)
    assert padded[0, -1] == tokenizer.pad_id == (1 if version == 1 else 0) and padded[1, -1] == 1
    with pytest.raises(ValueError, match="set bpe_dropout=0"):
        tokenizer.encode(["a lion"], dropout=0.1)


def test_converted_siglip_gives_the_same_scores(
    published: tuple[Any, Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, _ = published
    assert main(["inspect", str(folder)]) == 0
    assert "a SigLIP of Hugging Face" in capsys.readouterr().out
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    one, other = dalle.load_clip(folder), dalle.load_clip(tmp_path / "ours")
    images = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    scores = score(one, images, ["a red heart"] * 4)
    torch.testing.assert_close(scores, score(other, images, ["a red heart"] * 4))
    ranked = one.probabilities(scores)
    assert best(scores) == best(ranked) and len(set(ranked.tolist())) == 4
    assert load_file(tmp_path / "ours/model.safetensors")["logit_bias"].item() == -3


def test_missing_or_mismatched_files_give_a_one_line_error(published: tuple[Any, Path, int], tmp_path: Path) -> None:
    _, folder, version = published
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / ("spiece.model" if version == 1 else "tokenizer.model")

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_clip(copy)
        assert "\n" not in str(caught.value)

    file.write_bytes(file.read_bytes()[:-7])
    refused("not a SentencePiece model")
    file.write_bytes(words(version, 40, LINES[:2]))
    refused("text tokens, its text tokenizer")
    file.unlink()
    clip = dalle.load_clip(copy)
    with pytest.raises(ValueError, match=r"put spiece.model .*"):
        clip.encode_text(["a"])
    (copy / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    refused("spiece.model of SigLIP, or tokenizer.model")
    (copy / "config.json").write_text(json.dumps({"vision_config": {"num_attention_heads": 2, "hidden_act": "relu"}}))
    refused("its activation 'relu' is not supported")
    state = load_file(copy / "model.safetensors")
    del state["logit_bias"]
    save_file(state, copy / "model.safetensors")
    refused("it has no tensor logit_bias")
    flat = "vision_model.embeddings.patch_embedding.weight"
    save_file(state | {flat: state[flat].flatten(1)}, copy / "model.safetensors")
    refused("NaFlex")


def test_published_shapes_fit_at_full_width(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Base, patch 16, 256 pixels, both vocabularies: as many parameters as transformers has."""
    for vocab in (32_000, 256_000):
        with torch.device("meta"):
            whole = transformers.SiglipModel(
                transformers.SiglipConfig(text_config={"vocab_size": vocab}, vision_config={"image_size": 256})
            )
        state = whole.state_dict()
        monkeypatch.setattr("dalle.checkpoints.published.clip.read_state", lambda source, state=state: state)
        found = read_clip(tmp_path)
        with torch.device("meta"):
            clip = CLIP(found.config)
        found.check(clip, "base")
        assert sum(p.numel() for p in clip.parameters()) == sum(p.numel() for p in whole.parameters())
        assert found.config.image_size == 256 and found.config.embed_dim == 768


@pytest.mark.parametrize("activation", ["exact", "tanh"])
def test_open_clip_siglip_equals_its_own_code(
    activation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_clip_folder(tmp_path, activation)
    clip = dalle.load_clip(folder)
    kind = {"exact": "gelu", "tanh": "gelu_tanh"}[activation]
    assert clip.config.vision.feed_forward == clip.config.text.feed_forward == kind
    assert (clip.config.vision.heads, clip.config.text.heads, clip.config.mean) == (2, 4, (0.5,) * 3)
    images, ids = siglip_open_clip.images() / 2 + 0.5, siglip_open_clip.ids()

    with torch.no_grad():
        of_images, of_texts = clip.encode_image(images), clip.encode_text(ids)
    torch.testing.assert_close(of_images, EXPECTED[f"{activation}.images"], rtol=0, atol=2e-6)
    torch.testing.assert_close(of_texts, EXPECTED[f"{activation}.texts"], rtol=0, atol=2e-6)
    wanted = EXPECTED[f"{activation}.logits"].sigmoid()
    torch.testing.assert_close(clip.probabilities(of_images @ of_texts.T), wanted, rtol=0, atol=2e-6)
    assert of_images[0].sub(of_images[1]).abs().max() > 0.05
    # The other kind of GELU is told apart by this tolerance
    assert EXPECTED["exact.images"].sub(EXPECTED["tanh.images"]).abs().max() > 1e-5
    with pytest.raises(ValueError, match=r"put spiece.model .*"):
        clip.encode_text(["a"])
    (folder / "spiece.model").write_bytes(words(1, 60))
    with pytest.raises(ValueError, match="text tokens, its text tokenizer"):
        dalle.load_clip(folder)
    (folder / "spiece.model").unlink()
    # Ours are complete: they have a text tokenizer
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 2
    assert "put spiece.model" in capsys.readouterr().err
    assert main(["inspect", str(folder)]) == 0
    assert "a SigLIP of open_clip" in capsys.readouterr().out


def test_other_open_clip_siglips_give_a_one_line_error(tmp_path: Path) -> None:
    for changes, message in (
        ({"pool_type": "tok"}, "its text tower is not SigLIP's"),
        ({"no_causal_mask": False}, "its text tower is not SigLIP's"),
        ({"heads": 5}, "its config says 5 heads, which do not divide it"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_clip(open_clip_folder(tmp_path, **changes))
        assert "\n" not in str(caught.value)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=r"put its open_clip_config.json beside it"):
        dalle.load_clip(tmp_path)
    state = load_file(tmp_path / "open_clip_model.safetensors") | {"visual.head.proj.weight": torch.zeros(1)}
    open_clip_folder(tmp_path)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"unknown tensor names: visual.head.proj.weight"):
        dalle.load_clip(tmp_path)


def test_open_clip_siglip_fits_at_full_width(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_meta = {name: torch.empty(shape, device="meta") for name, shape in SHAPES["ViT-B-16-SigLIP"].items()}
    monkeypatch.setattr("dalle.checkpoints.published.clip.read_state", lambda source: on_meta)
    config = {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}}
    config["text_cfg"] = {"width": 768, "heads": 12, "no_causal_mask": True, "pool_type": "last"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    found = read_clip(tmp_path)
    with torch.device("meta"):
        clip = CLIP(found.config)
    found.check(clip, "ViT-B-16-SigLIP")
    assert sum(p.numel() for p in clip.parameters()) == sum(value.numel() for value in on_meta.values())
    assert (found.config.image_size, found.config.embed_dim, found.config.text_length) == (224, 768, 64)
