"""What there is to read, cut into tasks: large line files in ranges of bytes, small files together.

A task depends on the files' names and sizes alone, so that a run that goes on, here or elsewhere, cuts alike.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from rayrl.config.corpus import CorpusSourceConfig
from rayrl.corpus.encoding import has_wide_mark
from rayrl.data.readers.files import ASSETS, NOT_DATA
from rayrl.data.readers.text import is_wide_encoding
from rayrl.data.storage import Entry, Place
from rayrl.errors import UserError

Form = Literal["jsonl", "json", "parquet", "text", "html", "warc"]
Plain = Literal["whole", "paragraphs", "lines"]
FORMS: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "warc",
}
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
SAMPLE = "corpus-sample"
"""The package's own little corpus, by the name that stands for a path."""
NOT_TEXT = frozenset({"dataset_info.json", "state.json"})


@dataclass(frozen=True)
class Piece:
    """A file, or a range of its bytes: [start, end), whose lines begin there."""

    source: int
    """Number of the source in the configuration."""
    uri: str
    form: Form
    codec: str | None
    start: int = 0
    end: int | None = None
    plain: Plain = "whole"
    name: str = ""
    """The file's place in its source, wherever that lies."""


@dataclass(frozen=True)
class Listing:
    """Every source's files."""

    entries: list[Entry]
    tasks: list[list[Piece]]
    skipped: dict[str, Counter[str]]
    """By source, files that aren't text by their extension: {"books": {".pdf": 3}}."""

    def fingerprint(self) -> str:
        """64 hexadecimal digits, of the files' places, sizes and times: their bytes may be terabytes."""
        entries = json.dumps([[entry.uri, entry.size, entry.mtime_ns] for entry in self.entries])
        return hashlib.sha256(entries.encode()).hexdigest()


def list_pieces(sources: Sequence[CorpusSourceConfig], task_bytes: int = 64 << 20) -> Listing:
    """Everything there is to read, in tasks of about `task_bytes`. Raises UserError where a source has nothing."""
    entries: list[Entry] = []
    tasks: list[list[Piece]] = []
    skipped: dict[str, Counter[str]] = {}
    for number, source in enumerate(sources):
        room = -1  # a source begins a task
        root = Place.of(ASSETS / "corpus_sample.jsonl" if source.path == SAMPLE else source.path)
        found, skipped[source.name] = _files(source, root)
        for entry, form, codec, plain in found:
            entries.append(entry)
            whole = Piece(number, entry.uri, form, codec, plain=plain, name=_inside(root, entry.uri))
            for piece, size in _cut(whole, entry.size, task_bytes, source.encoding):
                if size > room:
                    tasks.append([])
                    room = task_bytes
                tasks[-1].append(piece)
                room -= size
    return Listing(entries, tasks, {name: count for name, count in skipped.items() if count})


def _files(
    source: CorpusSourceConfig, place: Place
) -> tuple[list[tuple[Entry, Form, str | None, Plain]], Counter[str]]:
    """(file, form, codec, how plain text is taken) of those that are text; extensions of those that aren't."""
    try:
        single = place.is_file()
        listed = [place.entry()] if single else place.files(recursive=True)
    except OSError as error:
        raise UserError(f"source {source.name!r}: {source.path} can't be listed: {error}") from error
    plain: Plain = source.plain if source.plain != "auto" else "paragraphs" if single else "whole"
    found: list[tuple[Entry, Form, str | None, Plain]] = []
    other: Counter[str] = Counter()
    for entry in listed:
        name = Place(entry.uri).name
        form, codec, suffix = form_of(name)
        if form is None or name in NOT_TEXT or name in NOT_DATA:
            other[suffix or "no extension"] += 1
        else:
            found.append((entry, form, codec, plain))
    if not found:
        what = f"of {', '.join(FORMS)} (also {', '.join(CODECS)})"
        there = "isn't a file" if single else "has no file" if place.exists() else "isn't there, or has no file"
        raise UserError(f"source {source.name!r}: {source.path} {there} {what}")
    return found, other


def form_of(name: str) -> tuple[Form | None, str | None, str]:
    """(form, codec, extension) that a file's name says. Example: "a.WARC.gz" -> ("warc", "gzip", ".warc.gz")"""
    stem, dot, last = name.lower().rpartition(".")
    codec = CODECS.get(dot + last) if stem else None
    packed = ""
    if codec is not None:
        packed = dot + last
        stem, dot, last = stem.rpartition(".")
    suffix = dot + last if stem else ""
    return FORMS.get(suffix), codec, suffix + packed


def _cut(piece: Piece, size: int, task_bytes: int, encoding: str) -> list[tuple[Piece, int]]:
    """The piece in ranges where its lines can be found from anywhere; else whole. With the bytes of each."""
    by_lines = piece.form == "jsonl" or (piece.form == "text" and piece.plain == "lines")
    if not by_lines or piece.codec is not None or size <= task_bytes or _is_wide(piece.uri, encoding):
        return [(piece, size)]
    ends = [*range(task_bytes, size, task_bytes), size]
    return [(replace(piece, start=start, end=end), end - start) for start, end in pairwise([0, *ends])]


def _inside(root: Place, uri: str) -> str:
    """The file's path from the source's folder on; its name, where it is the source. Example: "2024/a.jsonl\""""
    file = Place(uri)
    return file.plain.removeprefix(root.plain).strip("/") or file.name


def _is_wide(uri: str, encoding: str) -> bool:
    """Whether a line feed may be another character's part."""
    if encoding != "auto":
        return is_wide_encoding(encoding)
    try:
        with Place(uri).open() as stream:
            return has_wide_mark(bytes(stream.read(4)))
    except OSError as error:
        raise UserError(f"{uri} can't be read: {error}") from error
