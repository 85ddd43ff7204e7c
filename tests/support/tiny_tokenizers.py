"""Image tokenizers of every kind, 16x16 pixels and 24 codes, for tests of what is the same in all of them."""

from __future__ import annotations

from dalle.image_tokenizers import DiscreteVAEConfig, DVAEConfig, FSQConfig, GumbelConfig, VQConfig, VQGANConfig

SMALL = {
    "image_size": 16,
    "channels": 8,
    "channel_multipliers": [1, 2],
    "latent_channels": 12,
    "attention_resolutions": [],
}
TOKENIZERS = {
    "vq": VQGANConfig(**SMALL, quantizer=VQConfig(codebook_size=24, code_channels=4)),
    "vq euclidean": VQGANConfig(**SMALL, quantizer=VQConfig(codebook_size=24, code_channels=4, distance="euclidean")),
    "gumbel": VQGANConfig(**SMALL, quantizer=GumbelConfig(codebook_size=24, code_channels=4)),
    "fsq": VQGANConfig(**SMALL, quantizer=FSQConfig(levels=[4, 3, 2])),
    "dvae": DVAEConfig(image_size=16, codebook_size=24, groups=2, blocks_per_group=1, hidden=8, code_channels=6),
    "discrete_vae": DiscreteVAEConfig(image_size=16, codebook_size=24, code_channels=6, layers=1, hidden=8),
}
