"""Runs side by side: stages one after the other, and what can't be compared."""

import json
from pathlib import Path

import pytest

from rayrl.cli import main
from rayrl.errors import UserError
from rayrl.evaluation.compare_report import comparison_page, read_run


def finished(folder: Path, losses: list[float], validation: float) -> Path:
    folder.mkdir()
    rows = [{"step": step, "tokens": 1_000_000, "loss/train": loss} for step, loss in enumerate(losses)]
    rows[-1]["validation/loss"] = validation
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"validation_loss": {"before": 9.0, "after": validation}, "steps": len(losses)}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_stage_begins_where_the_one_before_ended(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", [5.0, 4.0, 3.0], 3.5)
    first, second = finished(tmp_path / "first", [5.0], 4.5), finished(tmp_path / "second", [6.0, 2.0], 2.5)
    page = comparison_page([read_run(f"one={one}"), read_run(f"two={first}+{second}")])
    training, validation = page.sections[0][1]
    curves = {series.name: (series.x, series.y) for series in training.panels[0].series}
    assert curves == {"one": ([1, 2, 3], [5, 4, 3]), "two": ([1, 2, 3], [5, 6, 2])}
    points = {series.name: (series.x, series.y) for series in validation.panels[0].series}
    assert points == {"one": ([3], [3.5]), "two": ([1, 3], [4.5, 2.5])}
    assert page.tables[0].rows[1] == ("two", "2", "1 + 2", "3,000,000", "4.500 then 2.500")


def test_the_command_writes_the_page_or_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = finished(tmp_path / "one", [5.0, 4.0], 3.5)
    assert main(["compare", f"mine={one}", "--to", str(tmp_path / "new" / "page.html")]) == 0
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "million tokens trained" in page and "mine" in page and "<script" not in page
    assert main(["compare", f"mine={tmp_path}"]) == 2
    assert "isn't the folder of a finished `rayrl sft`" in capsys.readouterr().err
    with pytest.raises(UserError, match="NAME=FOLDER"):
        read_run(str(one))
