"""Physicians' choices from a CSV: spellings, rows that can't be used, majorities, agreement, all by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.errors import UserError
from rayrl.evaluation.experts import expert_agreement, majority, read_choices
from rayrl.evaluation.pairwise import Match, Outcome
from rayrl.feedback.agreement import cohen_kappa

HEAD = "id,expert,model_a,model_b,choice,category\n"


def file(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "choices.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def match(item: int | str, rater: str, outcome: Outcome | None, category: str = "") -> Match:
    return Match("ward", str(item), category, "ppo", "sft", outcome, rater=rater)


def test_a_row_is_a_match_with_its_models_in_order(tmp_path: Path) -> None:
    text = HEAD + "q1,Wang,ppo,sft,a,ENT\nq2,Wang,sft,ppo,a,皮肤科\n q3 , Li , sft , ppo , tie ,\n"
    read = read_choices("ward", file(tmp_path, text))
    assert read.matches == [
        Match("ward", "q1", "ENT", "ppo", "sft", "a", rater="Wang"),
        Match("ward", "q2", "皮肤科", "ppo", "sft", "b", rater="Wang"),  # sft is first in the file, ppo in a match
        Match("ward", "q3", "", "ppo", "sft", "tie", rater="Li"),
    ]
    assert read.rejected == []


@pytest.mark.parametrize(
    ("outcome", "spellings"),
    [
        ("a", ["a", "A", "1", "left", "Model_A", "WIN", "Ａ", "１", " a "]),
        ("b", ["b", "B", "2", "Right", "model_b", "lose", "Loss", "Ｂ", "２"]),
        ("tie", ["tie", "TIE", "0", "same", "Equal", "draw", "平", "平局"]),
    ],
)
def test_spellings_of_a_choice(tmp_path: Path, outcome: Outcome, spellings: list[str]) -> None:
    rows = "".join(f"q{i},Wang,ppo,sft,{choice},\n" for i, choice in enumerate(spellings))
    assert [one.outcome for one in read_choices("ward", file(tmp_path, HEAD + rows)).matches] == [outcome] * len(
        spellings
    )


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + HEAD.encode() + b"q1,Wang,ppo,sft,a,ENT\n",
        (HEAD + "q1,Wang,ppo,sft,a,ENT\n").replace("\n", "\r\n").encode(),
        (HEAD + "q1,Wang,ppo,sft,a,ENT\n").replace("\n", "\r").encode(),
        (HEAD + "q1,Wang,ppo,sft,a,ENT").encode(),
        b'"choice","model_b","model_a","expert","notes","id","category"\n'
        b'a,sft,ppo,Wang,"two\nlines, and a ""comma""",q1,ENT\n\n',
        b"id,expert,model_a,model_b,choice,category\nq1,Wang,ppo,sft,a,ENT,left over\n",
    ],
    ids=["BOM", "CRLF", "CR", "no last end", "quotes and order", "a cell too many"],
)
def test_files_as_spreadsheets_save_them(tmp_path: Path, text: bytes) -> None:
    read = read_choices("ward", file(tmp_path, text))
    assert read.matches == [Match("ward", "q1", "ENT", "ppo", "sft", "a", rater="Wang")] and read.rejected == []


