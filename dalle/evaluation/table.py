"""Formats metrics of several splits, or of several sets of images, as a table with explanations."""

from __future__ import annotations

from collections.abc import Mapping

_MEANING = {
    "images": "number of images",
    "psnr": "dB, mean over images",
    "ssim": "1 for identical images, mean over images",
    "frechet_lite0": "Fréchet distance to the real images, in features of EfficientNet-Lite0",
    "codebook_used": "fraction of the codebook that occurs",
    "codebook_perplexity": "effective number of codes",
    "dead_codes": "number of codes that never occur",
    "cos": "cosine of one sampled embedding and the image's",
    "centered_cos": "... both less the training mean",
    "mean_cos": "the same for the mean of all samples, which a regression would predict",
    "mean_centered_cos": "... both less the training mean",
    "frechet": "Fréchet distance of sampled and true embeddings, standardized",
    "own_image_top1": "fraction of samples whose nearest image is the own one, by centered cosine",
    "own_image_top10": "... among the nearest ten",
    "own_caption_top1": "fraction of samples whose nearest caption is the own one",
    "own_caption_top10": "... among the nearest ten",
    "caption_centered_cos": "for comparison: the caption's embedding in place of a sample, centered",
    "constant_cos": "for comparison: the training mean in place of a sample",
    "image_cos": "images decoded from true embeddings: centered cosine with the image given",
    "image_caption_top1": "... fraction whose caption the judging CLIP ranks first",
    "image_caption_top10": "... among the first ten",
    "image_frechet": "... Fréchet distance to the true images, in embeddings of the judging CLIP",
    "prior_cos": "the same for embeddings that the prior samples",
    "caption_cos": "the same for the caption's embedding",
    "bicubic_psnr": "dB, of bicubic resizing",
    "white_codes": "number of distinct codes of a white image",
    "blank_share": "fraction of cells that are purely white",
    "blank_nats": "entropy in nats of the codes of white cells, given their position",
    "kept_cell_shift": "fraction of codes unchanged if the image is shifted by a cell",
    "kept_pixel_shift": "... shifted by a pixel",
    "kept_noise": "... with uniform noise of 2/255 added",
    "kept_reencoded": "... reconstructed and encoded again",
    "image_nats": "nats per image token, with the image's own caption",
    "image_nats_none": "... without a caption",
    "image_nats_other": "... with another image's caption",
    "own_minus_none": "what the caption saves: 0 or above, it is ignored or misread",
    "own_minus_other": "",
    "best_temperature": "of the logits: above 1, the model is overconfident",
    "image_nats_calibrated": "nats per image token at that temperature",
    "text_nats": "nats per text token",
    "image_accuracy": "fraction of image tokens that are the most likely ones",
    "likeliest_used": "fraction of the codebook that is the most likely code somewhere",
    "concept_top1": "fraction of images whose concept the judge ranks first",
    "concept_top5": "... among the first five",
    "style": "fraction of images whose style the judge ranks first",
    "caption_top1": "fraction of images whose caption the judge ranks first of 400",
    "caption_top10": "... among the first ten",
    "caption_median_rank": "median rank of the caption among 400",
    "clip_score": "100 times the mean cosine with the prompt, by the CLIP given",
    "near_copies": "fraction of images that are near-copies of a training image",
    "neighbor_rmse": "median RMSE to the nearest training image, in units of 1/255",
    "diversity": "mean cosine distance between candidates of a prompt",
    "background": "fraction of images with the prompted background color",
    "icon_color": "fraction of one-color icons with the prompted color",
    "relation": "fraction of images with the prompted spatial relation; chance is 0.25",
}
_WIDTH = 15


def table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """One line per metric, one column per split or set of images; "-" where a metric is undefined."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    lines = [" " * 24 + "".join(f"{title:>{_WIDTH}}" for title in columns)]
    for name in names:
        cells = "".join(f"{_number(metrics.get(name)):>{_WIDTH}}" for metrics in columns.values())
        lines.append(f"  {name:<22}{cells}  {_meaning(name)}".rstrip())
    return "\n".join(lines)


def markdown_table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """One line per set of images, one column per metric, in Markdown; "-" where a metric is undefined."""
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    lines = ["|".join(("", "", *names, "")), "|".join(("", *["---"] * (len(names) + 1), ""))]
    for title, metrics in rows.items():
        lines.append("|".join(("", title, *(_short(metrics.get(name)) for name in names), "")))
    return "\n".join(line.replace("|", " | ").strip() for line in lines)


def _short(value: float | None) -> str:
    return _number(value) if value is None or isinstance(value, int) else f"{value:.3f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:d}" if isinstance(value, int) else f"{value:.4f}"


def _meaning(name: str) -> str:
    if "@" not in name:
        return _MEANING.get(name, "")
    query, match = ("captions", "image") if name.startswith("text_to_image") else ("images", "caption")
    return f"fraction of {query} whose {match} is among the {name.partition('@')[2]} most similar"
