"""Sentences that a label is put into, by the name of a set. {} stands for the label, or for a word that it goes by."""

from __future__ import annotations

from collections.abc import Sequence

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "images-en": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a close-up photo of a {}.",
        "a blurry photo of a {}.",
        "a dark photo of a {}.",
        "a bright photo of a {}.",
        "a photo of a small {}.",
        "a photo of a large {}.",
        "a drawing of a {}.",
        "a painting of a {}.",
    ),
    "images-hi": (
        "{} की तस्वीर",
        "{} का फ़ोटो",
        "एक {} की तस्वीर",
        "{} की धुंधली तस्वीर",
        "पास से ली गई {} की तस्वीर",
        "छोटे {} की तस्वीर",
        "बड़े {} की तस्वीर",
        "{} का चित्र",
    ),
    "images-ne": (
        "{}को तस्बिर",
        "{}को फोटो",
        "एउटा {}को तस्बिर",
        "{}को धमिलो तस्बिर",
        "नजिकबाट खिचिएको {}को तस्बिर",
        "सानो {}को तस्बिर",
        "ठूलो {}को तस्बिर",
        "{}को चित्र",
    ),
    # What the shipped CLIP was trained on says it so (dalle/data/drawings/captions.py)
    "emoji-en": ("{}", "a {}", "an emoji of {}", "an emoji of a {}", "a picture of {}", "a picture of a {}"),
    "emoji-hi": ("{}", "{} का चित्र", "{} का इमोजी"),
    "emoji-ne": ("{}", "{}को चित्र", "{}को इमोजी"),
    "style-en": ("{} style", "{}", "an emoji in {} style", "a picture in the {} style", "a {} emoji"),
    "style-hi": ("{} शैली", "{} शैली में इमोजी", "{} शैली में चित्र"),
    "style-ne": ("{} शैली", "{} शैलीमा इमोजी", "{} शैलीमा चित्र"),
}
"""Sets by name: for photographs and other images, for emoji by what they show, for emoji by how they are drawn."""


def templates_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """The sentences of one set or several ("emoji-en", or "emoji-en,emoji-hi"), or of a list that holds sentences.

    Raises:
        ValueError: there is no such set, or a sentence does not hold {} once.
    """
    if isinstance(names, str):
        wanted = [name.strip() for name in names.split(",")]
        unknown = [name for name in wanted if name not in TEMPLATES]
        if unknown:
            hint = "; a sentence of your own is --template (templates=[...])" if "{" in names else ""
            raise ValueError(f"there is no set of templates {unknown[0]!r}: choose from {', '.join(TEMPLATES)}{hint}")
        return tuple(dict.fromkeys(template for name in wanted for template in TEMPLATES[name]))
    if not names:
        raise ValueError("no template is given: expected one sentence at least, such as 'a photo of a {}'")
    for template in names:
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise ValueError(
                f"template {template!r}: expected {{}} once, where the label goes, as in 'a photo of a {{}}'"
            )
    return tuple(dict.fromkeys(names))
