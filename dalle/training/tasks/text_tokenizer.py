"""Stage text_tokenizer: learns a BPE in one pass over the captions, without the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tqdm import tqdm

from dalle.checkpoints import model_folder
from dalle.checkpoints.target import check_no_model
from dalle.config import to_dict
from dalle.data import open_training
from dalle.files import atomic_folder, check_folder
from dalle.text_tokenizers import SentencePieceTokenizer
from dalle.training.recipe import TextTokenizerRecipe

_SHOWN = 200  # characters of the caption whose pieces are printed


def train_text_tokenizer(recipe: TextTokenizerRecipe) -> None:
    """Learn a BPE from the training captions and write it to `recipe.dir`/model.

    Raises:
        ValueError: the folder exists already, or `recipe.dir` is that of a model.
    """
    target = recipe.dir / "model"
    if target.exists():
        raise ValueError(f"{target} exists already: choose another dir=FOLDER")
    check_no_model(recipe.dir, "dir=FOLDER")
    check_folder(recipe.dir, "dir=FOLDER")
    captions = islice(_captions(recipe), recipe.max_captions)
    tokenizer = SentencePieceTokenizer.train(recipe.model, tqdm(captions, unit=" captions", disable=None))
    target.parent.mkdir(parents=True, exist_ok=True)
    config = {"stage": recipe.stage, "model": to_dict(tokenizer.config)}
    with atomic_folder(target) as folder:
        tokenizer.save(folder)
        model_folder.write_config(folder, config)
    print(f"{tokenizer.vocab_size} pieces: {target}")
    print(f"for example: {_cut(tokenizer, next(_captions(recipe)))}")


def _cut(tokenizer: SentencePieceTokenizer, caption: str) -> str:
    """How a caption is cut, its pieces between bars."""
    (row,) = tokenizer.encode_ragged([caption[:_SHOWN]])
    # The end token has no characters
    return "|".join(tokenizer.decode([[piece]])[0] if piece not in tokenizer.end else "" for piece in row)


def _captions(recipe: TextTokenizerRecipe) -> Iterator[str]:
    """All variants of the captions of the training split."""
    # No image is read for its captions, so any size that all data sets accept will do
    return open_training(recipe.data, image_size=16).captions()
