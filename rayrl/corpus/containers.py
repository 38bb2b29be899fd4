"""Files of every form to raw documents: what is in them, undecided whether it is any good.

A damaged or cut file gives what can be read of it, and then says where it ended. Memory is bounded by the largest row
that is permitted, whatever the file's size. HTML to text, encodings and WARC are resiliparse's and FastWARC's
(Bevendorff et al. 2018, https://resiliparse.chatnoir.eu), packed files and Parquet Arrow's.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrl.corpus.pieces import Piece
from rayrl.corpus.records import Rejected
from rayrl.data.storage import Place

_HEAD, _PART = 1 << 16, 1 << 12
_BUFFER = 1 << 20
_ROWS = 256
_CUT_OFF = "the file is cut off or damaged"


@dataclass(frozen=True)
class Found:
    """A raw document."""

    position: int
    text: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """What the row says beside: `id`, `title`, `source`, `genre`, `language`."""


def contents(piece: Piece, encoding: str, columns: Mapping[str, str], max_bytes: int) -> Iterator[Found | Rejected]:
    """The piece's documents, and what can't be one with the reason. Raises OSError where the store doesn't answer."""
    if piece.form == "parquet":
        yield from _parquet(piece, columns)
        return
    if encoding == "auto" and piece.form in ("jsonl", "json", "text"):
        encoding = _encoding_of(piece)
    with Place(piece.uri).open() as raw:
        # Where a packed file is cut, what the buffer would have taken is lost.
        stream = io.BufferedReader(_unpacked(raw, piece.codec), _BUFFER if piece.codec is None else _PART)
        if piece.form == "warc":
            yield from _warc(piece, stream, max_bytes)
        elif piece.form in ("html", "json") or (piece.form == "text" and piece.plain == "whole"):
            yield from _whole(piece, stream, encoding, columns, max_bytes)
        elif piece.form == "jsonl":
            for position, line in _lines(piece, stream, max_bytes):
                yield from _json_line(piece, position, line, encoding, columns)
        else:
            yield from _plain(piece, stream, encoding, max_bytes)


def _unpacked(raw: pa.NativeFile, codec: str | None) -> pa.NativeFile:
    return pa.CompressedInputStream(raw, codec) if codec is not None else raw


def _encoding_of(piece: Piece) -> str:
    """From the (unpacked) file's first bytes, so that all its ranges are read alike."""
    head = b""
    with Place(piece.uri).open() as raw, suppress(OSError):  # a damaged one is told of when it is read
        stream = _unpacked(raw, piece.codec)
        while len(head) < _HEAD and (part := bytes(stream.read(_PART))):
            head += part
    return encoding_of(head)


def encoding_of(raw: bytes) -> str:
    """`utf-8`, `gb18030`, `big5`, `utf-16-le` ...: what the bytes are most likely in."""
    from resiliparse.parse.encoding import detect_encoding

    if raw.isascii() and b"\x00" not in raw:
        return "utf-8"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(raw)  # a character cut at the end is no fault
        if b"\x00" not in raw:
            return "utf-8"
    except UnicodeDecodeError:
        pass
    found = str(detect_encoding(raw))
    return "gb18030" if found in ("gbk", "gb2312") else found


def decode(raw: bytes, encoding: str) -> str | None:
    """The text in its file's encoding, or in another where it was mixed in; None where it is in none."""
    for name in (encoding, encoding_of(raw)):
        try:
            return raw.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    return None


def _lines(piece: Piece, stream: Any, max_bytes: int) -> Iterator[tuple[int, bytes | Rejected]]:
    """Lines that begin in the piece's range, each with its first byte's position."""
    position = piece.start
    if position:
        stream.seek(position - 1)
        position += _skip_line(stream) - 1  # the line that began before is the range before's
    while piece.end is None or position < piece.end:
        try:
            line = stream.readline(max_bytes + 1)
            more = _skip_line(stream) if len(line) > max_bytes and not line.endswith(b"\n") else 0
        except OSError as error:
            yield position, Rejected(piece.uri, position, _why(error))
            return
        if not line:
            return
        if more or len(line) > max_bytes + 1:
            yield position, Rejected(piece.uri, position, f"a line of more than {max_bytes >> 20} MB")
        elif line.strip():
            yield position, line
        position += len(line) + more


