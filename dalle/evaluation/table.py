"""Measures of several splits, or rows of drawings, as a table, each with its meaning."""

from __future__ import annotations

from collections.abc import Mapping

_MEANING = {
    "images": "that were looked at",
    "psnr": "dB, mean over the images",
    "ssim": "1 is equal",
    "frechet_lite0": "Frechet distance to the images in features of EfficientNet-Lite0",
    "codebook_used": "share of the codes that occur",
    "codebook_perplexity": "codes, if all were as frequent",
    "dead_codes": "codes that never occur",
    "white_codes": "distinct codes of a white image",
    "blank_share": "share of the cells that are purely white",
    "blank_nats": "nats of the codes of white cells, given the place",
    "kept_cell_shift": "share of codes kept where the image moves by a cell",
    "kept_pixel_shift": "... by a pixel",
    "kept_noise": "... with uniform noise of 2/255",
    "kept_reencoded": "... of the reconstruction",
    "image_nats": "nats per image token, with the image's own caption",
    "image_nats_none": "... without a caption",
    "image_nats_other": "... with another image's caption",
    "own_minus_none": "what the caption tells: below 0, or it does not read",
    "own_minus_other": "",
    "best_temperature": "of the logits: above 1, the model is too sure",
    "image_nats_calibrated": "nats per image token at that temperature",
    "text_nats": "nats per text token",
    "image_accuracy": "share of the image tokens that are the model's likeliest",
    "likeliest_used": "share of the codes that are the likeliest somewhere",
    "concept_top1": "share whose concept the judge ranks first of all",
    "concept_top5": "... among the first five",
    "style": "share whose style the judge ranks first of all",
    "caption_top1": "share whose caption the judge ranks first of 400",
    "caption_top10": "... among the first ten",
    "caption_median_rank": "of its own caption among 400",
    "clip_score": "100 times the mean cosine with the prompt, by the CLIP that was given",
    "near_copies": "share that are near-copies of a training image",
    "neighbor_rmse": "of 255: pixels off the nearest training image, median",
    "diversity": "mean cosine distance of a prompt's candidates",
    "background": "share whose border has the color that was asked for",
    "icon_color": "share of one-color icons in the color that was asked for",
    "relation": "share of which each half fits its own thing better; chance is 0.25",
}
_WIDTH = 15


def table(found: Mapping[str, Mapping[str, float | None]]) -> str:
    """One line for each measure, one column for each split or kind of image; "-" where there was nothing to measure."""
    names = list(dict.fromkeys(name for metrics in found.values() for name in metrics))
    lines = [" " * 24 + "".join(f"{split:>{_WIDTH}}" for split in found)]
    for name in names:
        cells = "".join(f"{_number(metrics.get(name)):>{_WIDTH}}" for metrics in found.values())
        lines.append(f"  {name:<22}{cells}  {_meaning(name)}".rstrip())
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:d}" if isinstance(value, int) else f"{value:.4f}"


def _meaning(name: str) -> str:
    if "@" not in name:
        return _MEANING.get(name, "")
    one, other = ("captions", "image") if name.startswith("text_to_image") else ("images", "caption")
    return f"share of {one} whose {other} is among the {name.partition('@')[2]} best"
