"""Of damaged, cut and hostile files everything that can be read is there, the rest has a reason, and nothing raises."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_cases import COUGH, FEVER, PACKED, answer, jsonl, packed, page, read, record, texts, told

from rayrl.corpus.containers import NO_FAULT, Found
from rayrl.corpus.packed import DAMAGED, Unpacked
from rayrl.corpus.records import Rejected

ROWS = [{"text": f"{n} {random.Random(n).randbytes(40).hex()}"} for n in range(3000)]
ALL = [row["text"] for row in ROWS]


@pytest.mark.parametrize("codec", PACKED)
def test_a_cut_packed_file_gives_what_comes_before_the_cut(codec: str, tmp_path: Path) -> None:
    content = packed(jsonl(*ROWS), codec)
    least = {"gzip": 0.45, "zstd": 0.25, "bz2": 0.0, "lz4": 0.25}[codec]  # bz2 has blocks of 900 kB
    for end in (len(content) // 2, len(content) - 1, 7):
        (tmp_path / f"a.jsonl{PACKED[codec]}").write_bytes(content[:end])
        *found, last = read(tmp_path)
        assert texts(found) == ALL[: len(found)]
        assert last == Rejected(last.file, len(jsonl(*ROWS[: len(found)])), DAMAGED)
        if end == len(content) // 2:
            assert len(found) >= least * len(ALL)
    (tmp_path / f"a.jsonl{PACKED[codec]}").write_bytes(b"")
    assert read(tmp_path) == []


def test_a_damaged_gzip_file_gives_what_comes_before_the_damage(tmp_path: Path) -> None:
    members = [gzip.compress(jsonl(*ROWS[start : start + 1000])) for start in (0, 1000, 2000)]
    middle = bytearray(members[1])
    middle[len(middle) // 2 : len(middle) // 2 + 8] = bytes(8)
    (tmp_path / "a.jsonl.gz").write_bytes(members[0] + middle + members[2])
    found = read(tmp_path)
    assert texts(found)[:1400] == ALL[:1400]
    bad = [one for one in found if isinstance(one, Rejected)]
    assert bad[-1].reason == DAMAGED and bad[-1].position >= len(jsonl(*ROWS[:1400]))
    (tmp_path / "a.jsonl.gz").write_bytes(members[0] + b"no gzip")
    assert told(read(tmp_path))[1000:] == [(len(jsonl(*ROWS[:1000])), DAMAGED)]


def test_a_store_that_fails_is_no_damage() -> None:
    class Failing:
        closed = False

        def read(self, size: int) -> bytes:
            raise TimeoutError("the store doesn't answer")

        def seek(self, position: int) -> int:
            return position

        def tell(self) -> int:
            return 0

    with pytest.raises(TimeoutError, match="doesn't answer"):
        Unpacked(Failing(), "gzip").read(1)


def test_a_cut_text_or_page_is_given_as_far_as_it_goes(tmp_path: Path) -> None:
    for name, content in (("a.txt.gz", 200 * COUGH.encode()), ("b.html.gz", page(200 * COUGH))):
        (tmp_path / name).write_bytes(gzip.compress(content)[:-9])
        (_, text), (position, reason) = told(read(tmp_path / name, plain="whole"))
        assert 150 < text.count(COUGH) <= 200
        assert reason == DAMAGED and position > 9000
    (tmp_path / "c.txt.gz").write_bytes(b"none")
    assert told(read(tmp_path / "c.txt.gz")) == [(0, DAMAGED)]


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress])
def test_a_cut_archive_gives_the_records_before_the_cut(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    name = "a.warc.gz" if pack is gzip.compress else "a.warc"
    parts = [pack(record("conversion", f"{COUGH} {n}".encode())) for n in range(4)]
    whole = sum(map(len, parts[:3]))
    for end in (whole + 3, whole + 60, len(b"".join(parts)) - 20):
        (tmp_path / name).write_bytes(b"".join(parts)[:end])
        assert told(read(tmp_path)) == [*((n, f"{COUGH} {n}") for n in range(3)), (3, DAMAGED)]


GOOD = [record("conversion", f"{FEVER} {n}".encode()) for n in range(2)]
LENGTH = b"Content-Length: 10"


@pytest.mark.parametrize(
    "between",
    [
        b"garbage\r\n" + bytes(range(256)),
        GOOD[0].replace(b"WARC/1.0", b"WXRC/1.0"),
        record("conversion", 10 * b"x").replace(LENGTH, b"Content-Length: 8"),
        record("conversion", 10 * b"x").replace(LENGTH, b"Content-Length: ten"),
        record("conversion", 10 * b"x").replace(LENGTH, b"Content-Length: -5"),
        record("conversion", 10 * b"x").replace(LENGTH, b"Content-Length: " + 5000 * b"9"),
        record("conversion", 10 * b"x").replace(LENGTH + b"\r\n", b""),
        b"WARC/1.0\r\n" + 3000 * b"X-Header: none that we know\r\n" + b"\r\n",
    ],
)
def test_an_archive_is_read_on_behind_a_damaged_record(between: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(GOOD[0] + between + GOOD[1])
    assert told(read(tmp_path)) == [(0, f"{FEVER} 0"), (1, DAMAGED), (2, f"{FEVER} 1")]


def test_responses_that_cant_be_unpacked_are_no_pages_or_stay_as_they_are(tmp_path: Path) -> None:
    said = "Content-Type: text/html; charset=gbk\r\n"
    blocks = [
        answer(page(COUGH), said + "Content-Encoding: br"),
        answer(page(COUGH), said + "Transfer-Encoding: chunked"),
        answer(page(COUGH), said + "X-Long: " + 100_000 * "a"),
        answer(gzip.compress(bytes(30 << 20)), said + "Content-Encoding: gzip"),
        b"no http",
        b"",
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(record("response", block) for block in blocks))
    found = read(tmp_path)
    assert told(found)[:2] == [(0, COUGH), (1, COUGH)]
    assert [one.reason for one in found[2:] if isinstance(one, Rejected)] == [
        "the response is no page",
        "a page of more than 1 MB",
        "the page holds no text",
        "the page holds no text",
    ]
    assert {"the response is no page", "the page holds no text"} == NO_FAULT


def test_cut_and_damaged_parquet_gives_its_whole_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ALL}), tmp_path / "a.parquet", row_group_size=1000, compression="zstd")
    content = (tmp_path / "a.parquet").read_bytes()
    for end in (0, 3, len(content) // 2, len(content) - 1):
        (tmp_path / "a.parquet").write_bytes(content[:end])
        assert told(read(tmp_path)) == [(0, DAMAGED)]
    (tmp_path / "a.parquet").write_bytes(content)
    at = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0).dictionary_page_offset
    (tmp_path / "a.parquet").write_bytes(content[:at] + 2000 * b"\xff" + content[at + 2000 :])
    assert told(read(tmp_path)) == [*enumerate(ALL[:1000]), (1000, DAMAGED), *enumerate(ALL[2000:], 2000)]


def test_parquet_rows_that_are_no_text_have_their_reason(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    text = pa.chunked_array([["a", None, 50 * "b"], bad, ["c"]])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert told(read(tmp_path, max_bytes=20)) == [
        (0, "a"),
        (1, "text is missing or no text"),
        (2, "a row of more than 0 MB"),
        (3, "bytes of no known encoding"),
        (4, "c"),
    ]
    pq.write_table(pa.table({"text": pa.array([b"a"]), "other": [1]}), tmp_path / "a.parquet")
    assert told(read(tmp_path)) == [(0, "text is missing or no text")]
    assert told(read(tmp_path, columns={"text": "body"})) == [(0, "body is missing or no text")]


def test_lines_of_jsonl_that_are_no_rows_have_their_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "cut off',
        b"[1, 2]",
        b'{"title": "a"}',
        b'{"text": 7}',
        b'{"text": ' + 100_000 * b"[" + 100_000 * b"]" + b"}",
        b'{"text": ' + 5000 * b"9" + b"}",
        b"\x00\x01\x02\x03",
        b'{"text": "\\ud83d", "id": "\\udc00"}',
        b'{"text": "b"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = read(tmp_path)
    missing = "text is missing or no text"
    assert [what for _, what in told(found)] == [
        "not JSON",
        "the row is no mapping",
        missing,
        missing,
        "not JSON",
        "not JSON",
        "not JSON",
        "\ud83d",
        "b",
    ]
    assert isinstance(found[7], Found) and found[7].columns == {"id": "?"}


def test_a_broken_list_gives_the_rows_before_the_fault(tmp_path: Path) -> None:
    content = json.dumps([{"text": COUGH}, 7, {"text": FEVER}], indent=1, ensure_ascii=False)
    before = [(0, COUGH), (1, "the row is no mapping")]
    (tmp_path / "a.json").write_text(content[:-5])
    assert told(read(tmp_path)) == [*before, (2, "not JSON from here on")]
    (tmp_path / "a.json").write_text(content + "x")
    assert told(read(tmp_path)) == [*before, (2, FEVER), (3, "not JSON from here on")]
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert told(read(tmp_path)) == [(0, "not JSON from here on")]
    (tmp_path / "a.json").write_text("\n")
    assert read(tmp_path) == []


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("size", [21, 50, 5_000_000])
def test_a_long_line_is_set_aside_wherever_it_stands(number: int, size: int, tmp_path: Path) -> None:
    lines = ["first", "second"]
    lines.insert(number, size * "x")
    reason = "a line of more than 0 MB"
    positions = [0, len(lines[0]) + 1, len(lines[0]) + len(lines[1]) + 2]
    expected = [(at, reason if len(line) == size else line) for at, line in zip(positions, lines, strict=True)]
    for end in ("", "\n"):
        (tmp_path / "a.txt").write_text("\n".join(lines) + end)
        for task_bytes in (1 << 40, max(10, size // 3)):
            found = read(tmp_path / "a.txt", plain="lines", max_bytes=20, task_bytes=task_bytes)
            assert [(at, what.strip()) for at, what in told(found)] == expected


def test_a_line_of_the_permitted_length_is_read(tmp_path: Path) -> None:
    for end in ("", "\n"):
        (tmp_path / "a.txt").write_text(20 * "x" + end)
        assert texts(read(tmp_path, plain="lines", max_bytes=20)) == [20 * "x" + end]


def test_long_files_pages_records_and_paragraphs_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aaaa\n\n" + 9 * "bbbb\n" + "\ncccc\n")
    assert told(read(tmp_path, max_bytes=20)) == [(0, "a file of more than 0 MB")]
    found = read(tmp_path, plain="paragraphs", max_bytes=20)
    assert told(found) == [(0, "aaaa\n"), (6, "a paragraph of more than 0 MB"), (52, "cccc\n")]
    (tmp_path / "a.txt").rename(tmp_path / "a.html")
    assert told(read(tmp_path, max_bytes=20)) == [(0, "a file of more than 0 MB")]
    (tmp_path / "a.html").rename(tmp_path / "a.json")
    assert told(read(tmp_path, max_bytes=20)) == [(0, "a file of more than 0 MB; write it as JSONL")]
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.wet").write_bytes(record("conversion", 21 * b"x") + record("conversion", 20 * b"y"))
    assert told(read(tmp_path, max_bytes=20)) == [(0, "a record of more than 0 MB"), (1, 20 * "y")]


def test_a_paragraph_of_many_lines_takes_no_long_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(200_000 * "x\n")
    began = time.process_time()
    assert len(texts(read(tmp_path / "a.txt"))[0]) == 400_000
    assert time.process_time() - began < 5


def test_empty_files_are_nothing_or_an_empty_text(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.json", "c.warc", "d.txt", "e.txt.gz"):
        (tmp_path / name).write_bytes(b"")
    assert told(read(tmp_path)) == [(0, ""), (0, "")]
    assert read(tmp_path, plain="lines") == []


@pytest.mark.parametrize(
    "content",
    [
        100_000 * b"<div>" + b"text",
        20_000 * b"<a><b>" + b"text",
        b"<p " + 100_000 * b"a=b " + b">text",
        500_000 * b"<",
        100_000 * b"<!--",
        bytes(500_000),
        b"",
    ],
)
def test_hostile_pages_take_no_long_time(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(content)
    began = time.process_time()
    assert len(read(tmp_path)) == 1
    assert time.process_time() - began < 5


def changed(content: bytes, rng: random.Random) -> bytes:
    """With some bytes replaced, taken away and put in."""
    raw = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(max(1, len(raw)))
        kind = rng.random()
        if kind < 0.6:
            raw[at : at + 1] = rng.randbytes(1)
        elif kind < 0.8:
            del raw[at : at + rng.randint(1, 50)]
        else:
            raw[at:at] = rng.randbytes(rng.randint(1, 20))
    return bytes(raw)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.html", "a.jsonl", "a.jsonl.gz", "a.json", "a.txt"])
def test_no_damage_raises(name: str, tmp_path: Path) -> None:
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(page(FEVER)), page(FEVER))
    archive = [
        record("response", answer(page(COUGH))),
        record("response", answer(gzip.compress(page(COUGH)), "Content-Encoding: gzip")),
        record("response", answer(chunked, "Content-Type: text/html\r\nTransfer-Encoding: chunked")),
        *GOOD,
    ]
    content = {
        "a.warc": b"".join(archive),
        "a.warc.gz": b"".join(map(gzip.compress, archive)),
        "a.html": page(COUGH + "</p><table><tr><td>1</table><ul><li>2</ul><p>" + FEVER),
        "a.jsonl": jsonl(*ROWS[:5], {"text": COUGH}),
        "a.jsonl.gz": gzip.compress(jsonl(*ROWS[:5])),
        "a.json": json.dumps(ROWS[:5]).encode(),
        "a.txt": FEVER.encode("gbk"),
    }[name]
    rng = random.Random(name)
    for _ in range(250):
        (tmp_path / name).write_bytes(changed(content, rng))
        found = read(tmp_path, plain="whole")
        positions = [(one.position, isinstance(one, Rejected)) for one in found]
        assert len(set(positions)) == len(positions)
