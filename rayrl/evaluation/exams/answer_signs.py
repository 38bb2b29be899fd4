"""A model's answer made ready for extract.py: what was said, as plain text, with a sign for every option's text in it.

A sign is a private character, so that no letter or word inside an option's text is taken for something the answer says:
"答案是：维生素A" names an option, not the letter A. Left out: what the answer chooses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from rayrl.evaluation.exams import answer_patterns as words

_FIRST_SIGN = 0xE000
_LOWERED = 16
"""How much higher the sign is where the answer begins the text in lower case, against the option: "a diuretic"."""


def spoken(answer: str) -> str:
    """The answer without its thoughts: what follows the last one, and nothing of one that never ends."""
    begin, end = 0, len(answer)
    for found in words.THOUGHT.finditer(answer):
        if found.group(1):
            begin, end = found.end(), len(answer)
        elif end == len(answer):
            end = found.start()
    return answer[begin:end]


def plain(text: str) -> str:
    """The text with plain characters, single spaces and no blank lines, without markdown, quotes and LaTeX.

    Character by character: Unicode's own normal forms take quadratic time for a text of nothing but accents.
    """
    text = words.LATEX.sub(" ", words.BOXED.sub("\nanswer: ", text))
    text = words.QUOTE.sub("", text.replace("\\n", "\n").replace("\r", "\n").translate(words.CHARACTERS))
    return re.sub(r"\n[ \n]*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def with_signs(text: str, options: Mapping[str, str]) -> str:
    """The text with a sign for every option's text in it, the longest first. `text`: a plain one."""
    texts = [plain(options[letter]).replace("\n", " ").strip(" .。;,") for letter in sorted(options)]
    counts = Counter(one.casefold() for one in texts)
    signs = {}
    for number, one in enumerate(texts):
        # A text that is an option's letter may as well be meant as that letter; one that two options have, as either.
        if re.search(r"\w", one) and one.upper() not in options and counts[one.casefold()] == 1:
            signs[one] = chr(_FIRST_SIGN + number)
    if not signs:
        return text
    longest_first = sorted(signs, key=len, reverse=True)
    pattern = re.compile("|".join(f"({_as_word(one)})" for one in longest_first), re.IGNORECASE)

    def sign(found: re.Match[str]) -> str:
        one = longest_first[(found.lastindex or 1) - 1]
        return chr(ord(signs[one]) + _LOWERED * (found.group()[0] != one[0]))

    return pattern.sub(sign, text)


def letter_of(sign: str, letters: str) -> str:
    """The letter of the option that a sign stands for. `letters`: those of all options, ascending."""
    return letters[(ord(sign) - _FIRST_SIGN) % _LOWERED]


def is_lowered(sign: str) -> bool:
    """Whether the answer begins the text in lower case, against the option."""
    return ord(sign) >= _FIRST_SIGN + _LOWERED


def _as_word(text: str) -> str:
    """A pattern of an option's text as a word of its own; spaces may be missing between Chinese and Latin."""
    han = words.HAN
    is_han = re.search(f"[{han}]", text) is not None
    parts = re.split(rf" |(?<=[{han}])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[{han}])", text)
    body = ("[ \n]?" if is_han else "[ \n]").join(map(re.escape, parts))
    if len(text) == 1 and is_han:
        return rf"(?:(?<![{han}])|(?<=[是为选])){body}(?![{han}])"
    if text.isdigit():
        return rf"(?<![A-Za-z0-9])(?<!\d[.,]){body}(?![A-Za-z0-9%]|[.,]\d)"
    before = r"(?<![A-Za-z0-9])(?<!\d\.)" if text[0].isascii() and text[0].isalnum() else ""
    behind = r"(?![A-Za-z0-9]|\.\d)" if text[-1].isascii() and text[-1].isalnum() else ""
    plural = "s?" if text[-1].isascii() and text[-1].isalpha() and len(text) > 3 else ""
    return f"{before}{body}{plural}{behind}"
