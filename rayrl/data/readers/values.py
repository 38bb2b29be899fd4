"""From files to decoded values: JSONL, JSON, CSV and TSV, Parquet, saved Hugging Face datasets, plain text.

Which of them a file is, its content says before its name does. A value that can't be decoded is a BadLine; what a
value means is not decided here (formats.py).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from rayrl.data.readers.rows import BadLine
from rayrl.data.readers.text import choose_encoding, decode, is_wide, read_text, why_not_decoded
from rayrl.errors import UserError

Values = Iterator[tuple[int, Any]]
TextAs = Literal["paragraphs", "whole", "only_paragraphs", "only_whole"]
_TABLES = (".csv", ".tsv")
_PROSE = (".txt", ".md")
_DIALOGUE_KEYS = ("messages", "conversations", "conversation", "turns", "dialogue", "paragraph")
_ROW_LISTS = (*_DIALOGUE_KEYS, "prompt", "history", "chosen", "rejected")
"""Keys of one row that hold a list of mappings."""
_MOST_LINES = 1000
"""Of one record of a table."""
LARGE_BYTES = 64 << 20
"""A JSONL file from here on isn't read into memory."""
_SAMPLE_BYTES = 1 << 20
"""Of such a file, what tells whether it is JSONL."""
_PACKED = 4
"""How much smaller gzip makes text."""
_BETWEEN = re.compile(r"[\s,]*")


def file_values(path: Path, encoding: str = "auto", text: TextAs = "paragraphs") -> Values:
    """(line, row or item from 1; decoded value or BadLine) of a file's rows, in order.

    Plain text gives {"text": ...}, by paragraphs between blank lines or as a whole; `only_...` take everything for
    plain text. Raises UserError where the file as a whole can't be read.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic == b"PAR1":
            yield from parquet_values(path)
            return
        if not text.startswith("only_") and (large := _large_lines(path, encoding)) is not None:
            yield from large
            return
        if magic in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
            raise UserError(f"{path} is a workbook or an archive; save its tables as CSV, or unpack it")
        raw, encoding = read_text(path, encoding)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if text.startswith("only_"):
        yield from _text_values(decode(raw, encoding), encoding, text.endswith("whole"))
    elif suffix in _TABLES:
        yield from _table_values(decode(raw, encoding), encoding)
    elif _holds_json(raw, encoding, suffix):
        yield from _json_or_jsonl(raw, encoding, suffix)
    else:
        yield from _text_values(decode(raw, encoding), encoding, text.endswith("whole"))


def jsonl_values(file: Path, encoding: str = "utf-8") -> Values:
    """Line number, from 1, and decoded value of every line that isn't blank, read one by one; BadLine where it fails.

    `encoding`: one in which a line feed is the byte 0x0a and nothing else.
    """
    with _opened(file) as lines:
        for number, raw in enumerate(lines, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield number, decode_json(raw, encoding)


def _opened(file: Path) -> Any:
    return gzip.open(file, "rb") if _is_packed(file) else file.open("rb")


def _is_packed(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _large_lines(path: Path, encoding: str) -> Values | None:
    """Rows of a JSONL file that is too large to be read at one time; None where it is no such file."""
    packed, name = _is_packed(path), path.name.removesuffix(".gz")
    if not name.lower().endswith(".jsonl") or path.stat().st_size * (_PACKED if packed else 1) < LARGE_BYTES:
        return None
    with _opened(path) as lines:
        raw = lines.read(_SAMPLE_BYTES).rpartition(b"\n")[0]
        if is_wide(raw, encoding):
            return None
    if encoding == "auto":
        with _opened(path) as lines:
            encoding = choose_encoding(lines)
    if not _mostly_json(raw.removeprefix(b"\xef\xbb\xbf"), encoding):
        return None
    return _whole_or_error(path, jsonl_values(path, encoding))


def _whole_or_error(path: Path, values: Values) -> Values:
    try:
        yield from values
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} can't be read: {error}") from error


def decode_json(raw: bytes, encoding: str = "utf-8") -> Any:
    """The value that a line of JSON stands for, or a BadLine."""
    try:
        return json.loads(raw.decode(encoding))
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}"
        return BadLine(f"not {encoding.upper()}: {where}")
    except json.JSONDecodeError as error:
        return BadLine(f"not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
        return BadLine(f"not readable as JSON: {error}")


def parquet_values(file: Path) -> Values:
    """Row number, from 1, and value of every row; a BadLine where its text isn't UTF-8."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1000):
                for value in _batch_values(batch):
                    number += 1
                    yield number, value
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} can't be read as Parquet after row {number}: {error}") from error


