"""Makes published.json with the projects' own text tokenizers.

python tests/text_tokenizers/references/published.py CLIP YTTM, of which CLIP is a checkout of github.com/openai/CLIP,
and YTTM a program made of YouTokenToMe's own youtokentome/cpp: `YTTM train TEXT MODEL VOCAB` trains (padding, unknown,
begin, end are 0 to 3), `YTTM encode MODEL` reads texts, each as the hexadecimal digits of its UTF-8 on a line, and
prints their ids. Needs ftfy, regex and tokenizers. It holds small vocabularies, learned from the names of emoji and a
little Russian, texts, and the ids that each project's code gives them.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

RUSSIAN = "лиса в лесу рисунок кошки на красном фоне собака и дом большое синее море белый снег зимой красная роза"
TEXTS = [
    "",
    " ",
    "\t\n ",
    "a red heart, 3d style",
    "A Red HEART!!!",
    "the cat's whiskers; they're long, I'd say we'll see",
    "'S 'T it'ſ ''re",
    "1234 5 67a8 ³ ½ Ⅳ",
    "hello&amp;world &lt;b&gt; &amp;amp; &eacute; &#39; &#x1F600; &nbsp;",
    "лиса в лесу",
    "ЛИСА В ЛЕСУ, ёж и Ёлка",
    "लाल मुटु",
    "नीलो आकाशमा सेतो बादल।",
    "एक लाल दिल ❤️",
    "बिरालो र कुकुर १२३",
    "❤️ 👨‍👩‍👧‍👦 🇳🇵 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "猫と犬 고양이 中文字符",
    "naïve café Ångström ﬁne ﬂow Ｆｕｌｌ ｗｉｄｔｈ",
    "“quoted” ‘single’ — dash – … ellipsis",
    "ΟΔΥΣΣΕΥΣ Σ σς İstanbul ıi ẞß",
    "a\u0000b\u0007c\u200bd\u200de\ufeff\u00adf",
    "x\u2028y\u2029z\u0085w\u00a0v\u3000u",
    "<|startoftext|> hi <|endoftext|> there <|ENDOFTEXT|>",
    "[PAD] a [UNK] b [pad] [PAD][PAD]",
    "▁under▁score ▁",
    "a_b-c.d/e\\f@g#h$i%j^k*l",
    "don't DON'T Don’t",
    "mojibake: schÃ¶n cafÃ© â€œhiâ€\x9d",
    "ab" * 100,
    "a red heart " * 40,
    "\U0001f600\U0001f601 \U00020000 \ue000 \ufffd \ufffe",
    "क्षत्रिय ज्ञान श्रीमान",
    "שלום עולם مرحبا بالعالم",
    "e\u0301 n\u0303 \u0915\u093c",
    "&",
    "a&b",
    "&#28;x",
    "tab\there\r\nnew",
    "~`|{}[]()<>",
]
POOL = "aAbeZ09 .,'\"-&;#<>▁ſΣσİ\t\n\u00a0\u200d\ufe0fлЛёкकिा१❤😀中の한é́½\u2028\u00ad\u1c80ǅ"


def corpus() -> list[str]:
    """Names of emoji in English, Hindi and Nepali, and some Russian."""
    import pyarrow.parquet as parquet

    root = Path(__file__).parents[3] / "data" / "emoji"
    table = parquet.read_table(next(iter(sorted(root.rglob("*.parquet")))))
    columns = [
        c
        for c in table.column_names
        if c.startswith(("name", "caption")) and "string" in str(table.schema.field(c).type)
    ]
    names = [value for column in columns for value in table[column].to_pylist()[:700] if value]
    return [*dict.fromkeys(names), *[RUSSIAN] * 5]


def texts() -> list[str]:
    chance = random.Random(0)
    drawn = ["".join(chance.choice(POOL) for _ in range(chance.randint(1, 24))) for _ in range(150)]
    for _ in range(150):
        points = (chance.choice((chance.randint(32, 0x2FFF), chance.randint(0x10000, 0x1FFFF))) for _ in range(8))
        drawn.append("".join(chr(p) for p in points if unicodedata.category(chr(p)) not in ("Cs", "Cn")))
    return TEXTS + drawn


def clip(source: Path, lines: list[str], count: int) -> dict[str, object]:
    spec = importlib.util.spec_from_file_location("simple_tokenizer", source / "clip" / "simple_tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bpe.txt.gz"
        merges = learn(module, lines, count)
        file.write_bytes(gzip.compress(("\n".join(["#version: 0.2", *merges])).encode()))
        tokenizer = module.SimpleTokenizer(str(file))
        return {"merges": merges, "ids": [tokenizer.encode(text) for text in texts()]}


def learn(module: object, lines: list[str], count: int) -> list[str]:
    """The most frequent pairs of neighbors, one after the other, as byte-pair encoding is trained."""
    table = module.bytes_to_unicode()  # type: ignore[attr-defined]
    words = Counter(word for line in lines for word in line.lower().split())
    split = {word: [*(table[b] for b in word.encode()[:-1]), table[word.encode()[-1]] + "</w>"] for word in words}
    merges: list[str] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, number in words.items():
            for pair in zip(split[word], split[word][1:]):
                pairs[pair] += number
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(" ".join(best))
        for word, symbols in split.items():
            merged: list[str] = []
            for symbol in symbols:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            split[word] = merged
    return merges


def char(lines: list[str], count: int) -> dict[str, object]:
    from tokenizers import CharBPETokenizer

    trained = CharBPETokenizer(unk_token="[UNK]", lowercase=True)
    trained.train_from_iterator(lines, vocab_size=count, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = trained.save_model(folder)
        # as dalle/models/tokenizer.py of kakaobrain/minDALL-E builds it
        tokenizer = CharBPETokenizer.from_file(
            vocab_filename=vocab, merges_filename=merges, unk_token="[UNK]", lowercase=True
        )
        tokenizer.add_special_tokens(["[PAD]"])
        contents = {"vocab": json.loads(Path(vocab).read_text()), "merges": Path(merges).read_text()}
    return contents | {"pad": tokenizer.token_to_id("[PAD]"), "ids": [tokenizer.encode(text).ids for text in texts()]}


def yttm(program: str, lines: list[str], count: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_text("\n".join(line.lower() for line in lines))
        subprocess.run([program, "train", f"{folder}/text", f"{folder}/model", str(count)], check=True, stdout=-3)
        fed = "\n".join(text.encode().hex() for text in texts()) + "\n"
        answer = subprocess.run(
            [program, "encode", f"{folder}/model"], input=fed, capture_output=True, text=True, check=True
        )
        model = (Path(folder) / "model").read_text()
    return {"model": model, "ids": [[int(i) for i in line.split()] for line in answer.stdout.split("\n")[:-1]]}


def main(clip_source: str, yttm_program: str) -> None:
    lines = corpus()
    made = {
        "texts": texts(),
        "clip": clip(Path(clip_source), lines, 300),
        "char": char(lines, 500),
        "yttm": yttm(yttm_program, lines, 400),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(made, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
