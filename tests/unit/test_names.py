"""Which names people may be enrolled under, how they are written, and which are alike."""
# ruff: noqa: RUF001 # letters that look like others are what this is about

from __future__ import annotations

import unicodedata

import pytest

from faceapp.errors import InvalidName
from faceapp.people import names

ZWNJ = "\u200c"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("O\u2019Brien", "O'Brien"),
        ("山田\u3000太郎", "山田 太郎"),
        ("バラク・オバマ", "バラク・オバマ"),
        ("巴拉克\u00b7奥巴马", "巴拉克\u00b7奥巴马"),
        ("巴拉克\u2027奥巴马", "巴拉克\u00b7奥巴马"),
        ("Gal\u00b7la", "Gal\u00b7la"),
        ("ג\u05f3ורג\u05f3", "ג\u05f3ורג\u05f3"),
        (f"علی{ZWNJ}رضا", f"علی{ZWNJ}رضا"),
        ("Jean\u2011Luc", "Jean-Luc"),
        ("Jean\u2013Luc", "Jean-Luc"),
        ("Smith, John", "Smith, John"),
        ("Anna (work)", "Anna (work)"),
        ("Anna \uff08work\uff09", "Anna (work)"),
        ("\u2019t Hooft", "'t Hooft"),
        ("Tom & Anna", "Tom & Anna"),
        ("බ්\u200dරයන්", "බ්\u200dරයන්"),
        ("བསྒྲུབས་", "བསྒྲུབས་"),
        ("John  Smith", "John Smith"),
        (" John\u00a0Smith ", "John Smith"),
        ("a", "a"),
        ("7", "7"),
        ("José Núñez", "José Núñez"),
        ("a_b", "a_b"),
        ("राहुल", "राहुल"),
        ("小林", "小林"),
        ("ＪＯＨＮ", "ＪＯＨＮ"),
        ("x" * 64, "x" * 64),
        ("a" + "é" * 63, "a" + "é" * 63),
        ("unknown soldier", "unknown soldier"),
    ],
)
def test_a_name_that_people_have_is_taken(name: str, kept: str) -> None:
    """R8: names with the punctuation and the spaces of their keyboards."""
    assert names.clean(unicodedata.normalize("NFD", name)) == kept
    assert names.clean(kept) == kept


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("obama\ufe0f", "Character 6 of the name (VARIATION SELECTOR-16, U+FE0F) cannot be seen"),
        ("\u3164", "Character 1 of the name (HANGUL FILLER, U+3164) cannot be seen"),
        ("a\u00adb", "Character 2 of the name (SOFT HYPHEN, U+00AD) cannot be seen"),
        ("a\u202eb", "RIGHT-TO-LEFT OVERRIDE"),
        ("a\u200bb", "ZERO WIDTH SPACE"),
        ("a\U000e0100", "VARIATION SELECTOR-17"),
        (f"o{ZWNJ}bama", "Character 2 of the name (ZERO WIDTH NON-JOINER, U+200C) can stand only between"),
        (f"علی{ZWNJ}", "can stand only between letters"),
        (f"{ZWNJ}علی", "can stand only between letters"),
        (f"علی{ZWNJ}{ZWNJ}رضا", "can stand only between letters"),
        (f"日{ZWNJ}本", "can stand only between letters of a script that joins them"),
        ("\u05d0\u200d\u05d1", "can stand only between letters of a script that joins them"),
        ("a" + "\u0316" * 5, "Character 6 of the name ('\u0316', COMBINING GRAVE ACCENT BELOW, U+0316) is one mark"),
        ("\u0301a", "Character 1 of the name ('\u0301', COMBINING ACUTE ACCENT, U+0301) needs a letter before it"),
        ("a b \u0301c", "needs a letter before it"),
        ("a/b", "Character 2 of the name ('/', SOLIDUS, U+002F) cannot be in a name. A name takes letters"),
        ("a:b", "COLON"),
        ('a"b', "QUOTATION MARK"),
        ("a\\b", "REVERSE SOLIDUS"),
        ("a?b", "QUESTION MARK"),
        ("a%2fb", "PERCENT SIGN"),
        ("a\nb", "Character 2 of the name (no name, U+000A) cannot be in a name"),
        ("a\tb", "U+0009"),
        ("a\0", "U+0000"),
        ("a\u2028b", "LINE SEPARATOR"),
        ("a\x85", "U+0085"),
        ("\ud800", "U+D800"),
        ("a\ue000", "U+E000"),
        ("a😀", "Character 2 of the name ('😀', GRINNING FACE, U+1F600) cannot be in a name"),
        ("²", "SUPERSCRIPT TWO"),
        ("-a", "begins with a letter, a digit or ', not with '-', HYPHEN-MINUS, U+002D"),
        (".a", "not with '.'"),
        ("(a)", "not with '('"),
        ("'", "neither a letter nor a digit"),
        ("a..b", "two dots in a row, as at character 2"),
        ("../x", "SOLIDUS"),
        ("", "empty"),
        ("\u3000 ", "empty"),
        ("x" * 65, "has 65 characters"),
    ],
)
def test_a_refusal_names_the_character(name: str, says: str) -> None:
    """R8, S11: what is refused, and that the sentence says which character it is about."""
    with pytest.raises(InvalidName) as refused:
        names.clean(name)
    assert says in refused.value.detail


