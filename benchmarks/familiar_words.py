"""How well nats tell familiar words from others: python benchmarks/familiar_words.py [--model FOLDER] [--captions N]

Words of captions that occur in captions of the training split are familiar; those of held-out captions that occur in
none are not. Prints the share of both that `dalle sample` would warn about, for several thresholds and each language.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("familiar_words.py")

from dalle.checkpoints.hub import SHIPPED
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.data.drawings import captions
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.dataset import DrawingsDataset
from dalle.pipelines.familiarity import THRESHOLD, stripped, word_nats
from dalle.pipelines.text_to_image import TextToImage
from dalle.text_tokenizers import SentencePieceTokenizer

LANGUAGES = ("en", "hi", "ne")


def words(caption: str) -> set[str]:
    """The words of a caption, as `word_nats` names them."""
    return {stripped(word) for word in caption.split()} - {""}


def training_words(data: DrawingsDataset) -> set[str]:
    """Every word of the captions that training can compose."""
    found = {word for caption in data.captions() for word in words(caption)}
    for concept in data.concepts:
        for language, name in concept.names.items():
            found |= words(name) | {word for keyword in concept.keywords.get(language, ()) for word in words(keyword)}
    return found


def sample_captions(data: DrawingsDataset, count: int, seed: int) -> dict[str, list[str]]:
    """Random captions of some drawings in each language, as training makes them."""
    rng = random.Random(seed)
    found: dict[str, list[str]] = {}
    for language in LANGUAGES:
        named = [i for i, concept in enumerate(data.concepts) if language in concept.names]
        chosen = rng.sample(named, min(count, len(named)))
        found[language] = [
            captions.single_caption(rng, language, data.concepts[i], data.drawings[i].style_words, 0.08) for i in chosen
        ]
    return found


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--sets", nargs="+", default=["emoji"])
    parser.add_argument("--captions", type=int, default=300, help="of each language and split")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[12, 14, 16, 18, 20, 25])
    args = parser.parse_args()
    pipe = TextToImage.from_pretrained(args.model, device="cpu")
    assert isinstance(pipe.text_tokenizer, SentencePieceTokenizer)
    config = DrawingsConfig(sets=tuple(args.sets))
    train = training_words(DrawingsDataset(config, "train", 8))
    nats: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for split in ("known", "validation", "held_out"):
        data = DrawingsDataset(config, split, 8)
        for language, own in sample_captions(data, args.captions, 0).items():
            for caption in dict.fromkeys(own):
                for word, value in word_nats(pipe.model, pipe.text_tokenizer, [caption])[0]:
                    kind = split if word in train else "in no training caption"
                    nats.setdefault((kind, language), []).append((value, word))
    print("threshold " + "  ".join(f"{limit:g}" for limit in args.thresholds) + f" (default {THRESHOLD:g})")
    for (kind, language), own in sorted(nats.items()):
        shares = [sum(value > limit for value, _ in own) / len(own) for limit in args.thresholds]
        print(f"{kind}, {language}, {len(own)} words: " + "  ".join(f"{share:.1%}" for share in shares))
        print("  most nats: " + ", ".join(f"{word} {value:.1f}" for value, word in sorted(own, reverse=True)[:8]))


if __name__ == "__main__":
    sys.exit(run_tool(main))