def _skip_line(stream: Any) -> int:
    """Reads to the end of the line; how many bytes that was."""
    skipped = 0
    while part := stream.readline(_BUFFER):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _json_line(
    piece: Piece, position: int, line: bytes | Rejected, encoding: str, columns: Mapping[str, str]
) -> Iterator[Found | Rejected]:
    if isinstance(line, Rejected):
        yield line
        return
    text = decode(line.removeprefix(codecs.BOM_UTF8), encoding)
    if text is None:
        yield Rejected(piece.uri, position, "bytes of no known encoding")
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        yield Rejected(piece.uri, position, "not JSON")
        return
    yield _row(piece, position, value, columns)


def _row(piece: Piece, position: int, value: Any, columns: Mapping[str, str]) -> Found | Rejected:
    if not isinstance(value, Mapping):
        return Rejected(piece.uri, position, "the row is no mapping")
    text = value.get(columns["text"]) if "text" in columns else value.get("text", value.get("content"))
    if not isinstance(text, str):
        return Rejected(piece.uri, position, f"{columns.get('text', 'text')} is missing or no text")
    named = {"id": "id"} | {key: name for key, name in columns.items() if key != "text"}
    said = {key: value[name] for key, name in named.items() if value.get(name) is not None}
    return Found(position, text, {key: str(what) for key, what in said.items() if isinstance(what, (str, int))})


def _parquet(piece: Piece, columns: Mapping[str, str]) -> Iterator[Found | Rejected]:
    position = 0
    try:
        with Place(piece.uri).open() as raw, pq.ParquetFile(raw) as file:
            wanted = [*columns.values(), "text", "content", "id"]
            names = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=_ROWS, columns=names):
                for row in batch.to_pylist():
                    yield _row(piece, position, row, columns)
                    position += 1
    except (OSError, pa.ArrowException) as error:
        yield Rejected(piece.uri, position, _why(error))


def _whole(
    piece: Piece, stream: Any, encoding: str, columns: Mapping[str, str], max_bytes: int
) -> Iterator[Found | Rejected]:
    """A file that is one document, or one JSON value."""
    try:
        raw = stream.read(max_bytes + 1)
    except OSError as error:
        yield Rejected(piece.uri, 0, _why(error))
        return
    if len(raw) > max_bytes:
        advice = "; write it as JSONL" if piece.form == "json" else ""
        yield Rejected(piece.uri, 0, f"a file of more than {max_bytes >> 20} MB{advice}")
        return
    if piece.form == "html":
        yield _html(piece.uri, 0, raw, None if encoding == "auto" else encoding)
        return
    text = decode(raw.removeprefix(codecs.BOM_UTF8), encoding)
    if text is None:
        yield Rejected(piece.uri, 0, "bytes of no known encoding")
    elif piece.form == "text":
        yield Found(0, text)
    else:
        yield from _json_file(piece, text, columns)


