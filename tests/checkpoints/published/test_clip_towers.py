"""CLIPs with a ResNet, of one tower, and with XLM-R give the embeddings that their own code gives."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.clip import read_clip
from dalle.models.clip import CLIP
from dalle.models.clip_resnet import ResNet
from dalle.text_tokenizers import XLMRobertaTokenizer, XLMRobertaTokenizerConfig
from support.published import REFERENCES
from support.published.clips import state
from support.published.references.clip_resnet import DIMENSIONS, LAYERS, LENGTH, SIDE, WIDTH, drawn, images
from support.published.references.clips import ids

with safe_open(REFERENCES / "clip_resnet.safetensors", framework="pt") as _reference:
    SHAPES: dict[str, dict[str, list[int]]] = json.loads(_reference.metadata()["shapes"])
    EXPECTED = {name: _reference.get_tensor(name) for name in _reference.keys()}  # noqa: SIM118, not a dict


def resnet_state() -> dict[str, Tensor]:
    return {key: drawn(key, shape) for key, shape in SHAPES["small"].items()}


def unnormalized(clip: CLIP, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (clip.config.mean, clip.config.std))
    return pixels * std + mean


def test_openai_resnet_equals_its_own_code(tmp_path: Path) -> None:
    state = resnet_state() | {"visual.bn1.num_batches_tracked": torch.tensor(7)}
    torch.save(state, tmp_path / "RN.pt")
    clip = dalle.load_clip(tmp_path / "RN.pt", feed_forward="quick_gelu")
    assert isinstance(clip.vision, ResNet) and clip.config.resnet is not None and not clip.training
    assert (clip.config.resnet.layers, clip.config.resnet.width) == (LAYERS, WIDTH)
    assert (clip.config.image_size, clip.config.embed_dim, clip.config.text_length) == (SIDE, DIMENSIONS, LENGTH)
    with torch.no_grad():
        embeds = clip.encode_image(unnormalized(clip, images()))
        torch.testing.assert_close(embeds, EXPECTED["images"], rtol=0, atol=2e-5)
        torch.testing.assert_close(clip.encode_text(ids()), EXPECTED["texts"], rtol=0, atol=2e-5)
        assert embeds.std() > 0.05 and not torch.allclose(embeds[0], embeds[1], atol=0.005)
        maps = clip.features(unnormalized(clip, images()))
        assert [list(one.shape[1:]) for one in maps] == [[64, 16, 16], [128, 8, 8], [256, 4, 4], [512, 2, 2]]
        pooled = clip.vision.projection(clip.pooled_image(unnormalized(clip, images())))
        torch.testing.assert_close(F.normalize(pooled, dim=-1), embeds)
    layers = clip.layers_from_top()
    assert layers["vision.stem.0.weight"] == 6 and layers["vision.blocks.0.first.weight"] == 5
    assert layers["vision.blocks.4.last.bias"] == 1 and layers["vision.pooling.q.weight"] == 0


def test_openai_resnet_fits_at_full_width(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_meta = {key: torch.empty(shape, device="meta") for key, shape in SHAPES["RN50"].items()}
    monkeypatch.setattr("dalle.checkpoints.published.clip.read_state", lambda source: on_meta)
    found = read_clip(tmp_path, {"feed_forward": "quick_gelu"})
    with torch.device("meta"):
        clip = CLIP(found.config)
    found.check(clip, "RN50")
    # OpenAI's own count, 102,007,137, has two numbers for each channel of a batch norm, of which a bias is left
    norms = sum(size[0] for name, size in SHAPES["RN50"].items() if name.endswith("running_var"))
    assert sum(parameter.numel() for parameter in clip.parameters()) == 102_007_137 - norms
    assert clip.config.image_size == 224


def test_openai_resnet_converts_and_is_finetuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = 512 + 1 + 2
    state = resnet_state()
    torch.save(state, tmp_path / "RN.pt")
    with pytest.raises(ValueError, match="heads is of no use: this CLIP takes feed_forward, text_heads"):
        read_clip(tmp_path / "RN.pt", {"feed_forward": "quick_gelu", "heads": 2})
    table = state["token_embedding.weight"]
    state["token_embedding.weight"] = torch.cat([table, table.new_zeros(words - len(table), table.shape[1])])
    torch.save(state, tmp_path / "RN.pt")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    assert main(["convert", str(tmp_path / "RN.pt"), str(tmp_path / "ours"), "feed_forward=quick_gelu"]) == 0
    clip = dalle.load_clip(tmp_path / "ours")
    with torch.no_grad():
        embeds = clip.encode_image(unnormalized(clip, images()))
    torch.testing.assert_close(embeds, EXPECTED["images"], rtol=0, atol=2e-5)
    clip.train()
    pixels = unnormalized(clip, images())
    one, both = clip.encode_image(pixels[:1]), clip.encode_image(pixels)
    torch.testing.assert_close(one, both[:1])  # of a batch norm they would differ


def tower_config(kind: str) -> dict[str, Any]:
    if kind == "text":
        own = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        return own | {"vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 59, "hidden_act": "gelu"}
    own = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 2}
    return own | {"image_size": 32, "patch_size": 8, "hidden_act": "gelu"}


@pytest.mark.parametrize("kind", ["text", "image"])
def test_single_tower_equals_transformers(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
    torch.manual_seed(0)
    options = tower_config(kind) | {"projection_dim": DIMENSIONS}
    if kind == "text":
        model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**options)).eval()
    else:
        model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**options)).eval()
    model.save_pretrained(tmp_path / "theirs")
    clip = dalle.load_clip(tmp_path / "theirs")
    assert clip.config.missing == ("image" if kind == "text" else "text") and clip.config.embed_dim == DIMENSIONS
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        if kind == "text":
            found = model(input_ids=ids(), attention_mask=(ids() > 0).long())
            torch.testing.assert_close(clip.encode_text(ids(), normalize=False), found.text_embeds, rtol=0, atol=2e-5)
            states = clip.text_states(ids())
            torch.testing.assert_close(
                states.states[states.mask], found.last_hidden_state[states.mask], atol=2e-5, rtol=0
            )
        else:
            found = model(pixel_values=pixels)
            made = clip.encode_image(unnormalized(clip, pixels), normalize=False)
            torch.testing.assert_close(made, found.image_embeds, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=f"has no {clip.config.missing} tower, so it embeds"):
        _ = clip.encode_image(torch.rand(1, 3, 64, 64)) if kind == "text" else clip.encode_text(torch.ones(1, 3).long())
    assert main(["inspect", str(tmp_path / "theirs")]) == 0
    told = capsys.readouterr().out
    assert ("- captions: " in told, "- images: " in told) == (kind == "text", kind == "image")
    if kind == "image":
        command = ["convert", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--text-tokenizer", "x"]
        assert main(command) == 2
        assert "text_tokenizer is not for a CLIP without a text tower: leave it out" in capsys.readouterr().err
        assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
        again = dalle.load_clip(tmp_path / "ours")
        with torch.no_grad():
            torch.testing.assert_close(again.encode_image(unnormalized(clip, pixels), normalize=False), made)


def test_text_tower_without_a_projection_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**tower_config("text")))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name != "text_projection.weight"}, file)
    with pytest.raises(ValueError, match="has no projection .* use a CLIPTextModelWithProjection"):
        dalle.load_clip(tmp_path)


TEXTS = [
    "A red heart",
    "लाल दिल",
    "  two   spaces\tand a tab ",
    "Don't: 3.5 cats; naïve",
    "",
    "word " * 40,
    "日本語",
    "&lt;b",
]


def pieces() -> bytes:
    """A small SentencePiece model of the kind that XLM-R's is."""
    model = io.BytesIO()
    lines = [f"a {c} {t}, on paper!" for c in ("Red", "blue") for t in ("heart", "star", "lion", "गुलाबी", "दिल")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4),
        model_writer=model,
        vocab_size=80,
        model_type="unigram",
        normalization_rule_name="identity",
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
    )
    return model.getvalue()


