"""A small recipe of each stage on synthetic shapes: eight steps with every source of randomness on."""

from __future__ import annotations

from typing import Any


def _recipe(stage: str, model: dict[str, Any], **more: Any) -> dict[str, Any]:
    run = {"steps": 8, "batch_size": 8, "device": "cpu", "precision": "fp32", "tracker": "none", "log_every": 1}
    optim = {"lr": 1e-3, "warmup": 2, "ema": 0.9}
    return {"stage": stage, "model": model, "data": {"kind": "shapes"}, "optim": optim, "run": run, **more}


_TOWER = {"width": 32, "depth": 1, "heads": 2}
_OF_CLIP = {"embed_dim": 16, "text_width": 32, "text_length": 16}
_SCHEDULE = {"kind": "cosine", "steps": 50}
_UNET = {"channels": 8, "channel_multipliers": [1, 2]}
_PRIOR = {"transformer": _TOWER | {"dropout": 0.1}, **_OF_CLIP}
_BOTH_PRIORS = {"statistics_images": 64, "bpe_dropout": 0.1}
_VQGAN = {
    "kind": "vqgan",
    "image_size": 32,
    "channels": 16,
    "channel_multipliers": [1, 2],
    "blocks": 1,
    "attention_resolutions": [],
    "latent_channels": 16,
    "quantizer": {"kind": "vq", "codebook_size": 32, "code_channels": 4, "update": "ema"},
}
RECIPES: dict[str, dict[str, Any]] = {  # what a stage stands on (tokenizers, a CLIP) is added by the test
    "vqgan": _recipe("image_tokenizer", _VQGAN, adversarial={"start": 2, "channels": 8, "layers": 2}),
    "dvae": _recipe(
        "image_tokenizer",
        {"kind": "dvae", "image_size": 32, "codebook_size": 32, "groups": 3, "blocks_per_group": 1, "hidden": 16},
        temperature={"first": 1.0, "last": 0.5, "steps": 6},
        kl_weight={"first": 0.0, "last": 1.0, "steps": 4},
        adversarial=None,
    ),
    "clip": _recipe(
        "clip",
        {
            "image_size": 32,
            "patch_size": 8,
            "vision": _TOWER,
            "text": _TOWER,
            "text_vocab": 300,
            "text_length": 16,
            "embed_dim": 16,
        },
        bpe_dropout=0.1,
        augment=0.5,
    ),
    "dalle": _recipe(
        "dalle",
        {
            "transformer": {"width": 32, "depth": 2, "heads": 2, "dropout": 0.1, "attention_dropout": 0.1},
            "text_vocab": 300,
            "text_length": 16,
            "image_vocab": 32,
            "grid": [16, 16],
            "attention": ["row", "column"],
        },
        label_smoothing=0.1,
        code_noise=0.1,
        prompts=["a red circle"],
    ),
    "grpo": _recipe(
        "dalle",
        {
            "transformer": {"width": 32, "depth": 1, "heads": 2},
            "text_vocab": 300,
            "text_length": 16,
            "image_vocab": 32,
            "grid": [16, 16],
        },
        grpo={"candidates": 3, "text": 0, "image": 0},
    ),
    "prior": _recipe(
        "prior",
        {"kind": "diffusion", "schedule": _SCHEDULE, **_PRIOR},
        sampling={"samples": 1, "sampler": {"steps": 3}},
        **_BOTH_PRIORS,
    ),
    "prior_ar": _recipe(
        "prior",
        {"kind": "autoregressive", "variance": 0.9, "buckets": 8, "dot_buckets": 4, **_PRIOR},
        sampling={},
        **_BOTH_PRIORS,
    ),
    "decoder": _recipe(
        "diffusion",
        {
            "kind": "decoder",
            "image_size": 8,
            "unet": _UNET | {"attention_levels": [1], "head_channels": 8},
            "context_width": 16,
            "learned_variance": True,
            "schedule": _SCHEDULE,
            **_OF_CLIP,
        },
        sampling={"guidance": 2.0, "sampler": {"steps": 3}},
        **_BOTH_PRIORS,
    ),
    "upsampler": _recipe(
        "diffusion",
        {"kind": "upsampler", "image_size": 16, "low_size": 8, "unet": _UNET | {"attention_levels": []}},
        crop=0.5,
        sampling={"sampler": {"steps": 3}},
    ),
}
