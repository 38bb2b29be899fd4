"""From bytes to text: which encoding a file is in, told from its bytes.

UTF-8 and GBK exclude each other in practice: a line of Chinese in the one is hardly ever valid in the other. The
decision is taken for the whole file by a vote of its lines, so that a damaged line is rejected, not read as another
encoding's nonsense. GB18030 contains GBK and GB2312 and is used for all three.
"""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

_VOTERS = 1000
_VOTE_BYTES = 1 << 14
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")

_MARK = "rayrl-mark-damage"
codecs.register_error(_MARK, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]
"""What isn't UTF-16 becomes the byte 0xff, which isn't UTF-8 either, so that its line is found and rejected."""


def read_text(path: Path, encoding: str = "auto") -> tuple[bytes, str]:
    """The file's bytes and their encoding, in which a line feed is the byte 0x0a and nothing else.

    Out of gzip where it is packed, in UTF-8 where it was UTF-16 or UTF-32, without a byte order mark.
    """
    raw = path.read_bytes()
    if raw.startswith(b"\x1f\x8b"):
        raw = gzip.decompress(raw)
    if is_wide(raw, encoding):
        named = encoding != "auto" and is_wide_encoding(encoding)
        text = raw.decode(encoding if named else "utf-16", _MARK)
        text = text.removeprefix("\ufeff")
        return text.encode("utf-8", "surrogateescape"), "utf-8"
    raw = raw.removeprefix(codecs.BOM_UTF8)
    return raw, choose_encoding(raw.split(b"\n")) if encoding == "auto" else encoding


def is_wide(raw: bytes, encoding: str = "auto") -> bool:
    """Whether a text that begins so is in UTF-16 or UTF-32, where a line feed isn't always the byte 0x0a."""
    return (encoding != "auto" and is_wide_encoding(encoding)) or raw.startswith(_UTF16_MARKS)


def is_wide_encoding(name: str) -> bool:
    """Whether a byte that looks like a line feed may be a part of another character."""
    return codecs.lookup(name).name.startswith(("utf-16", "utf-32"))


def choose_encoding(lines: Iterable[bytes]) -> str:
    """`utf-8` or `gb18030`, whichever more of the first lines that aren't plain ASCII are written in."""
    foreign = (line for line in lines if not line.removeprefix(codecs.BOM_UTF8).isascii())
    votes = [_vote(line) for line in islice(foreign, _VOTERS)]
    return "gb18030" if votes.count("gb18030") > votes.count("utf-8") else "utf-8"


def decode(raw: bytes, encoding: str) -> str:
    """The text; a byte that isn't of the encoding becomes a lone surrogate, which `why_not_decoded` finds."""
    return raw.decode(encoding, "surrogateescape")


def why_not_decoded(text: str, encoding: str) -> str | None:
    """Where a text that `decode` gave holds a byte that isn't of the encoding, or None."""
    found = _ESCAPED_BYTE.search(text)
    if found is None:
        return None
    return f"not {encoding.upper()}: byte 0x{ord(found.group()) - 0xDC00:02x} at character {found.start() + 1}"


def _vote(line: bytes) -> str | None:
    """The encoding of a line that isn't ASCII; some of its bytes may be damaged, and the last character cut."""
    first = _BEYOND_ASCII.search(line).start()  # type: ignore[union-attr]
    line = line[first : first + _VOTE_BYTES]
    foreign = [character for character in line.decode("utf-8", "replace") if not character.isascii()]
    if foreign.count("\ufffd") < 0.25 * len(foreign):
        return "utf-8"
    # Chinese text is mostly characters of GB2312; another encoding's bytes, read as GB18030, mostly aren't.
    foreign = [character for character in line.decode("gb18030", "replace") if not character.isascii()]
    common = sum(_in_gb2312(character) for character in foreign)
    return "gb18030" if common >= 0.5 * len(foreign) else None


def _in_gb2312(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False
