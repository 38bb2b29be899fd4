"""Documents get names, one way to be written, a language and a key."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from input_cases import COUGH, FEVER, TRADITIONAL, answer, jsonl, page, record, source

from rayrl.config.corpus import CorpusSourceConfig, ReadConfig
from rayrl.corpus.language import identify
from rayrl.corpus.normalise import is_binary, normalise, text_key
from rayrl.corpus.pieces import Piece, list_pieces
from rayrl.corpus.reader import BATCH_ROWS, Reader
from rayrl.corpus.records import TEXT, Result


def batches(
    sources: list[CorpusSourceConfig], task_bytes: int = 1 << 30, **keys: Any
) -> list[list[tuple[pa.Table, Result]]]:
    """Of every task."""
    reader = Reader(sources, ReadConfig(**keys))
    return [list(reader(task)) for task in list_pieces(sources, task_bytes).tasks]


def rows(sources: list[CorpusSourceConfig], task_bytes: int = 1 << 30, **keys: Any) -> list[dict[str, Any]]:
    """All that are kept."""
    found = batches(sources, task_bytes, **keys)
    return [row for task in found for _, result in task for row in result.table.to_pylist()]


def test_every_document_has_its_own_name_wherever_the_corpus_lies(tmp_path: Path) -> None:
    for folder in ("one", "other/place"):
        books = tmp_path / folder / "books"
        (books / "2024").mkdir(parents=True)
        (books / "a.jsonl").write_bytes(jsonl(*({"text": COUGH, "id": "same"} for _ in range(50))))
        (books / "2024" / "a.jsonl").write_bytes(jsonl(*({"text": FEVER} for _ in range(50))))
        for name in ("what?a=1.txt", "what?a=2.txt", "50% #1.txt", "文 件.txt"):
            (books / name).write_text(COUGH + FEVER)
    of = [
        [CorpusSourceConfig(name=name, path=str(tmp_path / folder / "books")) for name in ("a", "b")]
        for folder in ("one", "other/place")
    ]
    names = [[row["id"] for row in rows(sources, 1000, duplicates="keep")] for sources in of]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0]) == 2 * 104
    line = len(jsonl({"text": COUGH, "id": "same"}))
    assert {"a/2024/a.jsonl#0", f"b/a.jsonl#{line}", "a/what?a=1.txt#0", "a/文 件.txt#0"} <= set(names[0])


def test_a_relative_path_is_read_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text(COUGH)
    monkeypatch.chdir(tmp_path / "data")
    sources = [source("../data")]
    tasks = list_pieces(sources, 100).tasks
    os.chdir("/")
    ((_, result),) = Reader(sources, ReadConfig())(tasks[0])
    assert result.table["id"].to_pylist() == ["test/a.txt#0"]
    assert os.path.samefile(result.table["file"][0].as_py(), tmp_path / "data" / "a.txt")


def test_rows_say_what_they_are_or_their_source_does(tmp_path: Path) -> None:
    said = {"t": COUGH, "name": "感冒", "number": 5, "from": "wiki", "kind": "book", "tongue": "fr"}
    (tmp_path / "a.jsonl").write_bytes(jsonl(said, {"t": TRADITIONAL}))
    columns = {
        "text": "t",
        "title": "name",
        "id": "number",
        "source": "from",
        "genre": "kind",
        "language": "tongue",
    }
    first, second = rows([source(tmp_path / "a.jsonl", columns=columns, genre="literature")])
    begin = len(jsonl(said))
    file = str(tmp_path / "a.jsonl")
    nothing = dict.fromkeys(TEXT.names)
    assert first == nothing | {
        "id": "test/a.jsonl#0",
        "document": "test/a.jsonl#0",
        "own_id": "5",
        "text": f"感冒\n{COUGH}",
        "source": "wiki",
        "genre": "book",
        "language": "fr",
        "file": file,
        "position": 0,
        "key": text_key(f"感冒\n{COUGH}"),
    }
    assert second == nothing | {
        "id": f"test/a.jsonl#{begin}",
        "document": f"test/a.jsonl#{begin}",
        "text": TRADITIONAL,
        "source": "test",
        "genre": "literature",
        "language": "zh-Hant",
        "file": file,
        "position": begin,
        "key": text_key(TRADITIONAL),
    }
    assert rows([source(tmp_path, columns=columns, language="ja")])[1]["language"] == "ja"


def test_short_texts_are_dropped_and_binary_ones_rejected(tmp_path: Path) -> None:
    texts = [COUGH, "短\u200b\u200b\u200b\u200b\u200b\u200b\u200b\u200b\u200b", "\x00\x01\x02" + COUGH, FEVER, " "]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": text} for text in texts)) + b"{}\n")
    (((table, result),),) = batches([source(tmp_path)], min_chars=10)
    assert table["text"].to_pylist() == [COUGH, "短", FEVER, ""]
    assert result.table["text"].to_pylist() == [COUGH, FEVER]
    assert result.dropped == [(1, "too short"), (3, "too short")]
    assert [one.reason for one in result.rejected] == ["binary data, not text", "text is missing or no text"]
    assert result.notes == {"rejected": 2}
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.txt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "c.html").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10)
    assert rows([source(tmp_path)]) == []


def test_half_characters_go_and_nothing_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{COUGH}\\ud83d", "id": "\\ud83d", "name": "题\\udc00"}}')
    (row,) = rows([source(tmp_path, columns={"title": "name"})])
    assert (row["text"], row["own_id"]) == (f"题?\n{COUGH}", "?")


def test_answers_that_are_no_pages_are_no_faults(tmp_path: Path) -> None:
    image = record("response", answer(b"\x89PNG", "Content-Type: image/png"))
    empty = record("response", answer(page("")))
    (tmp_path / "a.warc").write_bytes(image + record("response", answer(page(COUGH))) + empty + image + b"WARC/1.0")
    (((table, result),),) = batches([source(tmp_path)])
    assert table["text"].to_pylist() == [COUGH]
    assert [one.reason for one in result.rejected] == ["the file is cut off or damaged"]
    assert result.notes == {"the response is no page": 2, "the page holds no text": 1, "rejected": 1}


def test_batches_keep_the_order_and_are_small(tmp_path: Path) -> None:
    numbers = range(3 * BATCH_ROWS + 7)
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": f"this is text number {n}"} for n in numbers)))
    (tmp_path / "b.jsonl").write_bytes(b"{}\n" * (BATCH_ROWS + 1))
    (found,) = batches([source(tmp_path)])
    assert [table.num_rows for table, _ in found] == 3 * [BATCH_ROWS] + [7, 0]
    assert sum(len(result.rejected) for _, result in found) == BATCH_ROWS + 1
    texts = [text for table, _ in found for text in table["text"].to_pylist()]
    assert texts == [f"this is text number {n}" for n in numbers]
    assert all(result.table.schema == TEXT for _, result in found)


def test_a_task_is_a_part_of_a_large_file_or_small_files_together(tmp_path: Path) -> None:
    for name, size in (("a.txt", 0), ("b.txt", 40), ("c.txt", 50), ("d.txt", 20), ("e.txt", 300), ("f.jsonl", 250)):
        (tmp_path / name).write_text(size * "x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "g.txt").write_text("x")
    other = CorpusSourceConfig(name="other", path=str(tmp_path / "other"))
    tasks = list_pieces([source(tmp_path), other], 100).tasks

    def shown(piece: Piece) -> tuple[int, str, int, int | None]:
        return (piece.source, piece.name, piece.start, piece.end)

    assert [[shown(piece) for piece in task] for task in tasks] == [
        [(0, "a.txt", 0, None), (0, "b.txt", 0, None), (0, "c.txt", 0, None)],
        [(0, "d.txt", 0, None)],
        [(0, "e.txt", 0, None)],
        [(0, "f.jsonl", 0, 100)],
        [(0, "f.jsonl", 100, 200)],
        [(0, "f.jsonl", 200, 250), (0, "other/g.txt", 0, None)],
        [(1, "g.txt", 0, None)],
    ]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("体温　３８.５\u200b℃ \r\n", "体温 38.5℃"),
        ("ＡＢＣ，ｘｙｚ！（“１”）", "ABC，xyz！（“1”）"),
        ("“咳嗽”、《内科学》；：？！…—·「」", "“咳嗽”、《内科学》；：？！…—·「」"),
        ("e\u0301 e\u200b\u0301", "é é"),
        ("a\t b\u00a0\u00a0c", "a b c"),
        ("a \r b\x0cc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("a\n \n\t\n\n  b\n c", "a\n\nb\nc"),
        ("\ufeff\ue000a\U000f0000\ud83d\u2066b\u2069\ufffd\uffff\u00ad\ufe0f", "ab"),
        ("\x00\x1b[0m", "[0m"),
        (" \n ", ""),
    ],
)
def test_texts_are_written_in_one_way(text: str, written: str) -> None:
    assert normalise(text) == written


ODD = st.sampled_from(
    list(" \n\r\t\x0b\x0c\x1c\x85\u2028\u3000\u200b\u0301\u030ae\u212b\u1100\u1161\uff21\ufe0f\u0345")
)


@given(st.text(st.one_of(ODD, st.characters(codec=None)), max_size=30))
@example("e\u200b\u0301")
@example("a\n \n \n \nb")
def test_writing_in_one_way_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    kinds = {unicodedata.category(character) for character in once if character != "\n"}
    assert kinds.isdisjoint({"Cc", "Co", "Cs", "Zl", "Zp"})
    assert not set(once) & set("\u200b\u200c\u200d\u2060\ufeff\u00ad\ufffd\ufe0f\u202e\u3000\u00a0\t\r")
    assert "  " not in once and " \n" not in once and "\n " not in once and "\n\n\n" not in once
    once.encode()


def test_keys_differ_by_more_than_space_and_case() -> None:
    assert text_key("Aspirin 100 \nmg") == text_key(normalise("aspirin\u3000100mg")) != text_key("aspirin 10 mg")
    assert len(text_key("\ud800")) == 16


def test_a_few_control_characters_make_no_binary() -> None:
    assert not is_binary("\x00\x00") and is_binary("\x00\x00\x00")
    assert not is_binary("\x0c\x0c\x0c" + 300 * "a")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (COUGH, "zh"),
        (TRADITIONAL, "zh-Hant"),
        ("患者服用 aspirin 100 mg 三天", "zh"),
        ("急性心筋梗塞の治療について説明します。", "ja"),
        ("머리가 아프고 열이 나요", "ko"),
        ("The patient had a fever for three days and was given paracetamol.", "en"),
        ("Take with food.", "en"),
        ("No fever. No cough.", "en"),
        ("Heart failure", "en"),
        ("He took 阿司匹林 for two weeks and then the pain in his chest went away.", "en"),
        ("Je suis malade depuis trois jours et j'ai de la fièvre.", "fr"),
        ("Ich habe seit drei Tagen Kopfschmerzen und Fieber.", "de"),
        ("У меня болит голова уже три дня.", "ru"),
        ("120/80, 38.5", "und"),
        ("？！", "und"),
        ("", "und"),
    ],
)
def test_languages_are_told_apart(text: str, language: str) -> None:
    assert identify(text) == language


def test_of_a_tasks_equal_documents_the_first_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": text} for text in (COUGH, FEVER, COUGH.upper() + "\n", FEVER))))
    ((table, result),) = batches([source(str(tmp_path / "a.jsonl"))], 1 << 30)[0]
    assert table.num_rows == 4 and [row["text"] for row in result.table.to_pylist()] == [COUGH, FEVER]
    assert [row for row, _ in result.dropped] == [2, 3]
    assert len(rows([source(str(tmp_path / "a.jsonl"))], duplicates="keep")) == 4
