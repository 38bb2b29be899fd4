"""Places here and in a store, shards in them, and what is counted and found in shards."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_cases import COUGH, FEVER, jsonl, read
from input_cases import texts as input_texts

from rayrl.corpus.exact import repeated
from rayrl.corpus.normalise import text_key
from rayrl.corpus.records import EXAMPLES, Result, Sizes, Tally, keep, replace, texts
from rayrl.corpus.shards import ShardWriter, num_rows, read_batches
from rayrl.data.storage import Place
from rayrl.errors import UserError

NAMES = ["a b.txt", "病历 1.txt", "what?x=1&y=2.txt", "50%.txt", "%3F.txt", "#1.txt", "a+b.txt"]


def rows(*found: str, **keys: Any) -> list[dict[str, Any]]:
    """Texts with their keys."""
    said = {"source": "test", "genre": "web", "language": "zh"} | keys
    return [{"id": f"t/{n}", "text": text, "key": text_key(text), **said} for n, text in enumerate(found)]


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    place = Place.of(tmp_path) / "folder" / "a.json"
    place.write_json({"词": "\ud800"})
    assert place.read_bytes() == b'{\n  "\xe8\xaf\x8d": "\\ud800"\n}\n'
    with pytest.raises(ZeroDivisionError), place.written() as stream:
        stream.write(b"half")
        assert place.read_json() == {"词": "\ud800"}
        _ = 1 / 0
    assert place.read_json() == {"词": "\ud800"}
    with pytest.raises(OSError, match="folder"), (Place.of(tmp_path) / "folder").written() as stream:
        stream.write(b"where a folder is")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.json"]


def test_files_are_in_order_without_hidden_ones_and_drafts(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/.hidden", ".work/c.txt", "a.txt", "c.txt.1a2b3c4d.draft", "b.txt", "b/c/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    place = Place.of(tmp_path)
    assert [Place(entry.uri).name for entry in place.files()] == ["a.txt", "b.txt"]
    found = place.files(recursive=True)
    assert [entry.uri for entry in found] == [
        str(tmp_path / name) for name in ("a.txt", "b.txt", "b/c/d.txt", "b/z.txt")
    ]
    assert found[2] == (place / "b" / "c" / "d.txt").entry()
    assert (found[2].size, found[2].mtime_ns) == (9, os.stat(tmp_path / "b/c/d.txt").st_mtime_ns)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    place = Place.of(tmp_path / name) / name
    place.write_bytes(b"text")
    (entry,) = Place.of(tmp_path).files(recursive=True)
    assert entry.uri == str(tmp_path / name / name) == place.plain
    assert Place(entry.uri).read_bytes() == b"text" and Place(entry.uri).name == name
    assert place.is_file() and not (Place.of(tmp_path) / name).is_file()
    (Place.of(tmp_path) / name).remove()
    assert not place.exists() and list(tmp_path.iterdir()) == []


def test_a_folder_that_isnt_there_holds_nothing(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "none")
    assert (place.files(), place.exists(), place.is_file()) == ([], False, False)
    place.remove()
    with pytest.raises(FileNotFoundError):
        place.entry()
    with pytest.raises(FileNotFoundError):
        place.read_bytes()


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "broken.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("b")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    found = Place.of(tmp_path / "data").files(recursive=True)
    assert [entry.uri for entry in found] == [str(tmp_path / "data" / name) for name in ("a.txt", "more/b.txt")]


def test_a_name_that_isnt_utf8_is_told(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/\xb2\xa1.txt")).write_text("text")
    with pytest.raises(UserError, match="isn't UTF-8"):
        Place.of(tmp_path).files()


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("a/b", "~/a/b", "./a//b/", f"file://{tmp_path}/a/b", tmp_path / "a" / "b"):
        assert Place.of(path).uri == str(tmp_path / "a" / "b")
    assert Place.of("file:///a%20b").local == Path("/a b")


@pytest.mark.parametrize(
    "path", ["ftp://host/a", "s3a://bucket/a", "://a", "s3://", "s3:///a", "s3://bucket/a?region="]
)
def test_a_store_that_isnt_known_is_told(path: str) -> None:
    with pytest.raises(UserError):
        Place.of(f"{path}&nothing=1" if path.endswith("=") else path)


def test_keys_of_a_store_dont_belong_into_a_path() -> None:
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as told:
        Place.of("s3://name:secret@bucket/a")
    assert "secret@" not in str(told.value)


def test_a_store_holds_what_a_folder_does(store: str) -> None:
    root = Place.of(f"s3://bucket/corpus/?{store}")
    assert (root / "a" / "b.txt").uri == f"s3://bucket/corpus/a/b.txt?{store}"
    assert (root.name, (root / "a").name, root.plain, root.local) == ("corpus", "a", "s3://bucket/corpus", None)
    assert root.files(recursive=True) == [] and not root.exists()
    for name in NAMES:
        (root / "a" / name).write_bytes(name.encode())
    (root / ".work" / "c.json").write_json([1])
    found = root.files(recursive=True)
    assert sorted(Place(entry.uri).read_bytes().decode() for entry in found) == sorted(NAMES)
    assert all(entry == Place(entry.uri).entry() and entry.uri.endswith(f"?{store}") for entry in found)
    assert Place.of(found[0].uri) == Place(found[0].uri)
    assert (root / ".work" / "c.json").read_json() == [1]
    with pytest.raises(ZeroDivisionError), (root / "half.txt").written() as stream:
        stream.write(b"half")
        _ = 1 / 0
    assert not (root / "half.txt").exists()
    with ShardWriter(root / "read", 3, texts([]).schema, 1 << 20) as writer:
        writer.write(texts(rows("咳嗽", "发热")))
    (shard,) = (root / "read").files()
    assert [table["text"].to_pylist() for table in read_batches(shard.uri)] == [["咳嗽", "发热"]]
    assert (root / "a").exists() and not (root / "a").is_file()
    (root / "a").remove()
    assert [Place(entry.uri).name for entry in root.files(recursive=True)] == ["00003-0000.parquet"]
    with pytest.raises(FileNotFoundError):
        (root / "a" / "b.txt").read_bytes()


def test_a_corpus_in_a_store_is_read(store: str) -> None:
    root = Place.of(f"s3://bucket/books?{store}")
    (root / "a.jsonl").write_bytes(jsonl(*({"text": f"{COUGH} {n}"} for n in range(50))))
    (root / "b" / "c?d.txt.gz").write_bytes(gzip.compress(FEVER.encode("gbk")))
    with (root / "b" / "d.parquet").written() as stream:
        pq.write_table(pa.table({"text": [FEVER]}), stream)
    assert input_texts(read(root.uri, task_bytes=1000)) == [*(f"{COUGH} {n}" for n in range(50)), FEVER, FEVER]


def shards(folder: Path, tables: list[pa.Table], shard_bytes: int, number: int = 0) -> list[str]:
    """Names of the files written."""
    with ShardWriter(Place.of(folder), number, texts([]).schema, shard_bytes) as writer:
        for table in tables:
            writer.write(table)
    return writer.names


def test_shards_roll_by_size_and_are_the_same_bytes_twice(tmp_path: Path) -> None:
    found = [f"text {n} " + 100 * "字" for n in range(400)]
    tables = [texts(rows(*found[start : start + 10])) for start in range(0, 400, 10)]
    names = shards(tmp_path / "a", tables, 50_000, number=12)
    assert names == [f"00012-{n:04d}.parquet" for n in range(len(names))] and 2 < len(names) < 10
    assert shards(tmp_path / "b", tables, 50_000, number=12) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    uris = [entry.uri for entry in Place.of(tmp_path / "a").files()]
    assert sum(map(num_rows, uris)) == 400
    read = [table for uri in uris for table in read_batches(uri, ["text"], max_rows=7)]
    assert [text for table in read for text in table["text"].to_pylist()] == found
    assert max(table.num_rows for table in read) == 7 and read[0].column_names == ["text"]


def test_nothing_is_written_where_there_is_nothing(tmp_path: Path) -> None:
    assert shards(tmp_path / "a", [], 100) == []
    assert shards(tmp_path / "a", [texts([])], 100) == []
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("shard_bytes", [1, 1 << 30])
def test_an_error_leaves_no_half_file(shard_bytes: int, tmp_path: Path) -> None:
    writer = ShardWriter(Place.of(tmp_path), 0, texts([]).schema, shard_bytes)
    with pytest.raises(ZeroDivisionError), writer:
        writer.write(texts(rows("咳嗽")))
        _ = 1 / 0
    whole = ["00000-0000.parquet"] if shard_bytes == 1 else []
    assert [path.name for path in tmp_path.iterdir()] == whole
    with pytest.raises(ValueError, match="schema"), ShardWriter(Place.of(tmp_path), 1, texts([]).schema, 8) as writer:
        writer.write(pa.table({"other": ["咳嗽"]}))
    other = ShardWriter(Place.of(tmp_path), 1, texts([]).schema, 1 << 30)
    with pytest.raises(ValueError, match="schema"), other:
        other.write(pa.table({"other": ["咳嗽"]}))
    assert [path.name for path in tmp_path.iterdir()] == whole


def links(uris: list[str], parts: int) -> list[tuple[int, ...]]:
    """All, of all parts."""
    found = pa.concat_tables(repeated(uris, part, parts) for part in range(parts))
    return sorted(tuple(row.values()) for row in found.to_pylist())


def test_of_the_same_texts_the_first_stays(tmp_path: Path) -> None:
    tables = [texts(rows("A b", "c", "ab", "d")), texts(rows("d", "e", "C")), texts(rows("a\nB", "e", "f"))]
    uris = [
        str(tmp_path / name)
        for number, table in enumerate(tables)
        for name in shards(tmp_path, [table.slice(0, 1), table.slice(1)], 1 << 20, number)
    ]
    expected = [(0, 2, 0, 0), (1, 0, 0, 3), (1, 2, 0, 1), (2, 0, 0, 0), (2, 1, 1, 1)]
    assert links(uris, 1) == expected
    assert [tuple(row.values()) for row in repeated(uris, 0, 1).to_pylist()] == expected
    for parts in (2, 3, 7):
        assert links(uris, parts) == expected
    assert links([], 1) == []


def test_many_row_groups_are_one_shard(tmp_path: Path) -> None:
    found = [f"text {n % 500}" for n in range(1200)]
    table = texts(rows(*found))
    uri = str(tmp_path / "a.parquet")
    pq.write_table(table, uri, row_group_size=100)
    assert links([uri], 4) == [(0, n, 0, n % 500) for n in range(500, 1200)]


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    whole, sum_of_parts = Tally(), Tally()
    batches = []
    for number in range(4):
        table = texts(
            rows(*(n * "字" for n in range(1, 6)), source="ab"[number % 2], language="zh" if number else None)
        )
        result = keep(table, ["too short" if n < 2 else "bad" if n == number else None for n in range(5)])
        batches.append((table, Result(result.table, result.dropped, notes=Counter(seen=number))))
    for start, end in pairwise([0, 1, 3, 4]):
        part = Tally()
        for batch in batches[start:end]:
            whole.result(*batch)
            part.result(*batch)
        sum_of_parts.add(part.as_json())
    assert sum_of_parts.as_json() == whole.as_json()
    assert whole.dropped["too short"]["rows"] == 8 and whole.dropped["too short"]["chars"] == 12
    assert [one["text"] for one in whole.dropped["too short"]["examples"]] == ["字", "字字", "字"]
    assert len(whole.dropped["too short"]["examples"]) == EXAMPLES
    assert whole.sizes["in"].total() == {"rows": 20, "chars": 60, "bytes": 180}
    assert whole.sizes["out"].total()["rows"] == 20 - 8 - whole.dropped["bad"]["rows"]
    assert whole.sizes["in"].rows()[0] == {
        "source": "a",
        "genre": "web",
        "language": "",
        "rows": 5,
        "chars": 15,
        "bytes": 45,
    }
    assert whole.notes == {"seen": 6}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["zh", "en"]), st.text(max_size=5)), max_size=20))
def test_sizes_are_those_of_every_group(found: list[tuple[str, str, str]]) -> None:
    one_by_one, at_once = Sizes(), Sizes()
    made = [
        rows(text.encode("utf-8", "replace").decode(), source=source, language=lang) for source, lang, text in found
    ]
    for each in made:
        one_by_one.add(texts(each))
    at_once.add(texts([row for each in made for row in each]))
    assert one_by_one.rows() == at_once.rows()
    read = Sizes()
    read.add_rows(at_once.rows())
    assert read.rows() == at_once.rows()
    assert at_once.total()["bytes"] == sum(len(row["text"].encode()) for each in made for row in each)


def test_a_column_is_replaced_in_its_type() -> None:
    table = replace(texts(rows("a", "b")), "density", [0.5, None])
    assert table.schema == texts([]).schema and table["density"].to_pylist() == [0.5, None]
