"""Files of every form to raw documents: what is in them, undecided whether it is any good.

A damaged or cut file gives what can be read of it, and then says where it ended. Memory is bounded by the largest row
that is permitted, whatever the file's size. HTML to text is resiliparse's (Bevendorff et al. 2018,
https://resiliparse.chatnoir.eu), Parquet Arrow's; packed files, encodings and web archives: packed.py, encoding.py,
warc.py.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from rayrl.corpus import warc
from rayrl.corpus.encoding import Recoded, decode, encoding_of, text_encoding
from rayrl.corpus.packed import DAMAGED, Damaged, Unpacked, Watched
from rayrl.corpus.pieces import Piece
from rayrl.corpus.records import Rejected
from rayrl.data.readers.text import is_wide_encoding
from rayrl.data.storage import Place

_HEAD = 1 << 16
_BUFFER = 1 << 20
_ROWS = 256
_BATCH_BYTES = 64 << 20
_PAGES = ("text/html", "application/xhtml+xml", "text/plain")
NO_PAGE = "the response is no page"
NO_TEXT = "the page holds no text"
NO_FAULT = frozenset({NO_PAGE, NO_TEXT})
"""Reasons that are no fault of the input."""
_UNKNOWN_ENCODING = "bytes of no known encoding"
_BLOCK = re.compile("<(/?)(?:div|article)\\b", re.IGNORECASE)
_DEEPEST = 256
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Found:
    """A raw document."""

    position: int
    text: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """What the row says beside: `id`, `title`, `source`, `genre`, `language`."""


def contents(piece: Piece, encoding: str, columns: Mapping[str, str], max_bytes: int) -> Iterator[Found | Rejected]:
    """The piece's documents, and what can't be one with the reason. Raises OSError where the store doesn't answer."""
    with Place(piece.uri).open() as raw:
        if piece.form == "parquet":
            yield from _parquet(piece, raw, columns, max_bytes)
        elif piece.form == "warc":
            yield from _warc(piece, _stream(raw, piece.codec), max_bytes)
        elif piece.form == "html":
            yield from _html_file(piece, _stream(raw, piece.codec), encoding, max_bytes)
        else:
            yield from _text_file(piece, raw, encoding, columns, max_bytes)


def _stream(raw: pa.NativeFile, codec: str | None) -> io.BufferedReader:
    raw.seek(0)
    return io.BufferedReader(Unpacked(raw, codec) if codec is not None else raw, _BUFFER)


def _text_file(
    piece: Piece, raw: pa.NativeFile, encoding: str, columns: Mapping[str, str], max_bytes: int
) -> Iterator[Found | Rejected]:
    # From the file's first bytes, so that all its ranges are read alike.
    encodings = [encoding] if encoding != "auto" else ["utf-8", encoding_of(_head(raw, piece.codec))]
    stream = _stream(raw, piece.codec)
    if is_wide_encoding(encodings[-1]):
        stream = io.BufferedReader(Recoded(stream, encodings[-1]), _BUFFER)
        encodings = ["utf-8"]
    if piece.form == "jsonl":
        for position, line in _lines(piece, stream, max_bytes):
            yield line if isinstance(line, Rejected) else _json_line(piece, position, line, encodings, columns)
    elif piece.form == "json":
        yield from _json_file(piece, stream, encodings, columns, max_bytes)
    elif piece.plain == "whole":
        yield from _whole(piece, stream, encodings, max_bytes)
    else:
        yield from _plain(piece, stream, encodings, max_bytes)


def _head(raw: pa.NativeFile, codec: str | None) -> bytes:
    """The first bytes, unpacked."""
    try:
        return bytes((Unpacked(raw, codec) if codec is not None else raw).read(_HEAD))
    except Damaged:  # told when it is read
        return b""


def _lines(piece: Piece, stream: io.BufferedIOBase, max_bytes: int) -> Iterator[tuple[int, bytes | Rejected]]:
    """Lines that begin in the piece's range, each with its first byte's position."""
    position = piece.start
    end = piece.end if piece.end is not None else 1 << 62
    if position:
        stream.seek(position - 1)
        position += _skip_line(stream, end - position + 1) - 1  # the line that began before is the range before's
    while position < end:
        try:
            line = stream.readline(max_bytes + 1)
            whole = len(line) <= max_bytes or line.endswith(b"\n")
            more = 0 if whole else _skip_line(stream, end - position - len(line))
        except Damaged:
            yield position, Rejected(piece.uri, position, DAMAGED)
            return
        if not line:
            return
        if not whole:
            yield position, Rejected(piece.uri, position, f"a line of more than {max_bytes >> 20} MB")
        elif line.strip():
            yield position, line
        position += len(line) + more


