"""What shards of tokens were made of, for tests of what is in them."""

from __future__ import annotations

from dalle.data.token_shards.provenance import TokenProvenance


def token_provenance(codebook_size: int, shard_images: int) -> TokenProvenance:
    """Of images of 1x2 codes by some image tokenizer, one view of each."""
    return TokenProvenance(
        image_tokenizer="x",
        codebook_size=codebook_size,
        grid=(1, 2),
        data={},
        records="",
        seed=0,
        views=1,
        mirror=False,
        shard_images=shard_images,
    )
