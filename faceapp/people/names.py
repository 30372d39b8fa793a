"""People's names: what may be enrolled, how it is written, and which names are alike. Pure.

A name is part of an S3 key, of a URL and of the classic line `<file>:<name>`, and people compare it by eye. So a name
has letters, marks and digits of any script, spaces, and the punctuation of names; what looks the same is written the
same, and what cannot be seen is refused.
"""

from __future__ import annotations

import re
import unicodedata

from faceapp.errors import InvalidName
from faceapp.schema import NO_FACE, UNKNOWN

MAX_NAME = 64
"""Characters of a name, of four bytes at most: percent-encoded it has 768 bytes, and an S3 key has room for 1,024."""
MOST_MARKS = 4
"""Combining marks on one letter. Tibetan and pointed Hebrew need three."""
PUNCTUATION = frozenset(" ._'-,()&\u00b7\u30fb\u05f3\u05f4\u05be\u0f0b")
"""Of the last six: the dots between parts of names in Catalan, Chinese and Japanese, geresh, gershayim and maqaf in
Hebrew, the tsheg in Tibetan."""
WRITTEN_AS = {
    **dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4\u0060\u055a", "'"),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("\u2022\u2027\u2219\u22c5", "·"),
    "\uff65": "・",
}
"""Characters that people and their keyboards use for one another, and what they are kept as."""
JOINERS = frozenset("\u200c\u200d")
"""ZERO WIDTH NON-JOINER and ZERO WIDTH JOINER: Persian, Sinhala and others cannot be written without them."""
JOINING = frozenset(
    [
        "ARABIC",
        "SYRIAC",
        "NKO",
        "DEVANAGARI",
        "BENGALI",
        "GURMUKHI",
        "GUJARATI",
        "ORIYA",
        "TAMIL",
        "TELUGU",
        "KANNADA",
        "MALAYALAM",
        "SINHALA",
        "KHMER",
        "MYANMAR",
        "TIBETAN",
    ]
)
"""Scripts written with joiners, as the names of their characters begin. Elsewhere a joiner only hides a difference."""
LOOKS_LIKE = str.maketrans(
    "\u0430\u03b1\u0251\u1d00\u0441\u03f2\u1d04\u0435\u03b5\u1d07\u0192\ua730\u043a\u03ba\u049b\u1d0b\u03bd\u03b7\u0578\u0274\u043e\u03bf\u0585"
    "\u1d0f\u00f8\u03c5\u057d\u028b\u1d1c\u051d\u0461\u03c9\u1d21",
    "aaaaccceeeffkkkknnnnooooouuuuwwww",
)
"""Letters of other scripts and what they look like, for the letters of RESERVED (Unicode's confusables.txt)."""
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f-\u1160\u17b4-\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
"""Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt, 16.0): nothing is shown for them."""
ASCII_WORD = re.compile("[a-z0-9]+")
TAKES = "A name takes letters, digits, spaces and . _ ' - , ( ) & ·"


def clean(name: str) -> str:
    """The name as it is enrolled: NFC, one spelling of what looks alike, single spaces, none at the ends.

    Raises InvalidName with a sentence that names the character that cannot be, and its place.
    """
    composed = unicodedata.normalize("NFC", name)
    written = _all_written(composed)
    for place, character in enumerate(written):
        _check(written, place, character)
    kept = unicodedata.normalize("NFC", " ".join(written.split()))
    if not kept:
        raise InvalidName(f"The name is empty: it takes 1 to {MAX_NAME} characters.")
    if len(kept) > MAX_NAME:
        raise InvalidName(f"The name has {len(kept)} characters: it takes 1 to {MAX_NAME}.")
    if ".." in kept:
        raise InvalidName(f"A name cannot have two dots in a row, as at character {kept.index('..') + 1} of this one.")
    if not (_is_letter(kept[0]) or kept[0].isdecimal() or kept[0] == "'"):
        raise InvalidName(f"A name begins with a letter, a digit or ', not with {_called(kept[0])}.")
    if not likeness(kept):
        raise InvalidName("The name has neither a letter nor a digit: it needs one.")
    if _look(likeness(kept)) in RESERVED:
        raise InvalidName(f"{kept!r} cannot be a person's name: it is an answer of the service.")
    return kept


