"""What the tests of a corpus' input share: files in many packings and encodings, records of web archives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayrl.config.corpus import CorpusSourceConfig
from rayrl.corpus.containers import Found, contents
from rayrl.corpus.pieces import Piece, list_pieces
from rayrl.corpus.records import Rejected

MB = 1 << 20
PACKED = {"gzip": ".gz", "zstd": ".zst", "bz2": ".bz2", "lz4": ".lz4"}
COUGH = "患者咳嗽三天，体温三十八度五，多喝水，注意休息。"
FEVER = "头痛、发热两天，没有咳嗽，没有过敏史。"
TRADITIONAL = "高血壓患者應該定期測量血壓，並依照醫師的指示服藥。"


def source(path: Path | str, **keys: Any) -> CorpusSourceConfig:
    """A source called `test`."""
    return CorpusSourceConfig(name="test", path=str(path), **keys)


def read(path: Path | str, max_bytes: int = MB, task_bytes: int = 1 << 40, **keys: Any) -> list[Found | Rejected]:
    """All that a source holds, in the order of its tasks."""
    config = source(path, **keys)
    tasks = list_pieces([config], task_bytes).tasks
    return [one for task in tasks for piece in task for one in of_piece(piece, config, max_bytes)]


def of_piece(piece: Piece, config: CorpusSourceConfig, max_bytes: int = MB) -> list[Found | Rejected]:
    """All that a piece holds."""
    return list(contents(piece, config.encoding, config.columns, max_bytes))


def texts(found: Iterable[Found | Rejected]) -> list[str]:
    """Of those that are texts."""
    return [one.text for one in found if isinstance(one, Found)]


def told(found: Iterable[Found | Rejected]) -> list[tuple[int, str]]:
    """(position, text or reason)."""
    return [(one.position, one.text if isinstance(one, Found) else one.reason) for one in found]


def jsonl(*rows: Any) -> bytes:
    """A row a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def packed(content: bytes, codec: str) -> bytes:
    """As a file of that kind."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def record(kind: str, block: bytes, uri: str = "http://a.example/1", content: str | None = None) -> bytes:
    """A record of a web archive."""
    content = content or ("application/http; msgtype=response" if kind == "response" else "text/plain")
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nContent-Type: {content}\r\n"
    return f"{head}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n"


def answer(body: bytes, headers: str = "Content-Type: text/html; charset=gbk", status: str = "200 OK") -> bytes:
    """A server's."""
    return f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body


def page(text: str, charset: str | None = "gbk", encoding: str = "gbk") -> bytes:
    """A web page."""
    meta = f'<meta charset="{charset}">' if charset else ""
    return f"<html><head>{meta}<title>T</title></head><body><p>{text}</p></body></html>".encode(encoding)