@pytest.mark.parametrize(
    "name",
    [
        "unkn\u043ewn",
        "unkn\u03bfwn",
        "\u039dO F\u0410C\u0415",
        "n\u00f6 face",
        "u\u0336n\u0336k\u0336n\u0336o\u0336w\u0336n\u0336",
        "unknown",
        "UNKNOWN ",
        "ｕｎｋｎｏｗｎ",
        "Ｕnknown",
        "no_face",
        "No Face",
        "no-face",
        "unknown.",
    ],
)
def test_the_services_own_answers_are_no_names(name: str) -> None:
    """S11: neither as people see them, nor as they are typed in another width."""
    with pytest.raises(InvalidName, match="answer"):
        names.clean(name)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("John Smith", "JOHN SMITH", True),
        ("John Smith", "John  Smith", True),
        ("John Smith", "John_Smith", True),
        ("John Smith", "ＪＯＨＮ\u3000ＳＭＩＴＨ", True),
        ("O'Brien", "O\u2019brien", True),
        ("Straße", "STRASSE", True),
        (f"علی{ZWNJ}رضا", "علیرضا", True),
        ("obama", "obama\ufe0f", True),
        ("José", "Jose", False),
        ("amy", "amy b", False),
        ("amyb", "amy b", False),
    ],
)
def test_names_are_alike(one: str, other: str, alike: bool) -> None:
    """R9: what differs in case, width or spaces only is one name to whoever reads it."""
    assert (names.likeness(one) == names.likeness(other)) == alike


@pytest.mark.parametrize(
    ("asked", "spellings"),
    [
        ("amy", ("amy",)),
        ("amy ", ("amy",)),
        ("O\u2019Brien", ("O'Brien",)),
        ("John  Smith", ("John  Smith", "John Smith")),
        ("ʻIolani ʼX", ("ʻIolani ʼX", "ʻIolani 'X")),
        ("obama\ufe0f", ("obama\ufe0f",)),
        ("\u3164", ("\u3164",)),
        ("ｕｎｋｎｏｗｎ", ("ｕｎｋｎｏｗｎ",)),
    ],
)
def test_what_an_earlier_version_enrolled_can_be_asked_for(asked: str, spellings: tuple[str, ...]) -> None:
    """S11: today's rules refuse or rewrite these names; whoever has one can still be shown and forgotten."""
    assert names.spellings(asked) == spellings


@pytest.mark.parametrize("name", ["unknown", "", "a/b", "..", "a\nb", "😀", "x" * 65])
def test_what_no_version_enrolled_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        names.spellings(name)