def test_xlm_roberta_ids_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
    content = pieces()
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    vocab = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [(processor.id_to_piece(i), processor.get_score(i)) for i in range(3, processor.get_piece_size())]
    theirs = transformers.XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])
    ours = XLMRobertaTokenizer(XLMRobertaTokenizerConfig(), content)
    assert ours.vocab_size == len(theirs)
    texts = [text for text in TEXTS if "&" not in text]  # open_clip unescapes before
    expected = theirs(texts, max_length=16, padding="max_length", truncation=True)["input_ids"]
    assert ours.encode(texts, 16).tolist() == expected
    assert ours.encode_ragged(["&lt;b"]) == ours.encode_ragged(["<b"])
    assert ours.decode(ours.encode(["a Red heart"], 16)) == ["a Red heart"]
    with pytest.raises(ValueError, match="set bpe_dropout=0"):
        ours.encode(["a"], 16, dropout=0.1)
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        XLMRobertaTokenizer(XLMRobertaTokenizerConfig(), content[:-7])


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Tensor], Path]:
    """A text model of transformers, the weights around it, and a folder as open_clip writes it."""
    transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
    torch.manual_seed(0)
    folder, content = tmp_path_factory.mktemp("xlm"), pieces()
    vocab = XLMRobertaTokenizer(XLMRobertaTokenizerConfig(), content).vocab_size
    own = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    own |= {"vocab_size": vocab, "max_position_embeddings": 20, "type_vocab_size": 1, "pad_token_id": 1}
    config = transformers.XLMRobertaConfig(**own, layer_norm_eps=1e-5)
    model = transformers.XLMRobertaModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    hidden = (64 + DIMENSIONS) // 2
    around = {
        "text.proj.0.weight": torch.randn(hidden, 64) / 8,
        "text.proj.2.weight": torch.randn(DIMENSIONS, hidden) / 8,
    }

    visual = {name: value for name, value in state("open_clip").items() if name.startswith("visual.")}
    around |= visual | {"logit_scale": torch.tensor(2.0)}
    text = {f"text.transformer.{name}": value for name, value in model.state_dict().items()}
    save_file(around | text, folder / "open_clip_model.safetensors")
    names = {"hf_model_name": "xlm-roberta-base", "hf_tokenizer_name": "xlm-roberta-base"}
    towers = {"vision_cfg": {"width": 64, "head_width": 16, "layers": 2}}
    towers["text_cfg"] = names | {"hf_pooler_type": "mean_pooler", "context_length": 16}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": towers}))
    (folder / "sentencepiece.bpe.model").write_bytes(content)
    return model, around, folder


