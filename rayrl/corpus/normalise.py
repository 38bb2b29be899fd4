"""One way to write a text: Unicode composed, one kind of line end and space, no invisible or private characters.

Chinese punctuation stays full-width (NFKC would make a comma of it); full-width letters and digits become plain ones.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_CONTROL = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd"
_INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\uffa0\ufeff"
_NO_CHARACTER = "\ufff0-\uffff\ufdd0-\ufdef\ue000-\uf8ff\ud800-\udfff\U000f0000-\U0010ffff"
_VARIANT = "\ufe00-\ufe0f\U000e0000-\U000e0fff"
"""Marks of how the character before is drawn."""
_SPACE = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_ODD = re.compile(f"[{_CONTROL}{_INVISIBLE}{_NO_CHARACTER}{_VARIANT}{_SPACE}\r\t\u0085\u2028\u2029０-９Ａ-Ｚａ-ｚ]")
_SPACES, _LINES = re.compile(" {2,}"), re.compile("\n{3,}")
_BINARY = re.compile(f"[{_CONTROL}]")
BINARY_SHARE = 0.01
"""More control and replacement characters than this are no text."""


def is_binary(text: str) -> bool:
    """Whether so much of it is control characters that it can't be text."""
    found = len(_BINARY.findall(text))
    return found > 2 and found > BINARY_SHARE * len(text)


def normalise(text: str) -> str:
    """The text without what readers can't see. Example: "体温　３８.５\\u200b℃ \\r\\n" -> "体温 38.5℃" """
    if _ODD.search(text):
        text = _ODD.sub(_plain, text.replace("\r\n", "\n"))
    # Afterwards, since an accent may have stood behind something invisible.
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if "  " in text:
        text = _SPACES.sub(" ", text)
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    if "\n\n\n" in text:
        text = _LINES.sub("\n\n", text)
    return text.strip()


def text_key(text: str) -> bytes:
    """16 bytes, equal for normalised texts that differ in spaces, line ends and the case of a to z alone."""
    plain = text.encode("utf-8", "surrogatepass").translate(None, b" \n").lower()
    return hashlib.blake2b(plain, digest_size=16).digest()


def _plain(found: re.Match[str]) -> str:
    character = found.group()
    if character in "\r\x0b\x0c\u0085\u2028\u2029":
        return "\n"
    if character == "\t" or character.isspace():
        return " "
    if "０" <= character <= "ｚ":
        return chr(ord(character) - 0xFEE0)
    return ""
