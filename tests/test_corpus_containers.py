"""Files of every form and encoding are read alike, whole or in ranges."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_cases import (
    COUGH,
    FEVER,
    PACKED,
    TRADITIONAL,
    answer,
    jsonl,
    of_piece,
    packed,
    page,
    read,
    record,
    source,
    texts,
    told,
)

from rayrl.corpus.containers import Found
from rayrl.corpus.encoding import decode, encoding_of
from rayrl.corpus.pieces import form_of, list_pieces
from rayrl.errors import UserError

ROWS = [{"text": COUGH, "id": 7}, {"text": FEVER}]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jsonl", ("jsonl", None, ".jsonl")),
        ("a.WARC.gz", ("warc", "gzip", ".warc.gz")),
        ("CC-MAIN-2024.warc.wet.gz", ("warc", "gzip", ".wet.gz")),
        ("a.b.txt.zst", ("text", "zstd", ".txt.zst")),
        ("书.md", ("text", None, ".md")),
        ("a.pdf", (None, None, ".pdf")),
        ("a.gz", (None, "gzip", ".gz")),
        ("README", (None, None, "")),
        (".jsonl", (None, None, "")),
    ],
)
def test_a_files_name_tells_its_form(name: str, form: tuple[str | None, str | None, str]) -> None:
    assert form_of(name) == form


def test_rows_of_jsonl_have_their_first_bytes_position(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + jsonl(*ROWS) + b"\r\n  \n" + jsonl({"content": "C"}).strip())
    second = 1 + len(jsonl(ROWS[0]))
    assert read(tmp_path) == [
        Found(1, COUGH, {"id": "7"}),
        Found(second, FEVER),
        Found(second + len(jsonl(ROWS[1])) + 5, "C"),
    ]


@pytest.mark.parametrize("codec", PACKED)
def test_packed_files_are_read_as_what_is_in_them(codec: str, tmp_path: Path) -> None:
    (tmp_path / f"a.jsonl{PACKED[codec]}").write_bytes(packed(jsonl(*ROWS), codec) + packed(jsonl(*ROWS), codec))
    once = len(jsonl(*ROWS))
    assert texts(read(tmp_path)) == 2 * [COUGH, FEVER]
    assert [position for position, _ in told(read(tmp_path))][2] == once


def test_json_is_a_list_or_a_row_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "b.json").write_bytes("\ufeff".encode() + json.dumps(ROWS[0]).encode())
    (tmp_path / "c.json").write_bytes(jsonl({"text": "one\u2028line"}, ROWS[1]))
    assert told(read(tmp_path / "a.json")) == [(0, COUGH), (1, FEVER)]
    assert told(read(tmp_path / "b.json")) == [(0, COUGH)]
    assert told(read(tmp_path / "c.json")) == [(0, "one\u2028line"), (len(jsonl({"text": "one\u2028line"})), FEVER)]


def test_columns_are_mapped_in_jsonl_and_parquet(tmp_path: Path) -> None:
    columns = {"text": "body", "id": "number", "title": "name", "genre": "kind"}
    rows = [{"body": COUGH, "number": 3, "name": "题", "kind": "book", "text": "no"}, {"body": FEVER, "kind": None}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    expected = [(COUGH, {"id": "3", "title": "题", "genre": "book"}), (FEVER, {})]
    for name in ("a.jsonl", "b.parquet"):
        found = read(tmp_path / name, columns=columns)
        assert [(one.text, one.columns) for one in found if isinstance(one, Found)] == expected


def test_parquet_of_several_row_groups_counts_its_rows(tmp_path: Path) -> None:
    table = pa.table({"content": [f"text {n}" for n in range(1000)], "id": [f"i{n}" for n in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    found = read(tmp_path)
    assert found == [Found(n, f"text {n}", {"id": f"i{n}"}) for n in range(1000)]


def test_text_is_a_document_or_paragraphs_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("咳\n嗽\r\n \n\n发热\n".encode())
    assert told(read(tmp_path)) == [(0, "咳\n嗽\r\n \n\n发热\n")]
    assert told(read(tmp_path / "a.txt")) == [(0, "咳\n嗽\r\n"), (12, "发热\n")]
    assert told(read(tmp_path, plain="lines")) == [(0, "咳\n"), (4, "嗽\r\n"), (12, "发热\n")]
    assert told(read(tmp_path / "a.txt", plain="whole")) == told(read(tmp_path))


def test_files_that_are_no_text_are_counted_by_their_extension(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf", "README", "manifest.json", ".hidden.txt", "c.txt"):
        (tmp_path / name).write_text("text")
    listing = list_pieces([source(tmp_path)], 100)
    assert listing.skipped == {"test": {".pdf": 2, "no extension": 1, ".json": 1}}
    assert [piece.name for task in listing.tasks for piece in task] == ["c.txt"]
    with pytest.raises(UserError, match=r"test.*has no file of \.jsonl"):
        (tmp_path / "c.txt").unlink()
        list_pieces([source(tmp_path)], 100)


def test_pages_are_read_in_what_they_say_or_else_look_like(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(page(COUGH))
    (tmp_path / "b.htm").write_bytes(page(FEVER, charset=None))
    (tmp_path / "c.html").write_bytes(page("咳嗽。", charset=None))
    (tmp_path / "d.html").write_bytes(page(COUGH, charset="gb2312", encoding="utf-8"))
    (tmp_path / "e.html").write_bytes(page(TRADITIONAL, charset="big5", encoding="big5"))
    (tmp_path / "f.html").write_bytes(page("Ceci est déjà trop tôt.", charset="nonsense", encoding="latin-1"))
    assert texts(read(tmp_path)) == [COUGH, FEVER, "咳嗽。", COUGH, TRADITIONAL, "Ceci est déjà trop tôt."]
    (tmp_path / "g.html").write_bytes(b"<html><body><script>1</script></body></html>")
    assert told(read(tmp_path / "g.html")) == [(0, "the page holds no text")]


def test_archives_give_texts_of_conversions_and_pages_of_responses(tmp_path: Path) -> None:
    parts = [
        record("warcinfo", b"software: none\r\n", content="application/warc-fields"),
        record("conversion", COUGH.encode(), "http://a.example/1"),
        record("request", b"GET / HTTP/1.1\r\n\r\n", content="application/http; msgtype=request"),
        record("response", answer(page(FEVER)), "http://a.example/2"),
        record("response", answer(b"\x89PNG" + bytes(range(256)), "Content-Type: image/png")),
        record("response", answer(page("Not here"), status="404 Not Found")),
        record("response", answer(FEVER.encode("gbk"), "Content-Type: text/plain; charset=GB2312")),
        record("response", b"example.org. 300 IN A 1.2.3.4", content="text/dns"),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(parts))
    (tmp_path / "b.warc.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    no = "the response is no page"
    for name in ("a.warc", "b.warc.gz"):
        found = read(tmp_path / name)
        assert told(found) == [(0, COUGH), (1, FEVER), (2, no), (3, no), (4, FEVER), (5, no)]
        assert [one.columns["id"][-1] for one in found if isinstance(one, Found)] == ["1", "2", "1"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Encoding: gzip", gzip.compress(page(COUGH))),
        ("Content-Encoding: deflate", zlib.compress(page(COUGH))),
        ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(page(COUGH)), page(COUGH))),
        ("Content-Encoding: gzip\r\nTransfer-Encoding: chunked", page(COUGH)),
        ("X-Powered-By: nothing", page(COUGH)),
    ],
)
def test_bodies_of_responses_are_unpacked_where_they_are_packed(headers: str, body: bytes, tmp_path: Path) -> None:
    for charset in ("; charset=gbk", '; charset="GBK"', "; charset=rot13", ""):
        block = answer(body, f"Content-Type: TEXT/HTML{charset}\r\n{headers}")
        (tmp_path / "a.warc").write_bytes(record("response", block))
        assert told(read(tmp_path)) == [(0, COUGH)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk", "gb18030", "big5", "utf-16", "utf-32"])
def test_encodings_are_told_apart(encoding: str, tmp_path: Path) -> None:
    text = TRADITIONAL if encoding == "big5" else COUGH
    for name in ("a.jsonl", "b.json", "c.txt"):
        content = json.dumps({"text": text}, ensure_ascii=False) if name != "c.txt" else text
        (tmp_path / name).write_bytes(f"{content}\n".encode(encoding))
    assert [text.strip() for text in texts(read(tmp_path))] == 3 * [text]
    assert [text.strip() for text in texts(read(tmp_path / "c.txt", plain="lines"))] == [text]
    assert [text.strip() for text in texts(read(tmp_path / "c.txt", encoding=encoding))] == [text]


def test_utf16_is_never_cut_and_its_lines_are_found(tmp_path: Path) -> None:
    lines = [f"上{chr(0x0A00 + n)}第{n}行" for n in range(300)]  # whose bytes look like line ends
    for encoding, named in (("utf-16", "auto"), ("utf-16-be", "utf-16-be")):
        (tmp_path / "a.txt").write_bytes("\n".join(lines).encode(encoding))
        found = read(tmp_path / "a.txt", plain="lines", task_bytes=100, encoding=named)
        assert [text.strip() for text in texts(found)] == lines


def test_lines_of_one_file_may_be_in_several_encodings(tmp_path: Path) -> None:
    said = [(COUGH, "utf-8"), ("头痛三天了", "gbk"), (TRADITIONAL, "big5"), ("多喝水", "utf-8"), (FEVER, "gb18030")]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode(encoding) for text, encoding in said]
    for content in (lines, lines[::-1], 3 * lines[1:2] + lines):
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(content))
        expected = {line: text for line, (text, _) in zip(lines, said, strict=True)}
        assert texts(read(tmp_path)) == [expected[line] for line in content]


@pytest.mark.parametrize(
    ("text", "encoding", "told_as"),
    [
        ("高血压", "gbk", "gb18030"),
        ("高血壓", "big5", "big5"),
        ("Ärzte über Änderungen", "latin-1", "cp1252"),
        ("Больной жалуется на кашель", "cp1251", "cp1251"),
        ("頭が痛いです。熱もあります", "shift_jis", "shift_jis"),
        ("café", "latin-1", "iso8859-2"),
        ("plain", "ascii", "utf-8"),
        ("", "ascii", "utf-8"),
    ],
)
def test_short_texts_are_told_apart_too(text: str, encoding: str, told_as: str) -> None:
    assert encoding_of(text.encode(encoding)) == told_as
    assert decode(text.encode(encoding), "utf-8") == text


def test_a_damaged_byte_or_a_cut_character_doesnt_cost_the_text() -> None:
    assert decode((COUGH + FEVER).encode()[:-1], "utf-8") == COUGH + FEVER[:-1]
    assert decode("\ufffd\ufffd ".encode(), "utf-8") == "\ufffd\ufffd "
    for encoding in ("utf-8", "gbk"):
        raw = bytearray((20 * COUGH).encode(encoding))
        raw[101] = 0xFF
        found = decode(bytes(raw), "utf-8", "gb18030")
        assert found is not None and found.count(COUGH) >= 18


LINES = st.lists(st.one_of(st.just(""), st.just("\r"), st.text("ab中", max_size=40)), max_size=12)


@settings(max_examples=150)
@given(
    lines=LINES, end=st.sampled_from(["", "\n"]), task_bytes=st.integers(1, 60), max_bytes=st.sampled_from([20, 200])
)
def test_ranges_give_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, task_bytes: int, max_bytes: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ranges"
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_bytes(("\n".join(lines) + end).encode())
    (folder / "a.jsonl").write_bytes("".join(f'{{"text": "{line.strip()}"}}\r\n' for line in lines).encode() or b"\n")
    for name in ("a.txt", "a.jsonl"):
        whole = read(folder / name, plain="lines", max_bytes=max_bytes)
        config = source(folder / name, plain="lines")
        listing = list_pieces([config], task_bytes)
        cut = [one for task in listing.tasks for piece in task for one in of_piece(piece, config, max_bytes)]
        assert cut == whole
        assert len(whole) == (len(lines) if name == "a.jsonl" else sum(bool(line.strip()) for line in lines))
