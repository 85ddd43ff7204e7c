"""Captions of the emoji pictures in English, Hindi and Nepali: templates over names, keywords, styles, backgrounds."""

from __future__ import annotations

import random
from dataclasses import dataclass

# style -> words that a caption may name it by, per language
STYLES = {
    "noto": {"en": ("noto", "shaded cartoon"), "hi": ("नोटो",), "ne": ("नोटो",)},
    "blob": {"en": ("blob", "old noto"), "hi": ("ब्लॉब",), "ne": ("ब्लब",)},
    "twemoji": {"en": ("twemoji", "flat cartoon"), "hi": ("ट्वेमोजी",), "ne": ("ट्वेमोजी",)},
    "fluent-3d": {"en": ("3d", "glossy 3d render"), "hi": ("3डी",), "ne": ("3डी",)},
    "fluent-flat": {"en": ("flat", "flat vector"), "hi": ("सपाट",), "ne": ("समतल",)},
    "fluent-mono": {"en": ("black and white", "monochrome icon"), "hi": ("श्वेत-श्याम",), "ne": ("श्यामश्वेत",)},
    "emojione": {"en": ("emojione", "soft cartoon"), "hi": ("इमोजीवन",), "ne": ("इमोजीवन",)},
}

# group of emoji -> words for what is in it; no caption names a group
GROUPS: dict[str, tuple[str, ...]] = {
    "smileys-emotion": ("face", "smiling face", "sad face", "cat face", "heart", "emotion"),
    "people-body": ("person", "man", "woman", "family", "hand", "part of the body"),
    "animals-nature": ("animal", "bird", "fish", "insect", "flower", "plant"),
    "food-drink": ("food", "fruit", "vegetable", "meal", "sweet", "drink"),
    "travel-places": ("place", "building", "vehicle", "ship", "clock", "weather"),
    "activities": ("activity", "event", "medal", "sport", "game", "art"),
    "objects": ("object", "clothing", "musical instrument", "computer", "tool", "book"),
    "symbols": ("symbol", "sign", "arrow", "button", "zodiac sign", "geometric shape"),
}

# name -> red, green, blue in 0..255, and the colour's names (hi: oblique form, as before पृष्ठभूमि पर; ne: as before
# पृष्ठभूमिमा)
BACKGROUNDS = {
    "white": ((255, 255, 255), "सफ़ेद", "सेतो"),
    "red": ((224, 60, 50), "लाल", "रातो"),
    "orange": ((245, 150, 50), "नारंगी", "सुन्तला रङको"),
    "yellow": ((250, 215, 60), "पीली", "पहेँलो"),
    "green": ((90, 180, 80), "हरी", "हरियो"),
    "blue": ((70, 130, 220), "नीली", "निलो"),
    "purple": ((150, 90, 200), "बैंगनी", "बैजनी"),
    "pink": ((245, 150, 190), "गुलाबी", "गुलाबी"),
    "brown": ((140, 95, 60), "भूरी", "खैरो"),
    "grey": ((150, 150, 150), "धूसर", "खरानी रङको"),
    "black": ((20, 20, 20), "काली", "कालो"),
    "pale blue": ((190, 220, 250), "हल्की नीली", "हल्का निलो"),
    "pale yellow": ((255, 245, 190), "हल्की पीली", "हल्का पहेँलो"),
    "pale green": ((200, 240, 200), "हल्की हरी", "हल्का हरियो"),
    "pale pink": ((255, 215, 228), "हल्की गुलाबी", "हल्का गुलाबी"),
}
LIGHT = ("white", "yellow", "pink", "pale blue", "pale yellow", "pale green", "pale pink")

