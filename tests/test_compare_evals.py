"""Evaluations side by side: shared numbers, changes, and exams that aren't the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayrl.cli import main
from rayrl.evaluation.compare_evals import evaluations_page, read_evaluation
from rayrl.evaluation.numbers import NUMBERS, Number, write_numbers


def evaluation(folder: Path, accuracy: float, split_hash: str, *more: Number) -> Path:
    folder.mkdir()
    own = [
        Number("exams", "cmb", "all", "sft", "accuracy", accuracy, accuracy - 0.1, accuracy + 0.1, 50, "share"),
        Number("exams", "cmb", "year: 2020", "sft", "accuracy", 0.5, None, None, 3, "share"),
    ]
    write_numbers(folder / NUMBERS, [*own, *more])
    summary = {"sets": {"cmb": {"questions": 50, "split_hash": split_hash}}}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def test_shared_numbers_stand_side_by_side(tmp_path: Path) -> None:
    length = Number("metrics", "held", "all", "sft", "length", 40.0, 38.0, 42.0, 9, "number")
    one = evaluation(tmp_path / "one", 0.30, "aa", length)
    two = evaluation(tmp_path / "two", 0.42, "aa")
    page = evaluations_page([read_evaluation(f"before={one}"), read_evaluation(f"after={two}")])
    (table,) = page.tables
    assert table.header == ("model, measure", "before", "after", "last - first")
    assert table.rows == [["sft, accuracy", "30.0% (20.0% to 40.0%)", "42.0% (32.0% to 52.0%)", "+12.0 pp"]]
    assert page.tone == "open"


def test_exams_of_other_questions_are_named(tmp_path: Path) -> None:
    one, two = evaluation(tmp_path / "one", 0.30, "aa"), evaluation(tmp_path / "two", 0.42, "bb")
    page = evaluations_page([read_evaluation(f"a={one}"), read_evaluation(f"b={two}")])
    assert page.tone == "bad" and "Not the same questions: cmb" in page.detail


def test_the_command_writes_the_page_or_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = evaluation(tmp_path / "one", 0.30, "aa"), evaluation(tmp_path / "two", 0.42, "aa")
    assert main(["compare", f"a={one}", f"b={two}", "--to", str(tmp_path / "page.html")]) == 0
    assert "+12.0 pp" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["compare", f"a={one}", f"b={tmp_path}", "--to", str(tmp_path / "page.html")]) == 2
    assert "all must be of `rayrl eval`" in capsys.readouterr().err
    assert main(["compare", f"a={one}"]) == 2
    assert "share no set" in capsys.readouterr().err
