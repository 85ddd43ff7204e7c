"""Names of Emu3's image tokenizer as its project publishes it."""

from __future__ import annotations

import re

from torch import Tensor


def project_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the layout of BAAI/Emu3-VisionTokenizer, where attention projects by kernels of one pixel."""
    names = (
        (r"encoder\.down_block\.down\.", "encoder.down."),
        (r"decoder\.up_block\.up\.", "decoder.up."),
        (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
        (r"\.middle_block\.", ".mid."),
        (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
        (r"\.([qkv])_proj\.", r".\1."),
        (r"\.out_proj\.", ".proj_out."),
    )
    found = {}
    for name, value in state.items():
        if re.search(r"_proj\.weight", name):
            value = value[..., None, None]
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = value.contiguous()
    return found