def dataset_values(dataset: Any) -> Values:
    """Row number, from 1, and value of every row of a Hugging Face dataset."""
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        for batch in table.to_batches():
            for value in _batch_values(batch):
                number += 1
                yield number, value


def _batch_values(batch: Any) -> list[Any]:
    """Rows of an Arrow batch ("lossy": of a map's repeated keys the last counts, as in JSON)."""
    try:
        return list(batch.to_pylist(maps_as_pydicts="lossy"))
    except UnicodeDecodeError as error:  # Parquet doesn't check its text; find the rows that are to blame
        if batch.num_rows == 1:
            return [BadLine(f"not UTF-8: byte 0x{error.object[error.start]:02x}")]
        return [value for row in range(batch.num_rows) for value in _batch_values(batch.slice(row, 1))]


def _lines(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines that aren't blank, with their numbers. GB18030 never has a line feed inside a character."""
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _holds_json(raw: bytes, encoding: str, suffix: str) -> bool:
    """Whether this is JSON or JSONL, whole or damaged."""
    if suffix in (".json", ".jsonl"):
        return True
    if suffix not in _PROSE and raw.lstrip()[:1] in (b"{", b"["):
        return True
    return _mostly_json(raw, encoding) or (raw.lstrip()[:1] in (b"{", b"[") and _parses(raw, encoding))


def _mostly_json(raw: bytes, encoding: str) -> bool:
    """Whether half or more of the first lines are a JSON list or mapping each."""
    lines = [line for _, line in islice(_lines(raw), 200)]
    return bool(lines) and 2 * sum(_parses(line, encoding) for line in lines) >= len(lines)


def _parses(raw: bytes, encoding: str) -> bool:
    return isinstance(decode_json(raw, encoding), (dict, list))


def _json_or_jsonl(raw: bytes, encoding: str, suffix: str) -> Values:
    lines = [line for _, line in islice(_lines(raw), 2)]
    if len(lines) == 2 and _parses(lines[0], encoding):
        yield from _jsonl(raw, encoding)
        return
    if not lines:
        return
    text = decode(raw, encoding)
    damaged = why_not_decoded(text, encoding) is not None
    try:
        values = _items(json.loads(text))
    except (ValueError, RecursionError):
        opens_list = raw.lstrip().startswith(b"[")
        if suffix == ".jsonl" or (len(lines) == 1 and not opens_list) or _mostly_json(raw, encoding):
            yield from _jsonl(raw, encoding)  # a damaged first line
            return
        values = _broken_json(text)
    for number, value in values:
        yield number, _decoded(value, encoding) if damaged else value


def _jsonl(raw: bytes, encoding: str) -> Values:
    for number, line in _lines(raw):
        yield number, decode_json(line, encoding)


def _items(value: Any) -> Values:
    """Rows of a whole JSON file: a list's items, a mapping's values with their key as `id`, or the value itself."""
    if isinstance(value, list) and (not value or any(isinstance(item, Mapping | list) for item in value)):
        yield from enumerate(value, start=1)
    elif isinstance(value, Mapping) and value and all(isinstance(item, Mapping) for item in value.values()):
        for number, (key, item) in enumerate(value.items(), start=1):
            yield number, {"id": key, **item}
    elif isinstance(value, Mapping) and value and all(_is_corpus(key, item) for key, item in value.items()):
        rows = [(key, row) for key, rows in value.items() for row in rows]
        for number, (key, row) in enumerate(rows, start=1):
            yield number, {"data": row, "corpus": key} if isinstance(row, list) else row
    else:
        yield 1, value


def _is_corpus(key: str, value: Any) -> bool:
    """A list of dialogues, each a list of texts (HuatuoGPT-II's sampler), or of rows under a name such as `train`."""
    if key in _ROW_LISTS or not isinstance(value, list) or not value:
        return False
    texts = all(isinstance(row, list) and all(isinstance(turn, str) for turn in row) for row in value)
    return texts or all(isinstance(row, Mapping) for row in value)


def _broken_json(text: str) -> Values:
    """Items of a JSON list that breaks off, up to the break; what follows can't be told apart any more."""
    decoder, number = json.JSONDecoder(), 0
    position = _BETWEEN.match(text, 0).end()  # type: ignore[union-attr]
    if text[position] != "[":
        yield 1, BadLine("not JSON: the file holds one mapping that breaks off, or several without a line each")
        return
    while True:
        position = _BETWEEN.match(text, position + (number == 0)).end()  # type: ignore[union-attr]
        number += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield number, BadLine(f"not JSON: {error.msg} at character {error.pos + 1} of the file; the rest is lost")
            return
        except (ValueError, RecursionError) as error:
            yield number, BadLine(f"not readable as JSON: {error}; the rest of the file is lost")
            return
        yield number, value


def _decoded(value: Any, encoding: str) -> Any:
    """The value, or a BadLine where it holds bytes that aren't of the encoding."""
    reason = why_not_decoded(json.dumps(value, ensure_ascii=False), encoding)
    return value if reason is None else BadLine(reason)


def _table_values(text: str, encoding: str) -> Values:
    """Rows of a CSV or TSV with a header, as mappings; the line is where the row begins. Empty cells are null."""
    csv.field_size_limit(1 << 30)  # a cell that is too long is rejected, as any other, not an error
    first = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max("\t,;", key=first.count)
    header: list[str] | None = None
    for line, cells in _records(list(io.StringIO(text, newline="")), delimiter):
        if isinstance(cells, BadLine):
            yield line, cells
        elif not any(cells):
            continue
        elif header is None:
            header = [cell.strip() for cell in cells]
        else:
            reason = next((bad for cell in cells if (bad := why_not_decoded(cell, encoding))), None)
            row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
            yield line, row if reason is None else BadLine(reason)


class _Lines:
    """Lines from `start` on, until one record has taken too many of them: then a quote was left open."""

    def __init__(self, lines: list[str], start: int) -> None:
        self._lines, self._next, self.begin = lines, start, start

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._next == len(self._lines) or self._next - self.begin >= _MOST_LINES:
            raise StopIteration
        self._next += 1
        return self._lines[self._next - 1]


def _records(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | BadLine]]:
    """(line from 1 where it begins, cells) of every record.

    A quote that is left open would take the rows below into its cell. It shows as a quote in the wrong place, or as a
    record that doesn't end; either way it costs its own line only.
    """
    width: int | None = None
    source = _Lines(lines, 0)
    while source.begin < len(lines):
        start = source.begin
        table = csv.reader(source, delimiter=delimiter, strict=True)
        try:
            for cells in table:
                end = start + table.line_num
                if width is not None and any(cells) and len(cells) != width:
                    yield source.begin + 1, BadLine(f"the row has {len(cells)} cells, the header {width}")
                else:
                    yield source.begin + 1, cells
                    width = width or (len(cells) if any(cells) else None)
                source.begin = end
        except csv.Error:
            yield source.begin + 1, BadLine("a quote is opened and never closed, or stands where none may")
            source = _Lines(lines, source.begin + 1)


def _text_values(text: str, encoding: str, whole: bool) -> Values:
    """Plain text: line ends made uniform, form feeds (page breaks) taken for them."""
    text = re.sub("\r\n?|\f", "\n", text)
    if whole:
        yield from _blocks([(1, text)] if text.strip() else [], encoding)
        return
    blocks: list[tuple[int, str]] = []
    for filled, group in groupby(enumerate(text.split("\n"), start=1), key=lambda line: bool(line[1].strip())):
        if filled:
            lines = list(group)
            blocks.append((lines[0][0], "\n".join(line for _, line in lines)))
    yield from _blocks(blocks, encoding)


def _blocks(blocks: list[tuple[int, str]], encoding: str) -> Values:
    for line, block in blocks:
        reason = why_not_decoded(block, encoding)
        yield line, {"text": block.strip()} if reason is None else BadLine(reason)
