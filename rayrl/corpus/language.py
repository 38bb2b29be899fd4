"""Which language a text is in: by its script where that decides, by words and py3langid among those in Latin letters.

Chinese is told into simplified (`zh`) and traditional (`zh-Hant`) by characters that only one of GB2312 and Big5 holds,
the national standards of the two. Only the beginning of a text is looked at.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_LOOKED_AT = 400
_GUESSED_FROM = 400
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3040-\u30ff]")
_HANGUL = re.compile("[\uac00-\ud7af]")
_LATIN = re.compile("[A-Za-zÀ-ɏ]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile("[A-Za-z]+")
_FREQUENT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you
were her all she there would their we him been has when who will more no if out so said what up its about into than them
can only other new some could these two may then do any my now such like our over man me even most made after also did
many before must through where your how i a
"""
_ENGLISH = frozenset(_FREQUENT.split())
_TOLD_APART = frozenset(
    "ar bg cs da de el en es fa fi fr he hi hu id it lt nl no pl pt ro ru sk sv th tr uk vi zh".split(" ")  # noqa: SIM905
)
"""Languages that py3langid may answer: of a hundred, it takes short texts for rare ones."""
UNKNOWN = "und"


def identify(text: str) -> str:
    """`zh`, `zh-Hant`, `ja`, `ko`, `en` or another two-letter code; `und` where there are no letters."""
    sample = text[:_LOOKED_AT]
    if sample.isascii():
        return _by_words(sample) if _WORD.search(sample) else UNKNOWN
    letters = len(_LETTER.findall(sample))
    if not letters:
        return UNKNOWN
    han = _HAN.findall(sample)
    kana = len(_KANA.findall(sample))
    if kana >= 0.1 * letters:
        return "ja"
    if len(_HANGUL.findall(sample)) >= 0.3 * letters:
        return "ko"
    # A Chinese character says as much as a short word does.
    if len(han) >= 0.2 * letters:
        return _kind_of_chinese(han)
    return _by_words(sample)


def _kind_of_chinese(han: list[str]) -> str:
    kinds = [_standard(character) for character in han]
    return "zh-Hant" if kinds.count("big5") > kinds.count("gb2312") else "zh"


@lru_cache(maxsize=1 << 14)
def _standard(character: str) -> str:
    """The one standard that holds the character; empty where both or neither do."""
    found = [name for name in ("gb2312", "big5") if _encodes(character, name)]
    return found[0] if len(found) == 1 else ""


def _encodes(character: str, encoding: str) -> bool:
    try:
        return bool(character.encode(encoding))
    except UnicodeEncodeError:
        return False


def _by_words(sample: str) -> str:
    words = [word.lower() for word in _WORD.findall(sample)]
    if len(words) >= 8 and sum(word in _ENGLISH for word in words) >= 0.2 * len(words):
        return "en"
    return str(_identifier().classify(sample[:_GUESSED_FROM])[0])


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(_TOLD_APART)
    return identifier
