"""Makes models/CASE.safetensors with each project's own code: PYTHONPATH=tests python -m MODULE CASE SOURCE

MODULE is published.references.transformers, CASE a name in CASES, SOURCE the folder that holds the project's package: a
checkout of kakaobrain/minDALL-E, ai-forever/ru-dalle or FoundationVision/LlamaGen, or what `pip install --no-deps
--target SOURCE dalle-pytorch==VERSION` makes (beside it einops, rotary-embedding-torch 0.3.0,
axial-positional-embedding 0.2.1 and g-mlp-pytorch 0.1.5). Weights are drawn by name (`weight`); the file holds names
and shapes, what is no random
number, inputs, the logits of the image tokens, and the tokens that the project's sampling takes if it always takes the
likeliest.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support.published.references.weights import weight

FOLDER = Path(__file__).parent / "models"
ROWS, TEXT, WORDS, CODES = 4, 5, 11, 13
GAIN = 3.0  # of the weights: their logits then depend on what went before
DPT = {"dim": 32, "num_text_tokens": WORDS, "text_seq_len": TEXT, "depth": 3, "heads": 2, "dim_head": 16}
SPARSE = ["full", "axial_row", "axial_col", "conv_like"]
CASES: dict[str, dict[str, Any]] = {
    "mindalle": {},
    "rudalle-v2": {"hf_version": "v2"},
    "rudalle-v3": {"hf_version": "v3"},
    "llamagen-t2i": {"model_type": "t2i"},
    "llamagen-c2i": {"model_type": "c2i"},
    "dalle-pytorch-0.9.6": {**DPT, "depth": 4, "attn_types": SPARSE},
    "dalle-pytorch-0.14.3": {**DPT, "reversible": True, "stable": True},
    "dalle-pytorch-1.0.8": {**DPT, "shift_tokens": True, "rotary_emb": True},
    "dalle-pytorch-1.1.8": {**DPT, "depth": 4, "attn_types": SPARSE, "shift_tokens": False, "rotary_emb": True},
    "dalle-pytorch-1.4.2": {
        **DPT,
        "depth": 4,
        "shift_tokens": True,
        "rotary_emb": False,
        "share_input_output_emb": True,
        "attn_types": SPARSE,
        "shared_ff_ids": [0, 1, 0, 1],
    },
    "dalle-pytorch-1.6.6": {**DPT, "depth": 4, "attn_types": SPARSE, "shift_tokens": True, "rotary_emb": True},
    "dalle-pytorch-1.6.6-sandwich": {
        **DPT,
        "reversible": True,
        "sandwich_norm": True,
        "stable": True,
        "shift_tokens": True,
        "rotary_emb": True,
    },
}


def inputs() -> tuple[Tensor, Tensor]:
    """Texts [2, TEXT], the second with padding, and images [2, ROWS^2]."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(1, WORDS, (2, TEXT), generator=generator)
    text[1, 3:] = 0
    return text, torch.randint(0, CODES, (2, ROWS**2), generator=generator)


def pixels() -> Tensor:
    """Pictures [2, 3, 2 ROWS, 2 ROWS] in [0, 1]."""
    return torch.rand(2, 3, 2 * ROWS, 2 * ROWS, generator=torch.Generator().manual_seed(2))


def features() -> Tensor:
    """Features [2, TEXT, 24] of which the second row has two of padding in front."""
    made = torch.randn(2, TEXT, 24, generator=torch.Generator().manual_seed(1))
    made[1, :2] = 0
    return made


