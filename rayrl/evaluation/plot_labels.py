"""Names from outside on a plot: laid out by an estimate of their width, and written in as they are afterwards.

matplotlib measures texts in its own font. That lacks most scripts (it warns, and takes Chinese for too narrow, so that
names are cut at the picture's edge) and the page uses another one anyway. So it gets stand-ins as wide as the page's
font makes the names, and `put_in` writes the names into the finished SVG, escaped. Their lines aren't broken: a name
that is too long loses its middle, and the whole of it shows where the pointer rests.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from markupsafe import escape

FONT_PT = 8.0
_DIGIT_EM, _MARK_EM = 0.636, 0.80
"""Widths in matplotlib's font: of a digit, and of the two marks of a stand-in."""
_STAND_IN = re.compile(r"‹(\d+)›0*")


class Labels:
    """The names of one plot."""

    def __init__(self) -> None:
        self._names: list[tuple[str, str]] = []

    def stand_ins(self, names: Sequence[str], limit_em: float) -> list[str]:
        """What matplotlib is to draw for each name; none is wider than `limit_em` by much."""
        return [self._stand_in(" ".join(name.split()), limit_em) for name in names]

    def put_in(self, svg: str) -> str:
        """The names in the places of their stand-ins."""
        return _STAND_IN.sub(lambda found: self._element(*self._names[int(found[1])]), svg)

    def _stand_in(self, name: str, limit_em: float) -> str:
        shown = shortened(name, limit_em)
        mark = f"‹{len(self._names)}›"
        self._names.append((shown, name))
        rest_em = width_em(shown) - _MARK_EM - _DIGIT_EM * (len(mark) - 2)
        return mark + "0" * max(0, math.ceil(rest_em / _DIGIT_EM))

    @staticmethod
    def _element(shown: str, name: str) -> str:
        return str(escape(shown)) if shown == name else f"{escape(shown)}<title>{escape(name)}</title>"


def width_em(text: str) -> float:
    """About how wide a text is in a page's font, rather too wide. Example: "AUC 值" -> 0.75 * 3 + 0.6 + 1"""
    return sum(map(_letter_em, text))


def shortened(name: str, limit_em: float) -> str:
    """The name, or both of its ends and … between them. Example: ("abcdefghij", 3.5) -> "ab…ij" """
    if width_em(name) <= limit_em:
        return name
    half_em = (limit_em - 1) / 2
    return f"{_start(name, half_em)}…{_start(name[::-1], half_em)[::-1]}"


def _start(text: str, limit_em: float) -> str:
    """As much of its beginning as fits."""
    used = 0.0
    for count, letter in enumerate(text):
        used += _letter_em(letter)
        if used > limit_em + 1e-9:
            return text[:count]
    return text


def _letter_em(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF" or letter in "mwMW@%&…—":
        return 1.0
    if unicodedata.combining(letter):
        return 0.0
    return 0.75 if letter.isupper() or not letter.isascii() else 0.6
