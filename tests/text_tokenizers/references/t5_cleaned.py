"""Makes t5_cleaned.json with LlamaGen's own code: python tests/text_tokenizers/references/t5_cleaned.py LLAMAGEN

LLAMAGEN is a checkout of github.com/FoundationVision/LlamaGen (commit ce98ec4); needs transformers, ftfy and
beautifulsoup4. The file holds captions, and what `T5Embedder.text_preprocessing` of language/t5.py makes of them.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

PIECES = [
    *(
        "a",
        "fox",
        "Red",
        "http://www.example.com/a_b",
        "www:foo.com",
        "foo.png",
        "image.jpeg images",
        "#123",
        "#123456",
    ),
    *("1234567", "192.168.1.1", "12:34 ", "@nick", "<person>", "<b>bold</b>", "&amp;", "&quot;hi&quot;", "“q”", "—"),
    *("- - - -", "a_b_c_d_e", "...", "!!", "(x)", "[y]", "{z}", "|", "\\n", "free shipping", "worldwide free shipping"),
    *("download free", "click for more", "page 12", "jc6640", "jc6640vc", "6640vc231", "j2d1a2a", "3x4", "3.5х4×5"),
    *("a : b", "end.", "中文", "日本", "ελ", "%20", "+", "'quoted'", '"q"', "-start", "end-", "..dots", ".hid", "x,y"),
    *("a/b", "ñandú", "schÃ¶n", "😀", "\u00a0", "\n", "\t", ";", "png", "mp4 image", "½", "§§", "¿?", "http://", "co"),
    *("it.gov/x", "foo@bar.com", "🇳🇵 लाल"),
]
PROMPTS = [
    *("", "  ", "A portrait photo of a kangaroo wearing an orange hoodie and blue sunglasses", "लाल मुटु", "лиса в лесу"),
]


def main(source: str) -> None:
    spec = importlib.util.spec_from_file_location("t5", Path(source) / "language" / "t5.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    embedder = module.T5Embedder.__new__(module.T5Embedder)
    embedder.use_text_preprocessing = True
    chance = random.Random(1)
    texts = [
        chance.choice([" ", "", " "]).join(chance.choice(PIECES) for _ in range(chance.randint(1, 6)))
        for _ in range(120)
    ]
    made = [[text, embedder.text_preprocessing(text)] for text in texts + PROMPTS]
    Path(__file__).with_suffix(".json").write_text(json.dumps(made, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
