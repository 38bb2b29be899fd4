"""A text's sentences, nothing left out: their concatenation is the text.

sentencex (Wikimedia) cuts languages with spaces; Chinese and Japanese are cut here, since it takes the full stop of a
numbered list ("2. ...") for the end of one.
"""

from __future__ import annotations

import re
from itertools import pairwise

from rayrl.corpus.lexicon import BY_CHARACTER

_CHINESE = re.compile(
    r"""[。！？；…!?;\n]+[”’」』）)\]】》〉"']*\s*"""  # closing marks stay with their sentence
    r"""|(?<=[\u3400-\u9fff”）)])\.(?=[\s\u3400-\u9fff])\s*""",  # a half-width full stop between Chinese characters
)
_CLAUSE = re.compile(r"[，,、：:—]+\s*|\s+")


def sentences(text: str, language: str) -> list[str]:
    """Example: ("头痛三天。吃什么药？", "zh") -> ["头痛三天。", "吃什么药？"]"""
    if language in BY_CHARACTER and language != "ko":
        cuts = [found.end() for found in _CHINESE.finditer(text)]
    else:
        from sentencex import get_sentence_boundaries

        code = language.partition("-")[0]
        cuts = [found["start_index"] for found in get_sentence_boundaries(code if code != "und" else "en", text)]
    return _cut(text, cuts)


def pieces(sentence: str, max_chars: int) -> list[str]:
    """A sentence in pieces of at most `max_chars`, cut after the last comma or space of their second half, if any."""
    found, start = [], 0
    while len(sentence) - start > max_chars:
        cuts = [match.end() for match in _CLAUSE.finditer(sentence, start + max_chars // 2, start + max_chars)]
        end = cuts[-1] if cuts else start + max_chars
        found.append(sentence[start:end])
        start = end
    return [*found, sentence[start:]] if start < len(sentence) else found


def _cut(text: str, cuts: list[int]) -> list[str]:
    """Parts between cuts; spaces and empty lines alone are no part, they go with the one before."""
    edges = sorted({0, len(text), *(cut for cut in cuts if 0 < cut < len(text))})
    found: list[str] = []
    for start, end in pairwise(edges):
        part = text[start:end]
        if found and not part.strip():
            found[-1] += part
        else:
            found.append(part)
    return found
