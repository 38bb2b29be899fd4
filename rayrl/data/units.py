"""How text is counted: one unit is a Chinese character (or kana), or a word of any other script, in lower case.

Lengths, n-grams, overlap and duplicates all count units, so that one rule serves English, Chinese and mixtures of both.
Left out: real word segmentation of Chinese.
"""

from __future__ import annotations

import re

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters that are units by themselves, as the inside of a pattern's brackets."""
_LETTER = rf"(?:(?![{CJK}])[^\W_])"
UNIT = re.compile(rf"(?=[^\W_])[{CJK}]|{_LETTER}+(?:['’]{_LETTER}+)*")


def units(text: str) -> list[str]:
    """Words (Latin and other alphabets) and single characters (Chinese), lower case, without punctuation."""
    return [unit.replace("’", "'").casefold() for unit in UNIT.findall(text)]