def test_xlm_roberta_text_tower_equals_transformers(
    multilingual: tuple[Any, dict[str, Tensor], Path], tmp_path: Path
) -> None:
    model, around, folder = multilingual
    clip = dalle.load_clip(folder)
    assert isinstance(clip.tokenizer, XLMRobertaTokenizer) and clip.config.text_length == 16
    text = clip.tokenizer.encode(TEXTS, 16)
    with torch.no_grad():
        there = (text != 1).long()
        states = model(input_ids=text, attention_mask=there).last_hidden_state
        mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        expected = F.gelu(mean @ around["text.proj.0.weight"].T) @ around["text.proj.2.weight"].T
        torch.testing.assert_close(clip.encode_text(TEXTS, normalize=False), expected, rtol=0, atol=2e-5)
        found = clip.text_states(text)
        assert torch.equal(found.mask, there.bool())
        torch.testing.assert_close(found.states[found.mask], states[found.mask], rtol=0, atol=2e-5)
        assert clip.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, DIMENSIONS)
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    again = dalle.load_clip(tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(again.encode_text(TEXTS), clip.encode_text(TEXTS))


def test_other_open_clip_text_towers_are_refused(multilingual: tuple[Any, dict[str, Tensor], Path]) -> None:
    _, _, folder = multilingual
    file = folder / "open_clip_config.json"
    before = file.read_text()
    try:
        for option, message in (
            ({"hf_model_name": "roberta-base"}, "says text_cfg.hf_model_name: 'roberta-base', which is not supported"),
            ({"hf_pooler_type": "cls_pooler"}, "pooled by cls_pooler and mlp, which is not supported"),
            ({"hf_proj_type": "linear"}, "pooled by mean_pooler and linear"),
        ):
            changed = json.loads(before)
            changed["model_cfg"]["text_cfg"] |= option
            file.write_text(json.dumps(changed))
            with pytest.raises(ValueError, match=message) as caught:
                dalle.load_clip(folder)
            assert "\n" not in str(caught.value)
        file.unlink()
        with pytest.raises(ValueError, match="its text tower is not named"):
            dalle.load_clip(folder, feed_forward="gelu")
    finally:
        file.write_text(before)


def test_weights_without_a_text_tokenizer_load_but_read_no_strings(
    multilingual: tuple[Any, dict[str, Tensor], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def unreachable(source: str) -> Path:
        tried.append(source)
        raise ValueError(f"{source}: no such file or folder, and it cannot be downloaded")

    monkeypatch.setattr("dalle.checkpoints.published.text_tokenizers.resolve", unreachable)
    torch.save(resnet_state(), tmp_path / "RN.pt")
    clip = dalle.load_clip(tmp_path / "RN.pt", feed_forward="quick_gelu")
    assert tried == ["openai/clip-vit-base-patch32/merges.txt"] and clip.tokenizer is None
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(ids()), EXPECTED["texts"], rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=r"RN.pt has no text tokenizer beside it, .* put merges.txt") as caught:
        clip.encode_text(["a"])
    assert "\n" not in str(caught.value) and len(tried) == 1
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        (tmp_path / name).write_bytes((multilingual[2] / name).read_bytes())
    with pytest.raises(ValueError, match=r"put sentencepiece.bpe.model of its repository there"):
        dalle.load_clip(tmp_path).encode_text(["a"])
    assert len(tried) == 1
