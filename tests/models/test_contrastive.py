"""The sigmoid loss: against a slow double loop, in blocks, over processes that never hold all texts; its recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import dalle
import train
from dalle.checkpoints.tensors import open_tensors
from dalle.models.clip import CLIP, CLIPConfig
from dalle.models.contrastive import contrastive_loss, sigmoid_loss
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig
from dalle.training.recipe import parse_recipe
from support.tiny_configs import clip_config
from support.tiny_model import CLIP_MODEL

TINY = clip_config(patch_size=4, text_vocab=50, text_length=6, embed_dim=16, sigmoid=True)


def embeddings(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    images, texts = (nn.functional.normalize(torch.randn(count, 8, generator=random), dim=-1) for _ in range(2))
    return images, texts


def slow_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Algorithm 1 of the SigLIP paper, one pair at a time."""
    total = torch.zeros((), dtype=images.dtype)
    for i in range(len(images)):
        for j in range(len(texts)):
            label = 1 if i == j else -1
            total = total - torch.log(1 / (1 + torch.exp(-label * (scale * images[i] @ texts[j] + bias))))
    return total / len(images)


def leaves(count: int, dtype: torch.dtype) -> list[Tensor]:
    images, texts = embeddings(count)
    return [t.to(dtype).requires_grad_() for t in (images, texts, torch.tensor(12.0), torch.tensor(-7.0))]


@pytest.mark.parametrize("rows", [None, 1, 3, 7, 20])
def test_sigmoid_loss_and_gradients_equal_a_slow_loop(rows: int | None) -> None:
    exact, fast = leaves(7, torch.float64), leaves(7, torch.float32)
    wanted, found = slow_loss(*exact), sigmoid_loss(*fast, rows=rows)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    (3 * wanted).backward()
    (3 * found).backward()
    for one, other in zip(fast, exact, strict=True):
        assert one.grad is not None and other.grad is not None
        assert one.grad.sub(other.grad).abs().max() < 1e-5 * max(1, other.grad.abs().max())


def test_equal_captions_of_a_batch_are_negatives_of_each_others_images() -> None:
    """The stated rule, as in both papers; of captions all the same the softmax learns nothing, its loss is log B."""
    images, texts = embeddings(6)
    texts[4] = texts[1]
    scale, bias = torch.tensor(12.0), torch.tensor(-7.0)
    torch.testing.assert_close(sigmoid_loss(images, texts, scale, bias), slow_loss(images, texts, scale, bias))
    logits = scale * images @ texts.T
    own = [-logits[i, i] + logits[i].logsumexp(0) for i in range(6)]
    own += [-logits[i, i] + logits[:, i].logsumexp(0) for i in range(6)]
    torch.testing.assert_close(contrastive_loss(images, texts, scale), torch.stack(own).mean())
    assert own[1] > math.log(2)  # image 1 cannot tell its caption from the fifth
    same = texts[:1].expand(6, -1)
    assert contrastive_loss(images[:1].expand(6, -1), same, scale).item() == pytest.approx(math.log(6), abs=1e-5)
    assert contrastive_loss(images, same, scale) >= math.log(6) - 1e-5
    trained = images.clone().requires_grad_()
    loss = F.cross_entropy(scale * trained @ same.T, torch.arange(6))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(6)) and trained.grad is not None
    assert trained.grad.abs().max() < 1e-6


def test_initial_scale_and_bias_are_the_papers() -> None:
    """At a bias of -10 each pair is a stranger: nearly all of the loss is that of the right ones."""
    torch.manual_seed(0)
    clip = CLIP(TINY)
    assert clip.logit_bias is not None
    assert clip.scale.item() == pytest.approx(10) and clip.logit_bias.item() == -10
    images, texts = embeddings(32)
    loss = sigmoid_loss(images, texts, clip.scale, clip.logit_bias)
    assert loss.item() == pytest.approx(10 - 10 * (images * texts).sum(1).mean().item(), rel=0.1)
    other = CLIP(CLIPConfig(sigmoid=True, initial_bias=math.log(1 / 32), initial_scale=20))
    assert other.logit_bias is not None
    assert other.logit_bias.item() == pytest.approx(-math.log(32)) and other.scale.item() == pytest.approx(20)


