"""How rewards see text: units, script and sentences, for English, Chinese and mixtures of both.

A unit is one Chinese character (or kana) or one word of any other script, in lower case; lengths, n-grams and overlap
all count units, so that one rule serves both languages. Left out: real word segmentation of Chinese, which the
character metrics of HuatuoGPT's evaluation (BLEU, ROUGE) don't use either.

Patterns here and in the rules avoid nested repetition: a policy that collapses writes thousands of dots in a row.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from rayrl.data.units import CJK, UNIT, units

__all__ = ["CLOSERS", "is_chinese", "ngram_counts", "script_counts", "sentences", "units"]

CLOSERS = "\"'”’」』）)]*_` \t\r"
"""What may stand between a sentence's end mark and the end of the text: quotes, brackets, markdown."""

_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|approx|dr|mr|mrs|ms|no)\.(?=\s+[a-z\d])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]*]*\s+|(?<=[。！？])[”’」』）)*]*\s*|\n+")


def is_chinese(text: str) -> bool:
    """Whether more than half of the units are Chinese characters."""
    found = UNIT.findall(text)
    return 2 * sum(bool(re.match(f"[{CJK}]", unit)) for unit in found) > len(found)


def script_counts(text: str) -> Counter[str]:
    """Units by script, named as Unicode names it ("LATIN", "CJK", "CYRILLIC" ...); numbers have no script."""
    firsts = (unit[0] for unit in UNIT.findall(text) if unit[0].isalpha())
    return Counter(unicodedata.name(first, "UNKNOWN").split()[0].split("-")[0] for first in firsts)


def sentences(text: str) -> list[str]:
    """The sentences of a text with their end marks; a line break ends a sentence, "e.g." and "38.5" don't."""
    whole = _ABBREVIATION.sub(r"\1", text)
    return [part.strip() for part in _SENTENCE_END.split(whole) if part.strip()]


def ngram_counts(items: list[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n items occurs; empty where there are fewer than n."""
    return Counter(tuple(items[start : start + n]) for start in range(len(items) - n + 1))