def _json_file(piece: Piece, text: str, columns: Mapping[str, str]) -> Iterator[Found | Rejected]:
    """A list of rows, one row, or a row a line under another name."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        position = 0
        for line in text.splitlines(keepends=True):
            if line.strip():
                yield from _json_line(piece, position, line.encode("utf-8", "surrogatepass"), "utf-8", columns)
            position += len(line)
        return
    for number, value in enumerate(values if isinstance(values, list) else [values]):
        yield _row(piece, number, value, columns)


def _plain(piece: Piece, stream: Any, encoding: str, max_bytes: int) -> Iterator[Found | Rejected]:
    """Lines, or paragraphs between empty lines."""
    if encoding.startswith("utf-16"):
        text = decode(stream.read(max_bytes), encoding)
        stream, encoding = io.BytesIO((text or "").encode("utf-8", "replace")), "utf-8"
    paragraph: list[bytes] = []
    begin = expected = piece.start
    for position, line in _lines(piece, stream, max_bytes):
        apart = position != expected or piece.plain == "lines"
        if paragraph and (apart or isinstance(line, Rejected)):
            yield _text(piece, begin, b"".join(paragraph), encoding)
            paragraph = []
        if isinstance(line, Rejected):
            yield line
            continue
        begin = begin if paragraph else position
        expected = position + len(line)
        paragraph.append(line)
        if sum(map(len, paragraph)) > max_bytes:
            yield Rejected(piece.uri, begin, f"a paragraph of more than {max_bytes >> 20} MB")
            paragraph = []
    if paragraph:
        yield _text(piece, begin, b"".join(paragraph), encoding)


def _text(piece: Piece, position: int, raw: bytes, encoding: str) -> Found | Rejected:
    text = decode(raw.removeprefix(codecs.BOM_UTF8), encoding)
    return Rejected(piece.uri, position, "bytes of no known encoding") if text is None else Found(position, text)


def _html(uri: str, position: int, raw: bytes, charset: str | None) -> Found | Rejected:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    name = charset or detect_encoding(raw, from_html_meta=True) or "utf-8"
    text = extract_plain_text(bytes_to_str(raw, name, fallback_encodings=("utf-8", "gb18030")), main_content=True)
    return Found(position, text) if text.strip() else Rejected(uri, position, "the page holds no text")


def _warc(piece: Piece, stream: Any, max_bytes: int) -> Iterator[Found | Rejected]:
    """Texts of conversion records (WET), pages of responses; other records aren't documents."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    number = 0
    kinds = WarcRecordType.conversion | WarcRecordType.response
    try:
        for number, record in enumerate(ArchiveIterator(_Counted(stream), record_types=kinds, parse_http=True)):
            declared = int(record.headers.get("Content-Length") or 0)
            if declared > max_bytes:
                yield Rejected(piece.uri, number, f"a record of more than {max_bytes >> 20} MB")
                continue
            headers = 0 if not record.is_http else declared - record.content_length
            raw = record.reader.read(max_bytes)
            if headers + len(raw) < declared:
                yield Rejected(piece.uri, number, _CUT_OFF)
                return
            yield _record(piece, number, record, raw)
    except (OSError, ValueError) as error:  # what its bytes hold is anybody's
        yield Rejected(piece.uri, number, _why(error))
        return
    if stream.read(1):
        yield Rejected(piece.uri, number, _CUT_OFF)


class _Counted:
    """A stream that knows where it is, though what it unpacks doesn't."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._position = stream, 0

    def read(self, size: int = -1) -> bytes:
        part: bytes = self._stream.read(size)
        self._position += len(part)
        return part

    def tell(self) -> int:
        return self._position


def _record(piece: Piece, number: int, record: Any, raw: bytes) -> Found | Rejected:
    uri = record.headers.get("WARC-Target-URI")
    said = {"id": uri} if uri else {}
    if record.is_http:
        kind = record.http_content_type or "text/html"
        if kind not in ("text/html", "application/xhtml+xml", "text/plain"):
            return Rejected(piece.uri, number, "the response is no page")
        if kind != "text/plain":
            found = _html(piece.uri, number, raw, record.http_charset)
            return found if isinstance(found, Rejected) else Found(number, found.text, said)
    text = decode(raw, (record.http_charset if record.is_http else None) or "utf-8")
    return Rejected(piece.uri, number, "bytes of no known encoding") if text is None else Found(number, text, said)


def _why(error: BaseException) -> str:
    return f"{_CUT_OFF} ({type(error).__name__})"
