"""Web archives (WARC, WET): their records, found again after a damaged one, and the pages of responses.

A record is given when it is whole: of its length, and with the next one, or the end, after it. HTTP is FastWARC's
(Bevendorff et al. 2018, https://resiliparse.chatnoir.eu).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rayrl.corpus.packed import DAMAGED, Damaged

_LINE = 1 << 16
_BUFFER = 1 << 20
_WANTED = ("conversion", "response")
_HEAD = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n"


@dataclass(frozen=True)
class Record:
    """A conversion (text) or a response (page). Names of headers are in small letters."""

    headers: Mapping[str, str]
    block: bytes

    @property
    def is_http(self) -> bool:
        """Whether the block is a server's answer with its own headers."""
        said = self.headers.get("content-type", "")
        return self.headers["warc-type"] == "response" and (said.startswith("application/http") or not said)


@dataclass(frozen=True)
class Page:
    """What a server answered, unpacked."""

    status: int | None
    kind: str
    charset: str | None
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether it is what was asked for."""
        return self.status is None or self.status // 100 == 2


def records(stream: io.BufferedIOBase, max_bytes: int) -> Iterator[Record | str]:
    """Conversions and responses; of what can't be read, the reason."""
    try:
        yield from _records(stream, max_bytes)
    except Damaged:
        yield DAMAGED


def _records(stream: io.BufferedIOBase, max_bytes: int) -> Iterator[Record | str]:
    lost = False
    line = stream.readline(_LINE)
    while line:
        if not line.startswith(b"WARC/"):
            if not lost and line.strip(b"\r\n\0 "):
                lost = True
                yield DAMAGED
            at = line.find(b"WARC/1.")
            line = line[at:] if at > 0 else stream.readline(_LINE)
            continue
        headers = _headers(stream)
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            lost = True
            yield DAMAGED
            line = stream.readline(_LINE)
            continue
        wanted = headers.get("warc-type") in _WANTED
        taken = wanted and int(length) <= max_bytes
        block, size = _read(stream, int(length), taken)
        line = stream.readline(_LINE)
        lost = size < int(length) or bool(line.strip() and not line.startswith(b"WARC/"))
        if lost:
            yield DAMAGED
        elif taken:
            yield Record(headers, block)
        elif wanted:
            yield f"a record of more than {max_bytes >> 20} MB"


def page(block: bytes, max_bytes: int) -> Page | None:
    """The answer in a response; None where there is none. Of a longer one, a byte more than `max_bytes`."""
    from fastwarc.warc import WarcRecord

    # Many archives keep the headers of packed bodies beside unpacked ones.
    for coding in ("all", "content", "transfer", "none"):
        record = WarcRecord.from_bytes(_HEAD % len(block) + block + b"\r\n\r\n")
        try:
            record.parse_http(auto_decode=coding, quirks_mode=True)
            body = b""
            while len(body) <= max_bytes and (part := record.reader.read(max_bytes + 1 - len(body))):
                body += part
        except OSError:
            continue
        kind = (record.http_content_type or "text/html").lower()
        return Page(record.http_headers.status_code, kind, record.http_charset, body)
    return None


def _headers(stream: io.BufferedIOBase) -> dict[str, str]:
    """Of a record; empty where they don't end."""
    found: dict[str, str] = {}
    left = _LINE
    while left > 0 and (line := stream.readline(left)):
        left -= len(line)
        if not line.strip():
            return found
        name, _, value = line.decode("utf-8", "replace").partition(":")
        found.setdefault(name.strip().lower(), value.strip())
    return {}


def _read(stream: io.BufferedIOBase, length: int, kept: bool) -> tuple[bytes, int]:
    """So much of the stream, if it is kept, and how much there was."""
    if kept:
        block = stream.read(length)
        return block, len(block)
    left = length
    while left and (part := stream.read(min(left, _BUFFER))):
        left -= len(part)
    return b"", length - left