def package(name: str, path: Path | None = None) -> types.ModuleType:
    """A package whose __init__ is not run."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [] if path is None else [str(path)]  # type: ignore[attr-defined]
    return module


def draw(model: nn.Module) -> dict[str, Tensor]:
    """Set random weights by name; returns what else is in the state."""
    state = model.state_dict()
    fixed = {name: value for name, value in state.items() if name.endswith(("_mask", "pos_emb", "logits_mask"))}
    model.load_state_dict(
        {name: weight(drawn_as(name, state), list(state[name].shape), GAIN) for name in state} | fixed
    )
    model.eval()
    return fixed


def drawn_as(name: str, state: dict[str, Tensor]) -> str:
    """The first name of the tensor that stands under this one."""
    return next(other for other, value in state.items() if value.data_ptr() == state[name].data_ptr())


def mindalle(source: Path, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    package("omegaconf").OmegaConf = object  # type: ignore[attr-defined]
    package("stage2", source / "dalle" / "models" / "stage2")
    transformer = importlib.import_module("stage2.transformer")
    hparams = types.SimpleNamespace(
        embed_dim=32, n_layers=2, n_dense_layers=2, n_heads=2, ctx_len_img=ROWS**2, ctx_len_txt=TEXT, embd_pdrop=0.0,
        resid_pdrop=0.0, attn_pdrop=0.0, mlp_bias=True, attn_bias=True, gelu_use_approx=False,
    )  # fmt: skip
    model = transformer.Transformer1d(WORDS, CODES, hparams)
    fixed = draw(model)
    package("utils", source / "dalle" / "utils")
    sampling = importlib.import_module("utils.sampling")
    text, image = inputs()
    places = (sampling.get_positional_encoding(image), sampling.get_positional_encoding(text))
    logits = model(image, text, *places)[0]
    greedy = sampling.sampling(model, text, top_k=1, use_fp16=False, is_tqdm=False, max_seq_len=ROWS**2)
    return model, fixed | {"logits": logits, "greedy": greedy}


def rudalle(source: Path, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    package("rudalle"), package("rudalle.dalle", source / "rudalle" / "dalle")
    module = importlib.import_module("rudalle.dalle.model")
    model = module.DalleModel(
        "cpu", 8, WORDS + TEXT, 32, 2, 0.0, 0.0, 0.0, text_seq_length=TEXT, image_tokens_per_dim=ROWS,
        image_vocab_size=CODES, cogview_sandwich_layernorm=True, cogview_pb_relax=True, **options,
    )  # fmt: skip
    fixed = draw(model)
    text, image = inputs()
    length = TEXT + ROWS**2
    causal = torch.tril(torch.ones(2, 1, length, length))
    v2 = options["hf_version"] == "v2"
    logits = model(torch.cat((text, image), 1), causal)[0][:, TEXT - (not v2) :, model.vocab_size :]
    out, cache = text, None
    for _ in range(ROWS**2):
        last, cache = model(out, causal, use_cache=True, cache=cache)
        out = torch.cat((out, last[:, -1:, model.vocab_size :].argmax(-1)), 1)
    return model, fixed | {"logits": logits[:, : ROWS**2], "greedy": out[:, TEXT:]}


def llamagen(source: Path, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    sys.path.insert(0, str(source))
    gpt = importlib.import_module("autoregressive.models.gpt")
    generate = importlib.import_module("autoregressive.models.generate")
    c2i = options["model_type"] == "c2i"
    arguments = gpt.ModelArgs(
        dim=64, n_layer=2, n_head=2, multiple_of=8, num_classes=10, caption_dim=24, vocab_size=CODES,
        cls_token_num=1 if c2i else TEXT, block_size=ROWS**2, **options,
    )  # fmt: skip
    model = gpt.Transformer(arguments)
    if not c2i:  # its length is 120, whatever the arguments say
        model.cls_embedding.uncond_embedding = torch.zeros(TEXT, 24)
    fixed = draw(model)
    text = torch.tensor([3, 7]) if c2i else features()
    real = None if c2i else features().any(-1).float()
    taken: list[Tensor] = []
    original = generate.sample

    def sample(logits: Tensor, **kwargs: Any) -> Any:
        taken.append(logits[:, -1].clone())
        return original(logits, **kwargs)

    generate.sample = sample
    ids = generate.generate(model, text, ROWS**2, real, cfg_scale=1.0, top_k=1)
    logits = torch.stack(taken, 1)
    guided = generate.generate(model, text, ROWS**2, real, cfg_scale=3.0, top_k=1)
    return model, fixed | {"logits": logits, "greedy": ids.long(), "guided": guided.long()}


def dalle_pytorch(source: Path, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    package("dalle_pytorch", source / "dalle_pytorch")
    vae = package("dalle_pytorch.vae")
    for name in ("OpenAIDiscreteVAE", "VQGanVAE", "VQGanVAE1024"):
        setattr(vae, name, type(name, (nn.Module,), {}))
    package("dalle_pytorch.distributed_utils").is_distributed = False  # type: ignore[attr-defined]
    sys.modules["dalle_pytorch"].distributed_utils = sys.modules["dalle_pytorch.distributed_utils"]  # type: ignore[attr-defined]
    sys.modules["dalle_pytorch"].tokenizer = package("dalle_pytorch.tokenizer")  # type: ignore[attr-defined]
    module = importlib.import_module("dalle_pytorch.dalle_pytorch")
    tokenizer = module.DiscreteVAE(
        image_size=ROWS * 2, num_tokens=CODES, codebook_dim=8, num_layers=1, hidden_dim=8, num_resnet_blocks=1
    )
    model = module.DALLE(vae=tokenizer, **options)
    fixed = draw(model)
    text, image = inputs()
    words = model.num_text_tokens

    def image_logits(ids: Tensor) -> Tensor:
        found: Tensor = model(text.clone(), ids)[:, TEXT:, words:]
        return found

    ids = image[:, :0]
    for _ in range(ROWS**2):
        ids = torch.cat((ids, image_logits(ids)[:, -1:].argmax(-1)), 1)
    seen = {"codes": tokenizer.get_codebook_indices(pixels()), "pictures": tokenizer.decode(image)}
    return model, fixed | {"logits": image_logits(image), "greedy": ids} | seen


def main(case: str, source: Path) -> None:
    family = case.partition("-")[0] if not case.startswith("dalle-pytorch") else "dalle_pytorch"
    with torch.no_grad():
        model, tensors = globals()[family](source, CASES[case])
    state = model.state_dict()
    shapes = {name: (drawn_as(name, state), list(state[name].shape)) for name in state if name not in tensors}
    metadata = {"shapes": json.dumps(shapes), "options": json.dumps(CASES[case])}
    FOLDER.mkdir(exist_ok=True)
    whole = {name: value.contiguous().clone() for name, value in tensors.items()}
    save_file(whole, FOLDER / f"{case}.safetensors", metadata)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
