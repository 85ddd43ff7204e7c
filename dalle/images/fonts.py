"""Fonts of this machine for labels in any script: a font for a text, or one for each of its words."""

from __future__ import annotations

import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from functools import cache

from PIL import ImageFont, features

Font = ImageFont.FreeTypeFont
Word = tuple[str, Font]

# Fonts with scripts beyond Latin, for systems without fontconfig (Pillow finds them by name)
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "Lohit-Devanagari.ttf",
    "Nirmala.ttc",
    "Nirmala.ttf",
    "mangal.ttf",
    "Kohinoor.ttc",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
)


def words_for(text: str, size: int) -> list[Word] | None:
    """The words of a text with their fonts: one for all where there is one, else one for each; None if one has none.

    Fonts of one script may have no Latin letters, which a caption in Nepali has if it names a style in English.
    """
    whole = font_for(text, size)
    if whole is not None:
        return [(word, whole) for word in text.split(" ")]
    found: list[Word] = []
    for word in text.split(" "):
        font = font_for(word, size, [known for _, known in found])
        if font is None:
            return None
        found.append((word, font))
    return found


def font_hint(text: str) -> str:
    """What to install to have the label drawn."""
    text = " ".join(word for word in text.split(" ") if font_for(word, 12) is None) or text  # what lacks one, no more
    # A Unicode name begins with its script (DEVANAGARI LETTER KA); Latin ends at U+024F
    named = (unicodedata.name(c, "").partition(" ")[0].capitalize() for c in text if ord(c) > 0x24F and c.isalpha())
    script = next(named, "")
    if script == "Devanagari":
        return "install a font with Devanagari, for example fonts-lohit-deva or fonts-noto-core"
    if not script and any(unicodedata.category(c) == "So" for c in text):
        # Outlines: fonts of colored bitmaps have a single size
        return "install a font with outlines of emoji, for example fonts-symbola"
    return f"install a font for it{f' ({script})' if script else ''}, for example fonts-noto-core or fonts-noto-cjk"


def font_for(text: str, size: int, known: Sequence[Font] = ()) -> Font | None:
    """A font with glyphs for all of `text`: Pillow's own for Latin, else one of this machine's; None without one.

    Args:
        text: the text.
        size: of the font, in pixels.
        known: fonts that were found for other texts, and are tried first.
    """
    own = latin(size)
    if _covers(own, text):
        return own
    # Combining marks are reordered and joined: without a layout engine (Raqm) they would be drawn in the wrong order
    if any(unicodedata.category(c) in ("Mc", "Mn") for c in text) and not features.check("raqm"):
        return None
    for font in known:
        if _covers(font, text):
            return font
    for name in [*_fontconfig(text), *_FONTS]:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        if _covers(font, text):
            return font
    return None


@cache
def latin(size: int) -> Font:
    """Pillow's own font."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _covers(font: Font, text: str) -> bool:
    """Whether the font has a glyph for every character: none is drawn like a code point that it certainly lacks."""
    lacking = bytes(font.getmask("\U0010ffff"))
    # Invisible, they tell a layout engine how to join their neighbors, or which of two forms of an emoji is meant
    return all(c.isspace() or c in "\u200c\u200d\ufe0e\ufe0f" or bytes(font.getmask(c)) != lacking for c in set(text))


def _fontconfig(text: str) -> list[str]:
    """The best font file for the characters of `text`, according to fontconfig if it is installed."""
    program = shutil.which("fc-match")
    if program is None:
        return []
    characters = " ".join(f"{ord(c):x}" for c in sorted(set(text)) if not c.isspace())
    found = subprocess.run(
        [program, "--format=%{file}", f":charset={characters}"], capture_output=True, text=True, check=False
    )
    return [found.stdout] if found.returncode == 0 and found.stdout else []