def spellings(name: str) -> tuple[str, ...]:
    """The names that `name` may be enrolled under, the likeliest first: as earlier
    versions wrote it, and as today's.

    For whoever asks about a name, or forgets it. Raises InvalidName when nobody can have that name.
    """
    found = [earlier] if (earlier := _clean_earlier(name)) else []
    try:
        found.append(clean(name))
    except InvalidName:
        if not found:
            raise
    return tuple(dict.fromkeys(found))


def likeness(name: str) -> str:
    """What names that look alike have in common: letters, marks and digits by NFKC and casefold, in words.

    It has no place for what cannot be seen, and knows no difference between spaces and punctuation.
    """
    if name.isascii():  # most names; an enrolment compares all of them
        return " ".join(ASCII_WORD.findall(name.lower()))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _all_written(name)).casefold())
    visible = INVISIBLE.sub("", folded)
    return " ".join("".join(each if unicodedata.category(each)[0] in "LMN" else " " for each in visible).split())


def _all_written(name: str) -> str:
    return "".join(map(_written, name))


def _written(character: str) -> str:
    """The character that is kept for this one. Spaces of any width are spaces, wide punctuation is punctuation."""
    if character in WRITTEN_AS:
        return WRITTEN_AS[character]
    if unicodedata.category(character) == "Zs":
        return " "
    plain = unicodedata.normalize("NFKC", character)
    return plain if plain in PUNCTUATION else character


def _check(name: str, place: int, character: str) -> None:
    """Raises InvalidName unless the character may stand there."""
    before = name[place - 1] if place else " "
    if character in JOINERS:
        after = name[place + 1 : place + 2]
        if _is_joined(before) and after and _is_joined(after):
            return
        raise InvalidName(f"{_at(name, place)} can stand only between letters of a script that joins them.")
    if _is_invisible(character):
        raise InvalidName(f"{_at(name, place)} cannot be seen: leave it out.")
    if character in PUNCTUATION or _is_letter(character) or unicodedata.category(character) == "Nd":
        return
    if unicodedata.category(character)[0] != "M":
        raise InvalidName(f"{_at(name, place)} cannot be in a name. {TAKES}.")
    if not (_is_letter(before) or before.isdecimal() or before in JOINERS or unicodedata.category(before)[0] == "M"):
        raise InvalidName(f"{_at(name, place)} needs a letter before it.")
    if place >= MOST_MARKS and all(unicodedata.category(each)[0] == "M" for each in name[place - MOST_MARKS : place]):
        raise InvalidName(f"{_at(name, place)} is one mark too many: a letter takes at most {MOST_MARKS}.")


def _at(name: str, place: int) -> str:
    return f"Character {place + 1} of the name ({_called(name[place])})"


def _called(character: str) -> str:
    shown = [repr(character)] if character.isprintable() and not _is_invisible(character) else []
    return ", ".join([*shown, unicodedata.name(character, "no name"), f"U+{ord(character):04X}"])


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] == "L"


def _is_joined(character: str) -> bool:
    written = unicodedata.category(character) in {"Lo", "Mn", "Mc"}
    return written and unicodedata.name(character, "").partition(" ")[0] in JOINING


def _look(likeness: str) -> str:
    """The likeness in Latin letters, as far as it could be read as one of RESERVED, and without marks."""
    apart = unicodedata.normalize("NFD", likeness.translate(LOOKS_LIKE))
    return "".join(each for each in apart if unicodedata.category(each)[0] != "M").translate(LOOKS_LIKE)


def _is_invisible(character: str) -> bool:
    return INVISIBLE.fullmatch(character) is not None


def _clean_earlier(name: str) -> str | None:
    """The name as earlier versions kept it; None if they refused it. What they enrolled can be read and forgotten."""
    kept = unicodedata.normalize("NFC", name).rstrip(" ")
    categories = [unicodedata.category(character) for character in kept]
    fits = (
        1 <= len(kept) <= MAX_NAME
        and ".." not in kept
        and (categories[0][0] == "L" or categories[0] == "Nd")
        and all(kind[0] in "LM" or kind == "Nd" or each in " ._'-" for each, kind in zip(kept, categories, strict=True))
    )
    return kept if fits and kept.casefold() not in {UNKNOWN, NO_FACE} else None


RESERVED = frozenset({likeness(UNKNOWN), likeness(NO_FACE)})
