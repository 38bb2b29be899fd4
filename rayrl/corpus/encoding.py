"""Which encoding bytes are in, and their text.

UTF-8 is told by itself; the rest is uchardet's guess (through resiliparse), which takes short Chinese for anything:
so bytes that make likely Chinese in GBK or Big5 are Chinese.
"""

from __future__ import annotations

import codecs
import io
import re

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Of UTF-16 and UTF-32 the mark itself says the order of bytes. The first that fits counts."""
_ASCII = bytes(range(128))
_GB = re.compile(rb"[\xa1-\xa3\xb0-\xf7][\xa1-\xfe]")
_GB_FREQUENT = re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]")
"""Punctuation and GB2312's first level: in text, nine of ten characters."""
_BIG5_FREQUENT = re.compile(rb"(?:[\xa1-\xc6][\x40-\x7e\xa1-\xfe]){2,}")
"""Two or more, since `Ä` and a letter are one."""
_LIKELY = {"gb18030": ((_GB, 0.9), (_GB_FREQUENT, 0.6)), "big5": ((_BIG5_FREQUENT, 0.9),)}
"""Which shares of the bytes beyond ASCII are likely Chinese."""
_SURE = frozenset({"gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "iso2022_jp", "koi8-r"})
_BAD_SHARE = 0.1
"""More of the characters beyond ASCII than this can't be damage: it is another encoding."""
_CHUNK = 1 << 16


def encoding_of(raw: bytes) -> str:
    """`utf-8`, `gb18030`, `big5`, `utf-16` ...: what the bytes are most likely in."""
    from resiliparse.parse.encoding import detect_encoding

    for mark, name in _MARKS.items():
        if raw.startswith(mark):
            return name
    if _decoded(raw, "utf-8") is not None:
        return "utf-8"
    found = text_encoding(str(detect_encoding(raw))) or "utf-8"
    found = "gb18030" if found in ("gbk", "gb2312") else found
    return found if found in _SURE else _chinese(raw, *_LIKELY) or found


def decode(raw: bytes, *encodings: str) -> str | None:
    """The text in the first encoding that it can be in, or in another that was mixed in; None where it is in none."""
    for name in encodings:
        if name in _LIKELY:
            name = _chinese(raw, name, *_LIKELY) or name
        text = _decoded(raw, name)
        if text is not None:
            break
    else:
        text = _decoded(raw, encoding_of(raw))
    return None if text is None else text.removeprefix("\ufeff")


def text_encoding(name: str | None) -> str | None:
    """Python's name of an encoding of text that somebody else named; None where there is none."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    try:
        known = map_encoding_to_html5(name.strip(" \"'"), fallback_utf8=False) if name else None
        return codecs.lookup(known).name if known else None
    except (LookupError, ValueError):
        return None


def has_wide_mark(raw: bytes) -> bool:
    """Whether a file that begins so is in UTF-16 or UTF-32."""
    return raw.startswith(tuple(mark for mark, name in _MARKS.items() if name != "utf-8"))


class Recoded(io.RawIOBase):
    """A stream in another encoding as one in UTF-8, whose lines can be found."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._waiting = b""
        self._ended = False

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As much as there is, and room for."""
        while not self._waiting and not self._ended:
            raw = self._stream.read1(_CHUNK)
            self._ended = not raw
            self._waiting = self._decoder.decode(raw, self._ended).encode("utf-8", "replace")
        part, self._waiting = self._waiting[: len(buffer)], self._waiting[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _decoded(raw: bytes, encoding: str) -> str | None:
    """The text without the bytes that are damaged; None where they are more than a little damage."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        begin = raw[: error.start]
        if error.end == len(raw) < error.start + 4 and not begin.isascii():  # a character is cut, nothing else
            return begin.decode(encoding)
    text = raw.decode(encoding, "replace")
    bad = text.count("\ufffd")
    return None if bad > _BAD_SHARE * (len(text) - len(text.encode("ascii", "ignore"))) else text


def _chinese(raw: bytes, *encodings: str) -> str | None:
    """The first of the encodings in which the bytes are likely Chinese."""
    sample = raw[:_CHUNK]
    return next((name for name in encodings if all(_has(sample, *which) for which in _LIKELY[name])), None)


def _has(raw: bytes, characters: re.Pattern[bytes], least: float) -> bool:
    """Whether so much of the bytes beyond ASCII are in such characters."""
    inside = b"".join(characters.findall(raw))
    return len(inside.translate(None, _ASCII)) >= least * max(1, len(raw.translate(None, _ASCII)))