def test_rows_that_can_t_be_used_say_where_and_why(tmp_path: Path) -> None:
    rows = [
        "q1,Wang,ppo,sft,a,",
        "q2,Wang,ppo,sft,maybe,",
        "q3,,ppo,sft,a,",
        "q4,Wang,ppo,ppo,a,",
        "q5,Wang,ppo",
        "q1,Wang,sft,ppo,b,",
        "q1,Li,ppo,sft,b,",
    ]
    path = file(tmp_path, HEAD + "\n".join(rows) + "\n")
    read = read_choices("ward", path)
    assert [(one.item, one.rater, one.outcome) for one in read.matches] == [("q1", "Wang", "a"), ("q1", "Li", "b")]
    assert [(one.file, one.line, one.reason) for one in read.rejected] == [
        (path, 3, "choice is 'maybe', expected a, tie or b"),
        (path, 4, "expert is empty"),
        (path, 5, "model_a and model_b are the same"),
        (path, 6, "model_b is empty"),
        (path, 7, "Wang has chosen for 'q1' before"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no column 'id'"),
        ("id,expert,model_a,model_b\nq1,Wang,ppo,sft\n", "no column 'choice'; it needs id, expert, model_a"),
        ("id;expert;model_a;model_b;choice\n", "no column 'id'"),
        (HEAD.encode("utf-16"), "can't be read as CSV in UTF-8"),
        ("编号,专家\n".encode("gb18030"), "can't be read as CSV in UTF-8"),
        (
            HEAD + 'q1,"Wang,ppo,sft,a,\nq2,Wang,ppo,sft,a,\n',
            "can't be read.*the row after line 1: unexpected end of data",
        ),
    ],
)
def test_files_that_can_t_be_read(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(UserError, match=f"experts 'ward': .*{why}"):
        read_choices("ward", file(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(UserError, match=f"experts 'ward': {path} can't be read"):
            read_choices("ward", str(path))


@pytest.mark.parametrize(
    ("choices", "decided"),
    [
        ("a", "a"),
        ("ab", "tie"),
        ("at", "tie"),
        ("aab", "a"),
        ("abb", "b"),
        ("aatb", "tie"),  # 2-1-1: the most, but not more than half
        ("aabb", "tie"),
        ("aaab", "a"),
        ("ttta", "tie"),
        ("abt", "tie"),
        ("bbbat", "b"),
    ],
)
def test_more_than_half_decide(choices: str, decided: Outcome) -> None:
    said: dict[str, Outcome] = {"a": "a", "b": "b", "t": "tie"}
    (one,) = majority([match("q1", f"expert {i}", said[letter], "ENT") for i, letter in enumerate(choices)])
    assert one == Match("ward", "q1", "ENT", "ppo", "sft", decided, rater="experts")


def test_every_question_pair_and_set_is_decided_by_itself() -> None:
    matches = [match(1, "Wang", "a"), match(2, "Wang", "b"), match(1, "Li", "a")]
    matches += [Match("clinic", "1", "", "ppo", "sft", "b", rater="Li"), Match("ward", "1", "", "ppo", "x", "tie")]
    assert [(one.set, one.item, one.model_b, one.outcome) for one in majority(matches)] == [
        ("ward", "1", "sft", "a"),
        ("ward", "2", "sft", "b"),
        ("clinic", "1", "sft", "b"),
        ("ward", "1", "x", "tie"),
    ]
    assert majority([]) == []


@given(st.lists(st.sampled_from(["a", "tie", "b"]), min_size=1, max_size=9))
def test_a_majority_mirrors(outcomes: list[Outcome]) -> None:
    matches = [match("q", f"{i}", outcome) for i, outcome in enumerate(outcomes)]
    (one,), (other,) = majority(matches), majority([single.swapped() for single in matches])
    assert other.outcome == one.swapped().outcome


def test_agreement_by_hand() -> None:
    """Wang a a tie b b a, Li a b tie b a a: 4 of 6 alike. Wang says a 3, tie 1, b 2 times, and so does Li, so by chance
    (9 + 1 + 4) / 36 agree, and kappa is (24/36 - 14/36) / (22/36).
    """
    wang: list[Outcome] = ["a", "a", "tie", "b", "b", "a"]
    li: list[Outcome] = ["a", "b", "tie", "b", "a", "a"]
    matches = [match(i, "Wang", one) for i, one in enumerate(wang)] + [match(i, "Li", one) for i, one in enumerate(li)]
    matches += [match(9, "Wang", "a"), match(0, "Zhao", "a"), match(8, "Sun", "a"), match(0, "Nobody", None)]
    found = {one["experts"]: one for one in expert_agreement(matches)}
    assert list(found) == [("Li", "Wang"), ("Li", "Zhao"), ("Wang", "Zhao")]
    both = found["Li", "Wang"]
    assert (both["questions"], both["same"], both["kappa"]) == (6, pytest.approx(4 / 6), pytest.approx(10 / 22))
    assert both["kappa"] == cohen_kappa(li, wang, ("a", "tie", "b"))
    assert found["Li", "Zhao"] == {"experts": ("Li", "Zhao"), "questions": 1, "same": 1.0, "kappa": None}


def test_agreement_of_nobody() -> None:
    assert expert_agreement([]) == [] and expert_agreement([match(1, "Wang", "a")]) == []