def _skip_line(stream: io.BufferedIOBase, most: int) -> int:
    """Reads to the end of the line, or so many bytes; how many that was."""
    skipped = 0
    while skipped < most and (part := stream.readline(min(_BUFFER, most - skipped))):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _json_line(
    piece: Piece, position: int, line: bytes, encodings: list[str], columns: Mapping[str, str]
) -> Found | Rejected:
    if encodings[0] == "utf-8":
        try:
            return _row(piece, position, msgspec.json.decode(line), columns)
        except (ValueError, RecursionError):
            pass  # Python's own reader takes more, such as half a character
    text = decode(line, *encodings)
    if text is None:
        return Rejected(piece.uri, position, _UNKNOWN_ENCODING)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Rejected(piece.uri, position, "not JSON")
    return _row(piece, position, value, columns)


def _row(piece: Piece, position: int, value: Any, columns: Mapping[str, str]) -> Found | Rejected:
    if not isinstance(value, Mapping):
        return Rejected(piece.uri, position, "the row is no mapping")
    text = value.get(columns["text"]) if "text" in columns else value.get("text", value.get("content"))
    if not isinstance(text, str):
        return Rejected(piece.uri, position, f"{columns.get('text', 'text')} is missing or no text")
    named = {"id": "id"} | {key: name for key, name in columns.items() if key != "text"}
    said = {key: str(value[name]) for key, name in named.items() if isinstance(value.get(name), (str, int))}
    return Found(position, text, {key: _whole_characters(what) for key, what in said.items()})


