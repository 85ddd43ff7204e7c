"""Prompt templates, in sets with a name. {} stands for the label or one of its synonyms."""

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
    # The wording of the captions that the built-in CLIP was trained on (dalle/data/drawings/captions.py)
    "emoji-en": ("{}", "a {}", "an emoji of {}", "an emoji of a {}", "a picture of {}", "a picture of a {}"),
    "emoji-hi": ("{}", "{} का चित्र", "{} का इमोजी"),
    "emoji-ne": ("{}", "{}को चित्र", "{}को इमोजी"),
    "style-en": ("{} style", "{}", "an emoji in {} style", "a picture in the {} style", "a {} emoji"),
    "style-hi": ("{} शैली", "{} शैली में इमोजी", "{} शैली में चित्र"),
    "style-ne": ("{} शैली", "{} शैलीमा इमोजी", "{} शैलीमा चित्र"),
}
"""Set -> templates: images-* for photographs and other images, emoji-* for what emoji show, style-* for their style."""


def templates_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of one set or several ("emoji-en", or "emoji-en,emoji-hi"), or a list of templates, checked.

    Raises:
        ValueError: there is no such set, or a template does not contain {} exactly once.
    """
    if isinstance(names, str):
        set_names = [name.strip() for name in names.split(",")]
        unknown = [name for name in set_names if name not in TEMPLATES]
        if unknown:
            hint = "; to give a template itself, use --template (templates=[...])" if "{" in names else ""
            raise ValueError(f"there is no set of templates {unknown[0]!r}: choose from {', '.join(TEMPLATES)}{hint}")
        return tuple(dict.fromkeys(template for name in set_names for template in TEMPLATES[name]))
    if not names:
        raise ValueError("no template is given: expected one sentence at least, such as 'a photo of a {}'")
    for template in names:
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise ValueError(
                f"template {template!r}: expected {{}} once, where the label goes, as in 'a photo of a {{}}'"
            )
    return tuple(dict.fromkeys(names))
