"""Caption templates in English, Hindi and Nepali, over names, keywords, styles, colors and spatial relations."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

Words = dict[str, tuple[str, ...]]  # language -> synonyms, the usual one first

# art style of the emoji -> the words that captions use for it, per language
STYLES: dict[str, Words] = {
    "noto": {"en": ("noto", "shaded cartoon"), "hi": ("नोटो",), "ne": ("नोटो",)},
    "blob": {"en": ("blob", "old noto"), "hi": ("ब्लॉब",), "ne": ("ब्लब",)},
    "twemoji": {"en": ("twemoji", "flat cartoon"), "hi": ("ट्वेमोजी",), "ne": ("ट्वेमोजी",)},
    "fluent-3d": {"en": ("3d", "glossy 3d render"), "hi": ("3डी",), "ne": ("3डी",)},
    "fluent-flat": {"en": ("flat", "flat vector"), "hi": ("सपाट",), "ne": ("समतल",)},
    "fluent-mono": {"en": ("black and white", "monochrome icon"), "hi": ("श्वेत-श्याम",), "ne": ("श्यामश्वेत",)},
    "emojione": {"en": ("emojione", "soft cartoon"), "hi": ("इमोजीवन",), "ne": ("इमोजीवन",)},
}
# style family of the icons -> the same; icons may add English words of their own
FAMILIES: dict[str, Words] = {
    "outline": {"en": ("outline",), "hi": ("रेखा",), "ne": ("रेखा",)},
    "solid": {"en": ("solid",), "hi": ("ठोस",), "ne": ("ठोस",)},
    "duotone": {"en": ("duotone",), "hi": ("द्विरंगी",), "ne": ("दुईरङ्गी",)},
    "game icon": {"en": ("game icon",), "hi": ("गेम आइकन",), "ne": ("गेम आइकन",)},
    "thin outline": {"en": ("thin outline",), "hi": ("पतली रेखा",), "ne": ("पातलो रेखा",)},
    "blue-filled outline": {"en": ("blue-filled outline",), "hi": ("नीली भरी रेखा",), "ne": ("निलो भरिएको रेखा",)},
    "bold outline": {"en": ("bold outline",), "hi": ("मोटी रेखा",), "ne": ("बाक्लो रेखा",)},
    "cartoon": {"en": ("cartoon",), "hi": ("कार्टून",), "ne": ("कार्टुन",)},
    "pixel art": {"en": ("pixel art",), "hi": ("पिक्सेल",), "ne": ("पिक्सेल",)},
    "colored outline": {"en": ("colored outline",), "hi": ("रंगीन रेखा",), "ne": ("रङ्गीन रेखा",)},
    "broken outline": {"en": ("broken outline",), "hi": ("टूटी रेखा",), "ne": ("टुटेको रेखा",)},
    "two-tone outline": {"en": ("two-tone outline",), "hi": ("दोरंगी रेखा",), "ne": ("दुईरङ्गी रेखा",)},
    "map symbol": {"en": ("map symbol",), "hi": ("नक्शा चिह्न",), "ne": ("नक्सा चिन्ह",)},
    "hand-drawn": {"en": ("hand-drawn",), "hi": ("हस्तचित्र",), "ne": ("हस्तचित्र",)},
    "pencil sketch": {"en": ("pencil sketch",), "hi": ("पेंसिल",), "ne": ("पेन्सिल",)},
    "offset print": {"en": ("offset print",), "hi": ("छपाई",), "ne": ("छपाइ",)},
    "chubby outline": {"en": ("chubby outline",), "hi": ("गोलमटोल रेखा",), "ne": ("गोलमटोल रेखा",)},
    "chubby solid": {"en": ("chubby solid",), "hi": ("गोलमटोल ठोस",), "ne": ("गोलमटोल ठोस",)},
    "chubby duotone": {"en": ("chubby duotone",), "hi": ("गोलमटोल द्विरंगी",), "ne": ("गोलमटोल दुईरङ्गी",)},
    "medical pictogram": {"en": ("medical pictogram",), "hi": ("चिकित्सा चिह्न",), "ne": ("चिकित्सा चिन्ह",)},
    "gradient color": {"en": ("gradient color",), "hi": ("ग्रेडिएंट",), "ne": ("ग्रेडियन्ट",)},
    "flat color": {"en": ("flat color",), "hi": ("सपाट रंगीन",), "ne": ("समतल रङ्गीन",)},
}


@dataclass(frozen=True)
class NamedColor:
    """A color that captions can name.

    Attributes:
        rgb: red, green, blue in 0..255.
        hi_background: Hindi name for a background, feminine oblique, as in "... पृष्ठभूमि पर".
        ne_background: Nepali name for a background, as in "... पृष्ठभूमिमा".
        hi_ink: Hindi name for a drawing, masculine oblique, as in "... रंग में"; "": only backgrounds have this color.
        ne_ink: Nepali name for a drawing, as in "... रङमा".
    """

    rgb: tuple[int, int, int]
    hi_background: str
    ne_background: str
    hi_ink: str = ""
    ne_ink: str = ""


COLORS = {
    "white": NamedColor((255, 255, 255), "सफ़ेद", "सेतो", "सफ़ेद", "सेतो"),
    "red": NamedColor((224, 60, 50), "लाल", "रातो", "लाल", "रातो"),
    "orange": NamedColor((245, 150, 50), "नारंगी", "सुन्तला रङको", "नारंगी", "सुन्तला"),
    "yellow": NamedColor((250, 215, 60), "पीली", "पहेँलो", "पीले", "पहेँलो"),
    "green": NamedColor((90, 180, 80), "हरी", "हरियो", "हरे", "हरियो"),
    "blue": NamedColor((70, 130, 220), "नीली", "निलो", "नीले", "निलो"),
    "purple": NamedColor((150, 90, 200), "बैंगनी", "बैजनी", "बैंगनी", "बैजनी"),
    "pink": NamedColor((245, 150, 190), "गुलाबी", "गुलाबी", "गुलाबी", "गुलाबी"),
    "brown": NamedColor((140, 95, 60), "भूरी", "खैरो", "भूरे", "खैरो"),
    "gray": NamedColor((150, 150, 150), "धूसर", "खरानी रङको", "धूसर", "खरानी"),
    "teal": NamedColor((0, 150, 145), "हरी-नीली", "हरियो-निलो", "हरे-नीले", "हरियो-निलो"),
    "navy": NamedColor((30, 50, 115), "गहरी नीली", "गाढा निलो", "गहरे नीले", "गाढा निलो"),
    "black": NamedColor((20, 20, 20), "काली", "कालो", "काले", "कालो"),
    "pale blue": NamedColor((190, 220, 250), "हल्की नीली", "हल्का निलो"),
    "pale yellow": NamedColor((255, 245, 190), "हल्की पीली", "हल्का पहेँलो"),
    "pale green": NamedColor((200, 240, 200), "हल्की हरी", "हल्का हरियो"),
    "pale pink": NamedColor((255, 215, 228), "हल्की गुलाबी", "हल्का गुलाबी"),
}
INKS = tuple(name for name, color in COLORS.items() if color.hi_ink)
_COLOR_WORDS = {*INKS, "grey", "golden", "gold", "silver", "rainbow", "colorful", "dark", "light"}

RELATIONS = ("left", "right", "above", "below")
ROWS = ("left to right", "top to bottom")  # arrangements of three objects
_SCENES = {
    "en": {
        "left": "{a} to the left of {b}",
        "right": "{a} to the right of {b}",
        "above": "{a} above {b}",
        "below": "{a} below {b}",
        "left to right": "from left to right: {a}, {b}, {c}",
        "top to bottom": "from top to bottom: {a}, {b}, {c}",
    },
    "hi": {
        "left": "बाईं ओर {a}, दाईं ओर {b}",
        "right": "दाईं ओर {a}, बाईं ओर {b}",
        "above": "ऊपर {a}, नीचे {b}",
        "below": "नीचे {a}, ऊपर {b}",
        "left to right": "बाएँ से दाएँ: {a}, {b}, {c}",
        "top to bottom": "ऊपर से नीचे: {a}, {b}, {c}",
    },
    "ne": {
        "left": "बायाँतिर {a}, दायाँतिर {b}",
        "right": "दायाँतिर {a}, बायाँतिर {b}",
        "above": "माथि {a}, तल {b}",
        "below": "तल {a}, माथि {b}",
        "left to right": "बायाँबाट दायाँ: {a}, {b}, {c}",
        "top to bottom": "माथिबाट तल: {a}, {b}, {c}",
    },
}
_STYLED = {
    "en": (
        "{x}, {s} style",
        "{x} in {s} style",
        "{x} in the {s} style",
        "{s} style {n}",
        "{x}, {s}",
        "{n}, {s}",
    ),
    "hi": ("{x}, {s} शैली", "{s} शैली में {x}"),
    "ne": ("{x}, {s} शैली", "{s} शैलीमा {x}"),
}
_PLAIN = {
    "en": ("{x}", "{n}", "an icon of {x}", "a picture of {x}"),
    "hi": ("{x}", "{x} का चित्र"),
    "ne": ("{x}", "{x}को चित्र"),
}
_INKED = {"hi": "{c} रंग में {x}", "ne": "{c} रङमा {x}"}
_ON = {
    "en": ("{c} on {b} background", "{c}, {b_bare} background"),
    "hi": ("{b} पृष्ठभूमि पर {c}", "{c}, {b} पृष्ठभूमि"),
    "ne": ("{b} पृष्ठभूमिमा {c}", "{c}, {b} पृष्ठभूमि"),
}
_ARTICLE = re.compile(r"^(an?|the|some) (?=\S)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)  # one object per concept: compared and hashed by identity
class Concept:
    """The names of what a drawing shows."""

    phrase: str  # with its article: "a red heart"
    names: dict[str, str]  # language -> "red heart"; only languages in which it has a name
    keywords: dict[str, tuple[str, ...]]

    def words(self, language: str, ink: str | None = None) -> tuple[str, str]:
        """The phrase (with an article in English) and the bare name, both with the color `ink` if it is given."""
        name = self.names[language]
        if language != "en":
            if ink is None:
                return name, name
            color = COLORS[ink]
            inked = _INKED[language].format(c=color.hi_ink if language == "hi" else color.ne_ink, x=name)
            return inked, inked
        if ink is None:
            return self.phrase, name
        article = _ARTICLE.match(self.phrase)
        noun = f"{ink} {self.phrase[article.end() :] if article else self.phrase}"
        singular = article is not None and article[1].lower() in ("a", "an")
        return (with_article(noun) if singular else noun), f"{ink} {name}"

    @property
    def colorable(self) -> bool:
        """Whether the name can take a color without contradicting itself ("a green red heart")."""
        return _COLOR_WORDS.isdisjoint(re.findall(r"[a-z]+", self.names["en"].lower()))


def with_article(words: str) -> str:
    """Prepend "a" or "an": "an orange wolf", "a teal wolf"."""
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def canonical_caption(concept: Concept, style_words: Words, language: str = "en") -> str:
    """The fixed caption used for evaluation: "a red heart, 3d style"."""
    x, n = concept.words(language)
    return _STYLED[language][0].format(x=x, n=n, s=style_words[language][0])


def styled_template(concept: Concept) -> str:
    """The canonical caption with {} for the style: "a red heart, {} style"."""
    x, n = concept.words("en")
    return _STYLED["en"][0].format(x=x, n=n, s="{}")


def single_caption(
    rng: random.Random,
    language: str,
    concept: Concept,
    style_words: Words | None,
    keyword_chance: float,
    ink: str | None = None,
) -> str:
    """A random caption of one object.

    Args:
        rng: source of all randomness.
        language: language of the caption, in which the concept has a name.
        concept: what is shown.
        style_words: words for its style; None leaves the style out.
        keyword_chance: probability that some of the concept's keywords follow its name.
        ink: name of the color of a single-color drawing; None leaves it out.
    """
    x, n = concept.words(language, ink)
    keywords = concept.keywords.get(language, ())
    if keywords and rng.random() < keyword_chance:
        x = n = ", ".join([n, *rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))])
    if style_words is None:
        return rng.choice(_PLAIN[language]).format(x=x, n=n)
    # The first template and first word form the canonical caption, which is evaluated: sample them most often.
    templates, words = _STYLED[language], style_words[language]
    template = templates[0] if rng.random() < 0.4 else rng.choice(templates)
    word = words[0] if rng.random() < 0.7 else rng.choice(words)
    return template.format(x=x, n=n, s=word)


def scene_caption(
    language: str,
    relation: str,
    things: list[tuple[Concept, str | None]],
    style_words: Words | None,
) -> str:
    """A caption of two objects ("{a} to the left of {b}") or three in a row, each with its color if it has one."""
    phrases = [concept.words(language, ink)[0] for concept, ink in things]
    both = _SCENES[language][relation].format(**dict(zip("abc", phrases, strict=False)))
    return both if style_words is None else _STYLED[language][0].format(x=both, n=both, s=style_words[language][0])


def with_background(rng: random.Random, language: str, caption: str, background: str) -> str:
    """Add the name of the background to a caption."""
    color = COLORS[background]
    named = {"en": with_article(background), "hi": color.hi_background, "ne": color.ne_background}[language]
    template = _ON[language][0] if rng.random() < 0.7 else rng.choice(_ON[language])
    return template.format(c=caption, b=named, b_bare=background)


_SIDES = {"left": "right", "right": "left", "leftwards": "rightwards", "rightwards": "leftwards"}
_SIDE = re.compile(r"\b(left|right|leftwards|rightwards)\b", re.IGNORECASE)
# Concepts whose mirror image is wrong: writing, numbers, clocks, keys and signs of all kinds.
_ONE_WAY = re.compile(
    r"\b(alarm|abacus|abc|alphabet|book|books|button|calculator|calendar|card|clock|clocks|compass|currency|date|dice|"
    r"die|document|flag|form|heart with|hourglass|id|input|invoice|keyboard|keypad|letter|letters|license|list|map|"
    r"mark|medal|meter|money|music|musical|newspaper|note|notes|number|numbers|question|receipt|ruler|score|sheet|"
    r"sign|speedometer|stopwatch|symbol|tag|text|ticket|time|timer|typewriter|watch|wristwatch|zodiac)\b"
)


def mirror_concept(concept: Concept) -> Concept | None:
    """The concept of a mirrored drawing, left and right swapped in its names; None if it must not be mirrored."""
    if _ONE_WAY.search(concept.names["en"].lower()):
        return None
    if not _SIDE.search(concept.names["en"]):
        return concept
    swapped = {"en": _swapped(concept.names["en"])}  # other languages have too many ways to say it
    return Concept(_swapped(concept.phrase), swapped, {})


def _swapped(words: str) -> str:
    return _SIDE.sub(lambda found: _SIDES[found[0].lower()], words)


def all_templates(concept: Concept, style_words: list[Words], languages: tuple[str, ...]) -> list[str]:
    """Captions of a concept that together cover all words, templates and colors: the corpus for BPE training."""
    forms = []
    rng = random.Random(concept.phrase)
    for language in (lang for lang in languages if lang in concept.names):
        x, n = concept.words(language)
        forms += [template.format(x=x, n=n) for template in _PLAIN[language]]
        forms += [", ".join([n, *concept.keywords.get(language, ())])]
        for words in style_words:
            ink = rng.choice(INKS) if concept.colorable and rng.random() < 0.5 else None
            styled = single_caption(rng, language, concept, words, keyword_chance=0.0, ink=ink)
            forms += [styled, with_background(rng, language, styled, rng.choice(list(COLORS)))]
    return forms
