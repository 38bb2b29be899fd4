"""The summary's numbers by hand, and its table on a narrow console."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rayrl.evaluation.summary import build_summary, format_interval, format_number, summary_table, write_summary
from rayrl.types import Sample

COMPLETE = {"a": True, "b": False, "c": False, "d": None}


def sample(prompt_id: str, mixed: float, text: str = "Rest.", raw: float | None = 1.0, step: int = 0) -> Sample:
    return Sample(step, "heldout", prompt_id, [], text, None, {"q": raw}, {}, mixed, 10)


def summary_of(before: list[Sample], after: list[Sample]) -> dict:
    return build_summary(before, after, asks_question=lambda text: "?" in text, complete=COMPLETE)


def test_the_change_is_paired_and_averages_a_prompts_answers() -> None:
    before = [sample("a", 0.1), sample("a", 0.3), sample("b", 0.5), sample("c", 0.6)]
    after = [sample("a", 0.4, step=9), sample("b", 0.7, step=9), sample("c", 0.8, step=9)]
    summary = summary_of(before, after)
    # differences 0.2, 0.2, 0.2: no spread
    assert summary["mixed"]["before"]["mean"] == pytest.approx((0.2 + 0.5 + 0.6) / 3)
    assert summary["mixed"]["difference"]["mean"] == pytest.approx(0.2)
    assert summary["mixed"]["difference"]["low"] == pytest.approx(0.2)
    assert summary["verdict"] == "rose"
    assert summary["intervals_apart"] is False  # between prompts there is spread
    assert (summary["prompts"], summary["answers"], summary["step_after"]) == (3, 3, 9)


def test_verdicts() -> None:
    def verdict(changes: list[float]) -> str:
        before = [sample(name, 0.5) for name in "abc"]
        after = [sample(name, 0.5 + change) for name, change in zip("abc", changes, strict=True)]
        return summary_of(before, after)["verdict"]

    assert verdict([0.1, 0.11, 0.12]) == "rose"
    assert verdict([-0.1, -0.11, -0.12]) == "fell"
    assert verdict([0.1, -0.1, 0.02]) == "no clear change"


def test_question_shares_by_what_is_missing() -> None:
    before = [sample("a", 0, "How long?"), sample("a", 0), sample("b", 0), sample("c", 0), sample("d", 0, "Why?")]
    after = [sample("a", 0), sample("b", 0, "How?"), sample("c", 0, "Where?"), sample("c", 0), sample("d", 0, "Why?")]
    shares = summary_of(before, after)["question_share"]
    assert shares["complete"]["before"]["mean"] == 0.5 and shares["complete"]["after"]["mean"] == 0
    assert shares["incomplete"]["before"]["mean"] == 0 and shares["incomplete"]["after"]["mean"] == 0.75
    assert shares["incomplete"]["difference"]["mean"] == 0.75
    assert shares["incomplete"]["after"]["n"] == 2  # prompts, not answers; d isn't known


def test_a_source_that_was_left_out_counts_only_where_it_scored() -> None:
    before = [sample("a", 0, raw=None), sample("b", 0, raw=0.2), sample("b", 0, raw=None)]
    after = [sample("a", 0, raw=0.9), sample("b", 0, raw=0.6)]
    source = summary_of(before, after)["sources"]["q"]
    assert source["before"] == {"mean": 0.2, "low": None, "high": None, "n": 1}
    assert source["after"]["mean"] == 0.75
    assert source["difference"]["mean"] == pytest.approx(0.4) and source["difference"]["n"] == 1


def test_a_source_that_never_scored_has_no_numbers() -> None:
    source = summary_of([sample("a", 0, raw=None)], [sample("a", 0, raw=None)])["sources"]["q"]
    assert source == {"unit": "score", "before": None, "after": None, "difference": None}


def test_evaluations_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="before training has no samples"):
        summary_of([], [sample("a", 0)])
    with pytest.raises(ValueError, match="share no prompt"):
        summary_of([sample("a", 0)], [sample("b", 0)])
    train = Sample(0, "train", "a", [], "x", None, {}, {}, 0.0, 1)
    with pytest.raises(ValueError, match="after training holds samples of split 'train'"):
        summary_of([sample("a", 0)], [train])


def test_written_as_json_and_read_back(tmp_path: Path) -> None:
    summary = build_summary(
        [sample("a", 0.25), sample("b", 0.5)],
        [sample("a", 0.5), sample("b", 0.5)],
        asks_question=lambda text: False,
        complete={},
        kl={"kl/mean_per_sequence": 0.8},
    )
    write_summary(tmp_path / "summary.json", summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["kl"] == {"mean_per_sequence": 0.8}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_table_fits_a_console_of_80_columns() -> None:
    before = [sample(name, 0.25 + i / 10, "[red]How[/red]?") for i, name in enumerate("abc")]
    after = [sample(name, 0.75 + i / 10) for i, name in enumerate("abc")]
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(summary_of(before, after)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("3 held-out prompts, 3 answers, 95% intervals")
    rows = [line.split("  ") for line in lines]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["Mixed score", "0.350", "0.850", "+0.500"] in cells
    asked = next(row for row in cells if row and row[0].startswith("Asks"))  # a long label is folded, numbers never are
    assert asked[1:] == ["100.0%", "0.0%", "−100.0 pp"]


def test_numbers_in_their_units() -> None:
    estimate = {"low": -0.05, "high": 0.125}
    assert format_number(0.5, "score") == "0.500"
    assert format_number(-0.5, "share", signed=True) == "−50.0 pp"
    assert format_number(0.5, "share") == "50.0%"
    assert format_number(12.34, "tokens", signed=True) == "+12.3"
    assert format_interval(estimate, "share", signed=True) == "−5.0 to +12.5"
    assert format_interval({"low": None, "high": None}, "score") == ""