def test_scale_has_no_limit_and_scores_are_probabilities() -> None:
    torch.manual_seed(0)
    clip = CLIP(TINY)
    assert clip.logit_bias is not None
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(150))
        clip.logit_bias.fill_(-15)
    assert clip.scale.item() == pytest.approx(150)
    found = clip.probabilities(torch.tensor([[0.1, 0.0], [0.2, -1.0]]))
    assert found.tolist()[0] == pytest.approx([0.5, 1 / (1 + math.exp(15))], rel=1e-4)
    assert found[1, 0].item() == pytest.approx(1 / (1 + math.exp(-15)), rel=1e-4) and found[1, 1].item() < 1e-20
    with pytest.raises(ValueError, match="trained with a softmax"):
        CLIP(CLIPConfig()).probabilities(torch.zeros(1))


def test_loss_is_exact_under_autocast() -> None:
    tensors = leaves(6, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sigmoid_loss(*tensors)
    assert loss.item() == pytest.approx(slow_loss(*leaves(6, torch.float64)).item(), rel=1e-6)


def _worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    images, texts = embeddings(6)
    mine = slice(rank * 6 // world, (rank + 1) * 6 // world)
    own = [t.clone().requires_grad_() for t in (images[mine], texts[mine], torch.tensor(12.0), torch.tensor(-7.0))]
    loss = sigmoid_loss(*own, rows=2)
    loss.backward()
    # DDP's mean over processes; embeddings are each process's own
    shared = [torch.tensor([loss.item(), float(own[2].grad), float(own[3].grad)])]  # type: ignore[arg-type]
    dist.all_reduce(shared[0])
    gradients = [t.grad / world for t in own[:2] if t.grad is not None]
    torch.save([shared[0] / world, *gradients], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_have_the_loss_and_gradients_of_one(world: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(world, str(tmp_path)), nprocs=world)
    exact = leaves(6, torch.float64)
    loss = slow_loss(*exact)
    loss.backward()
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    wanted = [loss.item(), *(float(t.grad) for t in exact[2:] if t.grad is not None)]
    for scalars, _, _ in results:
        assert scalars.tolist() == pytest.approx(wanted, rel=1e-5)
    for place in (0, 1):
        whole = torch.cat([result[1 + place] for result in results])
        assert exact[place].grad is not None
        torch.testing.assert_close(whole.double(), exact[place].grad, rtol=1e-4, atol=1e-6)


DATA = {
    "stage": "clip",
    "model": CLIP_MODEL | {"image_size": 16, "patch_size": 8, "embed_dim": 16},
    "data": {"kind": "shapes"},
    "optim": {"lr": 1e-3, "warmup": 2, "ema": None},
    "run": {"dir": "run", "steps": 2, "batch_size": 8, "device": "cpu", "tracker": "none", "log_every": 1},
    "text_tokenizer": "words",
    "loss": "sigmoid",
}


@pytest.mark.parametrize("towers", ["clip", "siglip"])
def test_recipe_trains_a_model_that_loads(towers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    captions = ["a red circle", "a blue square on white", "two green stars"] * 4
    SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=300), captions).save(tmp_path / "words")
    Path("clip.yaml").write_text(json.dumps(DATA))
    options = [f"model.towers={towers}", "run.accumulation=2", "run.precision=fp32"]
    assert train.main(["clip.yaml", *options]) == 0
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {"train/clip_loss", "train/scale", "train/bias"} <= set(logged[0])
    clip = dalle.load_clip("run/model")
    assert clip.config.sigmoid and clip.config.towers == towers
    assert open_tensors(Path("run/model/model.safetensors"))["logit_bias"].shape == ()
    cosines = clip.encode_image(torch.rand(2, 3, 16, 16)) @ clip.encode_text(captions[:3]).T
    assert clip.probabilities(cosines).shape == (2, 3)
    assert clip.features(torch.rand(1, 3, 16, 16))[0].shape == (1, 16, 2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "softmax", "model": {"sigmoid": True}}, "only the sigmoid loss trains the bias"),
        ({"loss": "sigmoid", "model": {"sigmoid": False}}, "leave out model.sigmoid, which loss sets"),
        ({"loss": "softmax", "model": {"initial_bias": -3}}, "initial_bias is -3.0, but only the sigmoid has a bias"),
        ({"model": {"initial_scale": 0}}, "initial_scale is 0.0; it must be above 0"),
        ({"model": {"towers": "siglip", "embed_dim": 8}}, "must be the image tower's width, 16"),
        ({"loss": "hinge"}, "loss"),
        ({"run": {"dir": "run", "steps": 2, "batch_size": 1}}, "run.batch_size is 1: pairs are contrasted with others"),
    ],
)
def test_options_that_exclude_each_other_give_a_one_line_error(options: dict[str, object], message: str) -> None:
    model = DATA["model"] | options.pop("model", {})  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as caught:
        parse_recipe(DATA | options | {"model": model}, "a recipe")
    assert str(caught.value).count("\n") == 0