def _whole_characters(text: str) -> str:
    """Without halves of characters, which JSON may hold and no file."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _parquet(
    piece: Piece, raw: pa.NativeFile, columns: Mapping[str, str], max_bytes: int
) -> Iterator[Found | Rejected]:
    watched = Watched(raw)
    begin = 0
    try:
        with pq.ParquetFile(pa.PythonFile(watched, mode="r")) as file:
            for number in range(file.num_row_groups):
                yield from _row_group(piece, file, number, begin, watched, columns, max_bytes)
                begin += file.metadata.row_group(number).num_rows
    except (OSError, pa.ArrowException, UnicodeDecodeError):  # names of columns, too
        watched.check()
        yield Rejected(piece.uri, begin, DAMAGED)


def _row_group(
    piece: Piece,
    file: pq.ParquetFile,
    number: int,
    begin: int,
    watched: Watched,
    columns: Mapping[str, str],
    max_bytes: int,
) -> Iterator[Found | Rejected]:
    position = begin
    group = file.metadata.row_group(number)
    rows = max(1, min(_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
    names = {*columns.values(), "text", "content", "id"}.intersection(file.schema_arrow.names)
    try:
        for batch in file.iter_batches(batch_size=rows, row_groups=[number], columns=sorted(names)):
            for row in range(batch.num_rows):
                yield _parquet_row(piece, position, batch.slice(row, 1), columns, max_bytes)
                position += 1
    except (OSError, pa.ArrowException):
        watched.check()
        yield Rejected(piece.uri, position, DAMAGED)


def _parquet_row(
    piece: Piece, position: int, row: pa.RecordBatch, columns: Mapping[str, str], max_bytes: int
) -> Found | Rejected:
    try:
        (value,) = row.to_pylist()
    except UnicodeDecodeError:
        return Rejected(piece.uri, position, _UNKNOWN_ENCODING)
    if sum(len(what) for what in value.values() if isinstance(what, str)) > max_bytes:
        return Rejected(piece.uri, position, f"a row of more than {max_bytes >> 20} MB")
    return _row(piece, position, value, columns)


def _read(stream: io.BufferedIOBase, max_bytes: int) -> tuple[bytes, bool]:
    """The file, or a byte more than is permitted; whether it is damaged after that."""
    raw = bytearray()
    try:
        while len(raw) <= max_bytes and (part := stream.read1(min(_BUFFER, max_bytes + 1 - len(raw)))):
            raw += part
    except Damaged:
        return bytes(raw), True
    return bytes(raw), False


def _whole(piece: Piece, stream: io.BufferedIOBase, encodings: list[str], max_bytes: int) -> Iterator[Found | Rejected]:
    raw, damaged = _read(stream, max_bytes)
    if len(raw) > max_bytes:
        yield Rejected(piece.uri, 0, f"a file of more than {max_bytes >> 20} MB")
        return
    if raw or not damaged:
        yield _text(piece, 0, raw, encodings)
    if damaged:
        yield Rejected(piece.uri, len(raw), DAMAGED)


def _json_file(
    piece: Piece, stream: io.BufferedIOBase, encodings: list[str], columns: Mapping[str, str], max_bytes: int
) -> Iterator[Found | Rejected]:
    """A list of rows, one row, or a row a line under another name."""
    raw, damaged = _read(stream, max_bytes)
    text = decode(raw, *encodings) if len(raw) <= max_bytes else None
    if text is None:
        why = f"a file of more than {max_bytes >> 20} MB; write it as JSONL"
        yield Rejected(piece.uri, 0, why if len(raw) > max_bytes else _UNKNOWN_ENCODING)
        return
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip().startswith("["):
            yield from _broken_list(piece, text, columns, DAMAGED if damaged else "not JSON from here on")
            return
        for position, line in _lines(piece, io.BytesIO(raw), max_bytes):
            yield line if isinstance(line, Rejected) else _json_line(piece, position, line, encodings, columns)
        if damaged:
            yield Rejected(piece.uri, len(raw), DAMAGED)
        return
    for number, value in enumerate(values if isinstance(values, list) else [values]):
        yield _row(piece, number, value, columns)


def _broken_list(piece: Piece, text: str, columns: Mapping[str, str], why: str) -> Iterator[Found | Rejected]:
    """The rows before the fault."""
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    for number in itertools.count():
        try:
            value, at = decoder.raw_decode(text, _BETWEEN.match(text, at).end())  # type: ignore[union-attr]
        except (ValueError, RecursionError):
            yield Rejected(piece.uri, number, why)
            return
        yield _row(piece, number, value, columns)


def _plain(piece: Piece, stream: io.BufferedIOBase, encodings: list[str], max_bytes: int) -> Iterator[Found | Rejected]:
    """Lines, or paragraphs between empty lines."""
    lines: list[bytes] = []
    begin = expected = piece.start
    size = 0

    def paragraph() -> Found | Rejected:
        if size > max_bytes + 1:  # the line end
            return Rejected(piece.uri, begin, f"a paragraph of more than {max_bytes >> 20} MB")
        return _text(piece, begin, b"".join(lines), encodings)

    for position, line in _lines(piece, stream, max_bytes):
        if size and (isinstance(line, Rejected) or position != expected or piece.plain == "lines"):
            yield paragraph()
            lines, size = [], 0
        if isinstance(line, Rejected):
            yield line
            continue
        begin = begin if size else position
        size += len(line)
        expected = position + len(line)
        if size <= max_bytes + 1:
            lines.append(line)
    if size:
        yield paragraph()


def _text(piece: Piece, position: int, raw: bytes, encodings: list[str]) -> Found | Rejected:
    text = decode(raw, *encodings)
    return Rejected(piece.uri, position, _UNKNOWN_ENCODING) if text is None else Found(position, text)


def _html_file(piece: Piece, stream: io.BufferedIOBase, encoding: str, max_bytes: int) -> Iterator[Found | Rejected]:
    raw, damaged = _read(stream, max_bytes)
    if len(raw) > max_bytes:
        yield Rejected(piece.uri, 0, f"a file of more than {max_bytes >> 20} MB")
        return
    if raw or not damaged:
        yield _html(piece.uri, 0, raw, None if encoding == "auto" else encoding, {})
    if damaged:
        yield Rejected(piece.uri, len(raw), DAMAGED)


def _html(uri: str, position: int, raw: bytes, charset: str | None, said: Mapping[str, str]) -> Found | Rejected:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import detect_encoding

    named = detect_encoding(raw, from_html_meta=True)
    if named == detect_encoding(raw):  # what the page says, or else a guess, for which we have a better one
        named = encoding_of(raw)
    text = decode(raw, *filter(None, ("utf-8", charset or text_encoding(named))))
    if text is None:
        return Rejected(uri, position, _UNKNOWN_ENCODING)
    text = extract_plain_text(text, main_content=not _is_deep(text))
    return Found(position, text, said) if text.strip() else Rejected(uri, position, NO_TEXT)


def _is_deep(html: str) -> bool:
    """Whether the page is nested so that it would take minutes to find its main part."""
    depth = 0
    for tag in _BLOCK.finditer(html):
        depth = max(0, depth + (-1 if tag.group(1) else 1))
        if depth > _DEEPEST:
            return True
    return False


def _warc(piece: Piece, stream: io.BufferedIOBase, max_bytes: int) -> Iterator[Found | Rejected]:
    """Texts of conversion records (WET), pages of responses; other records aren't documents."""
    for number, record in enumerate(warc.records(stream, max_bytes)):
        if isinstance(record, str):
            yield Rejected(piece.uri, number, record)
        else:
            yield _record(piece, number, record, max_bytes)


def _record(piece: Piece, number: int, record: warc.Record, max_bytes: int) -> Found | Rejected:
    uri = record.headers.get("warc-target-uri")
    said = {"id": uri} if uri else {}
    if record.headers["warc-type"] == "conversion":
        text = decode(record.block, "utf-8")
        return Rejected(piece.uri, number, _UNKNOWN_ENCODING) if text is None else Found(number, text, said)
    page = warc.page(record.block, max_bytes) if record.is_http else None
    if page is None or page.kind not in _PAGES or not page.is_success:
        return Rejected(piece.uri, number, NO_PAGE)
    if len(page.body) > max_bytes:
        return Rejected(piece.uri, number, f"a page of more than {max_bytes >> 20} MB")
    charset = text_encoding(page.charset)
    if page.kind == "text/plain":
        text = decode(page.body, *filter(None, ("utf-8", charset)))
        return Rejected(piece.uri, number, _UNKNOWN_ENCODING) if text is None else Found(number, text, said)
    return _html(piece.uri, number, page.body, charset, said)