RELATIONS = ("left", "right", "above", "below")
_SCENES = {
    "en": {
        "left": "{a} to the left of {b}",
        "right": "{a} to the right of {b}",
        "above": "{a} above {b}",
        "below": "{a} below {b}",
    },
    "hi": {
        "left": "बाईं ओर {a}, दाईं ओर {b}",
        "right": "दाईं ओर {a}, बाईं ओर {b}",
        "above": "ऊपर {a}, नीचे {b}",
        "below": "नीचे {a}, ऊपर {b}",
    },
    "ne": {
        "left": "बायाँतिर {a}, दायाँतिर {b}",
        "right": "दायाँतिर {a}, बायाँतिर {b}",
        "above": "माथि {a}, तल {b}",
        "below": "तल {a}, माथि {b}",
    },
}
_STYLED = {
    "en": (
        "{x}, {s} style",
        "{x} in {s} style",
        "{x} in the {s} style",
        "{s} style {n}",
        "a {s} emoji of {x}",
        "{n}, {s}",
    ),
    "hi": ("{x}, {s} शैली", "{s} शैली में {x}"),
    "ne": ("{x}, {s} शैली", "{s} शैलीमा {x}"),
}
_PLAIN = {
    "en": ("{x}", "{n}", "an emoji of {x}", "a picture of {x}"),
    "hi": ("{x}", "{x} का चित्र"),
    "ne": ("{x}", "{x}को चित्र"),
}
_ON = {
    "en": ("{c} on a {b} background", "{c}, {b} background"),
    "hi": ("{b} पृष्ठभूमि पर {c}", "{c}, {b} पृष्ठभूमि"),
    "ne": ("{b} पृष्ठभूमिमा {c}", "{c}, {b} पृष्ठभूमि"),
}


@dataclass(frozen=True, eq=False)  # one object a concept: compared and hashed as such
class Concept:
    """Names of what a picture shows."""

    phrase: str  # "a red heart"
    names: dict[str, str]  # language -> "red heart"; languages without a name are missing
    keywords: dict[str, tuple[str, ...]]

    def words(self, language: str) -> tuple[str, str]:
        """The phrase with its article, where the language has one, and the bare name."""
        name = self.names[language]
        return (self.phrase if language == "en" else name), name


def canonical(concept: Concept, style: str, language: str = "en") -> str:
    """The one caption that figures are measured with: "a red heart, 3d style"."""
    x, n = concept.words(language)
    return _STYLED[language][0].format(x=x, n=n, s=STYLES[style][language][0])


def single(rng: random.Random, language: str, concept: Concept, style: str | None, keyword_chance: float) -> str:
    """A caption of one object; `style` None leaves the style unsaid."""
    x, n = concept.words(language)
    keywords = concept.keywords.get(language, ())
    if keywords and rng.random() < keyword_chance:
        x = n = ", ".join([n, *rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))])
    if style is None:
        return rng.choice(_PLAIN[language]).format(x=x, n=n)
    # The first template is the canonical one, and the first word the style's own: both come most often.
    templates, words = _STYLED[language], STYLES[style][language]
    template = templates[0] if rng.random() < 0.4 else rng.choice(templates)
    word = words[0] if rng.random() < 0.8 else rng.choice(words)
    return template.format(x=x, n=n, s=word)


def scene(rng: random.Random, language: str, a: Concept, b: Concept, relation: str, style: str | None) -> str:
    """A caption of two objects, `a` lying `relation` of `b`."""
    both = _SCENES[language][relation].format(a=a.words(language)[0], b=b.words(language)[0])
    return both if style is None else _STYLED[language][0].format(x=both, n=both, s=STYLES[style][language][0])


def on_background(rng: random.Random, language: str, caption: str, background: str) -> str:
    """`caption` with its background named."""
    _, hi, ne = BACKGROUNDS[background]
    named = {"en": background, "hi": hi, "ne": ne}[language]
    template = _ON[language][0] if rng.random() < 0.7 else rng.choice(_ON[language])
    text = template.format(c=caption, b=named)
    return text.replace(" on a orange ", " on an orange ")


def every_form(concept: Concept, styles: tuple[str, ...], languages: tuple[str, ...]) -> list[str]:
    """Captions of a concept that together show all words, templates and colours: what a BPE is learnt from."""
    forms = []
    rng = random.Random(concept.phrase)
    for language in (lang for lang in languages if lang in concept.names):
        x, n = concept.words(language)
        forms += [template.format(x=x, n=n) for template in _PLAIN[language]]
        forms += [", ".join([n, *concept.keywords.get(language, ())])]
        for style in styles:
            styled = single(rng, language, concept, style, keyword_chance=0.0)
            forms += [styled, on_background(rng, language, styled, rng.choice(list(BACKGROUNDS)))]
    return forms
