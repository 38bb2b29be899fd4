"""Exams in every published shape, bad rows with their reasons, and the hash that tells whether two splits are one."""

from __future__ import annotations

import copy
import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_cases import SHARED, jsonl, table

from rayrl.data.readers.exams import read_exam, split_hash
from rayrl.errors import UserError
from rayrl.types import ExamItem

OPTIONS = {"A": "胰岛素", "B": "二甲双胍", "C": "格列美脲", "D": "阿卡波糖"}
DRUGS = {"A": "Insulin", "B": "Metformin", "C": "Glipizide", "D": "Acarbose"}
ASK = "肥胖的2型糖尿病患者首选"
OWN = {"id": "q-1", "exam": "自编", "language": "zh", "question": ASK, "options": OPTIONS, "answer": "B"}


def only(path: Path, **keys: Any) -> ExamItem:
    read = read_exam(str(path), name="测试", **keys)
    assert read.rejected == []
    (item,) = read.items
    return item


def reasons(path: Path, **keys: Any) -> list[str]:
    read = read_exam(str(path), name="测试", **keys)
    assert read.items == []
    return [bad.reason for bad in read.rejected]


# Formats


def test_own_rows(tmp_path: Path) -> None:
    row = {**OWN, "year": 2021, "type": "matched", "group": "g"}
    item = only(jsonl(tmp_path / "x.jsonl", [row]))
    assert item == ExamItem("q-1", ASK, OPTIONS, "B", False, "matched", "自编", "2021", "g", "zh")
    several = only(jsonl(tmp_path / "m.jsonl", [{**OWN, "answer": "DB", "multiple": True}]))
    assert (several.answer, several.multiple, several.type, several.exam) == ("BD", True, "multiple", "自编")


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_huatuogpt2(encoding: str, tmp_path: Path) -> None:
    rows = [
        {"question": ASK, "option": {**OPTIONS, "E": "西格列汀"}, "answer": answer, "question_type": kind}
        for kind, answer in (
            ("最佳选择题", "B"), ("配伍选择题", "E"), ("配伍选择题", "A"), ("综合分析选择题", "C"),
            ("多项选择题", "ABE"), ("多项选择题", "A"),
        )
    ]  # fmt: skip
    path = tmp_path / "2023年药师.json"
    path.write_text(json.dumps({"dataset": rows}, ensure_ascii=False), encoding)
    read = read_exam(str(path), name="药师")
    assert read.rejected == []
    kinds = ["single", "matched", "matched", "case", "multiple", "multiple"]
    assert [item.type for item in read.items] == kinds
    assert [item.answer for item in read.items] == ["B", "E", "A", "C", "ABE", "A"]
    assert [item.multiple for item in read.items] == [False, False, False, False, True, True]
    assert {item.year for item in read.items} == {"2023"} and {item.exam for item in read.items} == {"药师"}
    assert read.items[1].group == read.items[2].group is not None
    assert len({item.id for item in read.items}) == len(rows)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding)
    assert [item.question for item in read_exam(str(path), name="药师").items] == [ASK] * len(rows)


def test_cmb(tmp_path: Path) -> None:
    row = {
        "exam_type": "医师考试", "exam_class": "执业医师", "exam_subject": "内科", "question": ASK, "answer": "B",
        "question_type": "单项选择题", "option": {**OPTIONS, "E": "", "F": " "},
    }  # fmt: skip
    several = {**row, "question_type": "多项选择题", "answer": "ABD"}
    test = {key: value for key, value in row.items() if key != "answer"}
    read = read_exam(str(jsonl(tmp_path / "cmb.jsonl", [row, several, test, {**test, "answer": ""}])), name="CMB")
    assert [(item.answer, item.multiple, dict(item.options)) for item in read.items] == [
        ("B", False, OPTIONS), ("ABD", True, OPTIONS),
    ]  # fmt: skip
    hint = "no answer: answers of CMB's test set lie in another file, join them first"
    assert [(bad.line, bad.reason) for bad in read.rejected] == [(3, hint), (4, hint)]


def test_cmexam(tmp_path: Path) -> None:
    lines = "\n".join(f"{letter} {text}" for letter, text in OPTIONS.items())
    row = {"Question": ASK, "Options": lines, "Answer": "B", "Explanation": "略"}
    assert only(table(tmp_path / "x.csv", [row])).options == OPTIONS
    assert only(jsonl(tmp_path / "x.jsonl", [row])).answer == "B"
    pairs = [{"key": letter, "value": text} for letter, text in OPTIONS.items()]
    assert only(jsonl(tmp_path / "y.jsonl", [{**row, "Options": pairs}])).options == OPTIONS
    dots = lines.replace(" ", "．") + "\n（片剂）"
    assert only(jsonl(tmp_path / "z.jsonl", [{**row, "Options": dots}])).options["D"] == "阿卡波糖\n（片剂）"
    several = only(jsonl(tmp_path / "m.jsonl", [{**row, "Answer": "AC"}]))
    assert (several.answer, several.multiple, several.type) == ("AC", True, "multiple")


def test_medqa(tmp_path: Path) -> None:
    row = {
        "question": "Which is first?",
        "options": DRUGS,
        "answer": "Metformin",
        "answer_idx": "B",
        "meta_info": "step1",
    }
    item = only(jsonl(tmp_path / "x.jsonl", [row]))
    assert (item.answer, item.options, item.language) == ("B", DRUGS, "en")
    del row["answer_idx"]
    assert only(jsonl(tmp_path / "y.jsonl", [row])).answer == "B"
    contrary = jsonl(tmp_path / "z.jsonl", [{**row, "answer_idx": "C"}])
    assert reasons(contrary) == ["answer and answer_idx disagree"]


def medmcqa(*cops: Any) -> list[dict[str, Any]]:
    options = {f"op{letter.lower()}": text for letter, text in DRUGS.items()}
    return [
        {"id": f"m{number}", "question": f"Which {number}?", **options, "cop": cop, "choice_type": "multi", "exp": None}
        for number, cop in enumerate(cops)
    ]


def test_medmcqa_counts_from_0_or_from_1(tmp_path: Path) -> None:
    def answers(name: str, **keys: Any) -> str:
        return "".join(item.answer for item in read_exam(str(tmp_path / name), name="m", **keys).items)

    jsonl(tmp_path / "one.jsonl", medmcqa(1, 4, 2))
    jsonl(tmp_path / "zero.jsonl", medmcqa(0, 3, 2, -1))
    assert answers("one.jsonl") == "ADB"
    assert answers("zero.jsonl") == "ADC"
    jsonl(tmp_path / "either.jsonl", medmcqa(1, 2, 3))
    assert answers("either.jsonl") == "" and "cop_base" in reasons(tmp_path / "either.jsonl")[0]
    assert answers("either.jsonl", cop_base=0) == "BCD" and answers("either.jsonl", cop_base=1) == "ABC"
    both = reasons(jsonl(tmp_path / "both.jsonl", medmcqa(0, 4)))
    assert both == 2 * ["the file's cop are 0 to 4: whether they count from 0 or from 1 can't be told"]
    assert not any(item.multiple for item in read_exam(str(tmp_path / "one.jsonl"), name="m").items)
    table(tmp_path / "one.csv", medmcqa(1, 4))
    assert answers("one.csv") == "AD"


def test_mmlu(tmp_path: Path) -> None:
    with (tmp_path / "x.csv").open("w", newline="") as out:
        csv.writer(out).writerows(
            [["Which, first?", *DRUGS.values(), "B"], ['A "b"\nc?', "1", "2", "3", "4", "D"], ["?", "1", "2", "B"]]
        )
    read = read_exam(str(tmp_path / "x.csv"), name="MMLU")
    assert [(item.question, item.answer) for item in read.items] == [("Which, first?", "B"), ('A "b"\nc?', "D")]
    assert [(bad.line, bad.reason) for bad in read.rejected] == [(4, "the row has 4 cells, the first one 6")]
    rows = [
        {"question": "Which?", "subject": "anatomy", "choices": list(DRUGS.values()), "answer": number}
        for number in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert [item.answer for item in read_exam(str(tmp_path / "x.parquet"), name="MMLU").items] == list("ABCD")
    assert reasons(jsonl(tmp_path / "bad.jsonl", [{**rows[0], "answer": 4}])) == [
        "answer is no number of an option, 0 to 3"
    ]


def test_cmmlu_and_c_eval(tmp_path: Path) -> None:
    cmmlu = {"": "0", "Question": ASK, **OPTIONS, "Answer": "B"}
    assert only(table(tmp_path / "x.csv", [cmmlu])).options == OPTIONS
    (tmp_path / "dev").mkdir()
    ceval = {"id": "0", "question": ASK, **OPTIONS, "answer": "C", "explanation": ""}
    table(tmp_path / "dev" / "a.csv", [ceval])
    table(tmp_path / "dev" / "b.csv", [ceval, {**ceval, "id": "1", "answer": ""}])
    read = read_exam(str(tmp_path / "dev"), name="C-Eval")
    assert [item.id for item in read.items] == ["C-Eval-a-0", "C-Eval-b-0"]
    assert [(Path(bad.file).name, bad.line, bad.reason) for bad in read.rejected] == [("b.csv", 3, "no answer")]


def test_a_case_stands_before_its_question(tmp_path: Path) -> None:
    case = "男，60岁，胸痛1小时。"
    rows = [
        {**OWN, "id": "1", "case": case},
        {**OWN, "id": "2", "case": case, "question": f"{case}首先应"},
        {**OWN, "id": "3", "stem": case, "group": "c9"},
    ]
    first, second, third = read_exam(str(jsonl(tmp_path / "x.jsonl", rows)), name="x").items
    assert first.question == f"{case}\n{ASK}" == third.question and second.question == f"{case}首先应"
    assert first.group == second.group is not None and third.group == "c9"
    assert {first.type, second.type, third.type} == {"case"}
    stem = {key: value for key, value in OWN.items() if key != "question"}
    assert only(jsonl(tmp_path / "y.jsonl", [{**stem, "stem": ASK}])).question == ASK


def test_years(tmp_path: Path) -> None:
    assert only(jsonl(tmp_path / "x.jsonl", [{**OWN, "exam": "2019年执业医师"}])).year == "2019"
    assert only(jsonl(tmp_path / "pharmacist_2023.jsonl", [OWN])).year == "2023"
    assert only(jsonl(tmp_path / "y120231.jsonl", [OWN])).year == ""
    assert only(jsonl(tmp_path / "2023.jsonl", [{**OWN, "year": "2020"}])).year == "2020"


def test_repeated_ids_are_told_apart(tmp_path: Path) -> None:
    read = read_exam(str(jsonl(tmp_path / "x.jsonl", [OWN, OWN, {**OWN, "id": 7}])), name="x y")
    assert [item.id for item in read.items] == ["q-1", "q-1@2", "x y-7"]


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("b", "B"), ("Ｂ", "B"), ("(B)", "B"), ("B.", "B"), ("二甲双胍", "B"), (["B"], "B"), ("A,C", "AC"),
        ("A、C", "AC"), (["C", "A"], "AC"),
    ],
)  # fmt: skip
def test_ways_to_write_an_answer(answer: Any, letters: str, tmp_path: Path) -> None:
    assert only(jsonl(tmp_path / "x.jsonl", [{**OWN, "answer": answer}])).answer == letters


# Bad rows


NO_OPTIONS = "no options: expected two or more, under a key like 'options', or in columns A, B, C"
GAP = "the options' letters aren't A, B, C ... without a gap, J at most"
SEVERAL = "answer AB has several letters, but the question is a single one"
BAD: list[tuple[Any, str]] = [
    (7, "the row is a number, expected a mapping"),
    ({**OWN, "question": " "}, "no question"),
    ({**OWN, "question": ["a"]}, "question is a list, expected text"),
    ({**OWN, "question": "a\x00"}, "question has the control character U+0000 at position 2"),
    ({**OWN, "question": "咳" * 100_001}, "question has 100001 characters, more than max_chars, 100000"),
    ({"id": "x", "question": ASK, "answer": "B"}, NO_OPTIONS),
    ({**OWN, "options": {"A": "x"}}, NO_OPTIONS),
    ({**OWN, "options": 3}, "options are a number, expected a mapping or a list"),
    ({**OWN, "options": "x y"}, "options are text that doesn't begin with a line 'A ...'"),
    ({**OWN, "options": "[1"}, "options are text that isn't JSON"),
    ({**OWN, "options": {"A": "x", "C": "y"}}, GAP),
    ({**OWN, "options": [str(number) for number in range(11)]}, GAP),
    ({**OWN, "options": {"A": "x", "B": None, "C": "y"}}, "no option B"),
    ({**OWN, "options": {"A": "x", "B": ["y"]}}, "option B is a list, expected text"),
    ({**OWN, "options": {"A": "x  y", "B": "z", "C": "x y"}}, "options A and C are the same"),
    ({**OWN, "answer": "E"}, "answer E isn't among the options A to D"),
    ({**OWN, "answer": "ADE"}, "answer ADE isn't among the options A to D"),
    ({**OWN, "answer": None}, "no answer"),
    ({**OWN, "answer": 1}, "answer is a number, expected letters or an option's text"),
    ({**OWN, "answer": "吡格列酮"}, "answer is neither letters nor an option's text"),
    ({**OWN, "answer": "AA"}, "answer is neither letters nor an option's text"),
    ({**OWN, "answer": "AB", "options": {"A": "x", "B": "y", "C": "AB"}}, "answer may be letters or an option's text"),
    ({**OWN, "answer": "AB", "type": "single"}, SEVERAL),
    ({**OWN, "answer": "AB", "question_type": "最佳选择题"}, SEVERAL),
    ({**OWN, "answer": "AB", "multiple": False}, SEVERAL),
    ({**OWN, "cop": "x"}, "cop is text, expected an option's number"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD, ids=lambda value: str(value)[:40])
def test_bad_rows_have_their_reason(row: Any, reason: str, tmp_path: Path) -> None:
    read = read_exam(str(jsonl(tmp_path / "x.jsonl", [OWN, row])), name="x")
    assert len(read.items) == 1
    assert [(bad.line, bad.reason) for bad in read.rejected] == [(2, reason)]


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        read_exam(str(tmp_path / "none.jsonl"), name="an exam / of mine")
    with pytest.raises(UserError):
        read_exam(str(tmp_path), name="x")


JUNK: list[Any] = [
    None, True, 0, 1, -2.5, float("nan"), float("inf"), 10**400, "", " ", "x", "A", "AB", "\x00", "\ud800",
    "a" * 200_000, [], [[]], [None], ["x"], ["x", "y"], {}, {"a": 1}, {"A": "x"}, {"A": "x", "B": "y"}, 
    {"text": [], "label": []}, "[1", "{}", "A x\nB y", 2023, "多项选择题", {"key": "A"}, [{"key": "A"}],
]  # fmt: skip


def _damaged(row: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The row with one value replaced, removed or renamed."""
    row = copy.deepcopy(row)
    inside = [value for value in row.values() if isinstance(value, dict) and value]
    node = draw.choice(inside) if inside and draw.random() < 0.4 else row
    key = draw.choice(list(node))
    action = draw.random()
    if action < 0.6:
        node[key] = draw.choice(JUNK)
    elif action < 0.8:
        del node[key]
    else:
        node[draw.choice([*node, "cop", "case", "answer_idx", "choices", "\ud800", "Z"])] = node.pop(key)
    return row


def test_a_thousand_damaged_rows_crash_nothing(tmp_path: Path) -> None:
    draw = random.Random(0)
    shapes = [
        OWN,
        {"question": ASK, "option": OPTIONS, "answer": "B", "question_type": "最佳选择题"},
        {"Question": ASK, "Options": "A x\nB y\nC z", "Answer": "B"},
        {"question": "Which?", "options": DRUGS, "answer": "Insulin", "answer_idx": "A"},
        *medmcqa(1, 4),
        {"question": "Which?", "subject": "x", "choices": ["a", "b", "c"], "answer": 2},
        {"question": ASK, **OPTIONS, "answer": "C"},
        {**OWN, "case": "病例", "group": "g", "year": 2020},
    ]
    lines = []
    for _ in range(1000):
        row = draw.choice(shapes)
        for _ in range(draw.randint(0, 3)):
            row = _damaged(row, draw) if row else row
        raw = bytearray(json.dumps(row, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"))
        for _ in range(draw.choice([0, 0, 0, 1, 3])):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        lines.append(bytes(raw).replace(b"\n", b" ").strip() or b"{")
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    read = read_exam(str(file), name="fuzz", encoding="utf-8")
    assert len(read.items) + len(read.rejected) == 1000 and len(read.items) > 150
    assert all(bad.reason.isprintable() and 0 < len(bad.reason) < 300 for bad in read.rejected)
    _check(read.items)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json"])
def test_damaged_files_crash_nothing(suffix: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    file = tmp_path / f"x.{suffix}"
    rows = [{"question": f'说："{ASK}"，\n{number}', **OPTIONS, "answer": "B"} for number in range(5)]
    for attempt in range(150):
        if suffix == "json":
            jsonl(file, [{"dataset": rows}])
        else:
            table(file, rows, draw.choice(["utf-8", "gbk"]), "," if suffix == "csv" else "\t")
        raw = bytearray(file.read_bytes())
        if attempt % 2 and suffix != "json":
            del raw[: raw.index(b"\n") + 1]  # without its header
        for _ in range(draw.randint(0, 6)):
            raw[draw.randrange(len(raw))] = draw.choice([0, 9, 10, 13, 34, 44, 91, 0x81, 0xFF, draw.randrange(256)])
        file.write_bytes(raw)
        read = read_exam(str(file), name="x")
        assert all(bad.reason for bad in read.rejected)
        _check(read.items)


def _check(items: list[ExamItem]) -> None:
    assert len({item.id for item in items}) == len(items)
    for item in items:
        letters = "".join(item.options)
        assert letters == "ABCDEFGHIJ"[: len(letters)] and len(letters) > 1
        assert item.answer and set(item.answer) <= set(letters) and list(item.answer) == sorted(set(item.answer))
        assert item.multiple or len(item.answer) == 1
        assert item.question.strip() and all(text.strip() for text in item.options.values())
        json.dumps(vars(item), ensure_ascii=False).encode()
    split_hash(items)


# The project's own exams


@pytest.mark.parametrize("language", ["en", "zh"])
def test_built_in_exams(language: str) -> None:
    read = read_exam(f"exam-{language}", name="own")
    items = read.items
    assert read.rejected == [] and len(items) == 80
    _check(items)
    assert Counter(item.type for item in items) == {"single": 50, "multiple": 12, "matched": 9, "case": 9}
    assert {item.language for item in items} == {language}
    assert {item.exam for item in items} == {"physician", "pharmacist"}
    assert Counter(item.year for item in items) == {"2024": 40, "2025": 40}
    for item in items:
        assert item.multiple == (item.type == "multiple") == (len(item.answer) > 1) and len(item.answer) <= 4
        assert len(item.options) == 5 or (language == "en" and item.type == "single" and len(item.options) == 4)
    assert len({"".join(filter(str.isalnum, item.question.lower())) for item in items}) == 80


@pytest.mark.parametrize("language", ["en", "zh"])
def test_keys_of_built_in_exams_show_neither_in_letters_nor_in_lengths(language: str) -> None:
    singles = [item for item in read_exam(f"exam-{language}", name="own").items if item.type == "single"]
    assert set(Counter(item.answer for item in singles).values()) == {10}
    for extreme in (min, max):  # what guessing one of the longest options, or of the shortest ones, gets right
        right = 0.0
        for item in singles:
            size = extreme(map(len, item.options.values()))
            guesses = [letter for letter, text in item.options.items() if len(text) == size]
            right += (item.answer in guesses) / len(guesses)
        assert right / len(singles) < 0.25


@pytest.mark.parametrize("language", ["en", "zh"])
def test_groups_of_built_in_exams_share_their_options_or_their_case(language: str) -> None:
    groups: dict[str, list[ExamItem]] = {}
    for item in read_exam(f"exam-{language}", name="own").items:
        assert (item.group is None) == (item.type in ("single", "multiple"))
        if item.group is not None:
            groups.setdefault(item.group, []).append(item)
    assert len(groups) == 6
    for items in groups.values():
        assert len(items) == 3 and len({item.type for item in items}) == 1
        if items[0].type == "matched":
            assert items[0].options == items[1].options == items[2].options
            assert len({item.answer for item in items}) == 3
        else:  # the case stands before each question
            cases, asked = zip(*(item.question.split("\n") for item in items), strict=True)
            assert len(set(cases)) == 1 and len(set(asked)) == 3


# Splits


def test_split_hash_knows_a_split_whatever_its_order_and_spelling() -> None:
    a = ExamItem("1", "维生素A缺乏，会引起？", {"A": "夜盲 症", "B": "坏血病"}, "A")
    b = ExamItem("2", "Which?", DRUGS, "B")
    again = ExamItem("other", "维生素Ａ缺乏,会引起?", {"A": "夜盲症。", "B": "坏血病"}, "A", exam="x", year="2020")
    assert split_hash([a, b]) == split_hash([b, again])
    assert len({split_hash(items) for items in ([a], [b], [a, b], [a, a], [])}) == 5
    assert split_hash([b]) != split_hash([ExamItem("2", "Which?", DRUGS, "C")])
    assert split_hash([b]) != split_hash([ExamItem("2", "Which?", {**DRUGS, "D": "Acarbose 2"}, "B")])
    assert len(split_hash([])) == 64


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
def test_real_exams() -> None:
    read = read_exam(str(SHARED / "exam_mcq.jsonl"), name="shared")
    assert read.rejected == [] and len(read.items) == 2310
    _check(read.items)
    rows = [json.loads(line) for line in (SHARED / "exam_mcq.jsonl").read_text("utf-8").splitlines()]
    for item, row in zip(read.items, rows, strict=True):
        assert (item.id, item.exam, item.language) == (row["id"], row["exam"], row["language"])
        assert (item.question, item.options, item.answer) == (row["question"].strip(), row["options"], row["answer"])
    assert not any(item.multiple for item in read.items)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
def test_real_exams_come_back_from_every_format(tmp_path: Path) -> None:
    """Each question written as HuatuoGPT-II, CMExam, MedMCQA, MMLU and C-Eval write theirs."""
    items = [item for item in read_exam(str(SHARED / "exam_mcq.jsonl"), name="x").items if len(item.options) == 4]
    assert len(items) > 1000
    expected = split_hash(items)

    def same(path: Path) -> bool:
        read = read_exam(str(path), name="x")
        return read.rejected == [] and split_hash(read.items) == expected

    def row(item: ExamItem, **rest: Any) -> dict[str, Any]:
        return {"question": item.question, **rest}

    huatuo = {"dataset": [row(item, option=item.options, answer=item.answer) for item in items]}
    (tmp_path / "h.json").write_text(json.dumps(huatuo, ensure_ascii=False), "utf-8")
    lines = ["\n".join(f"{letter} {text}" for letter, text in item.options.items()) for item in items]
    table(
        tmp_path / "c.csv",
        [row(item, options=text, answer=item.answer) for item, text in zip(items, lines, strict=True)],
    )
    cops = [
        row(item, **{f"op{key.lower()}": text for key, text in item.options.items()}, cop="ABCD".index(item.answer) + 1)
        for item in items
    ]
    jsonl(tmp_path / "m.jsonl", cops)
    choices = [row(i, choices=list(i.options.values()), answer="ABCD".index(i.answer)) for i in items]
    pq.write_table(pa.Table.from_pylist(choices), tmp_path / "m.parquet")
    with (tmp_path / "mmlu.csv").open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([item.question, *item.options.values(), item.answer] for item in items)
    table(tmp_path / "e.csv", [row(item, **item.options, answer=item.answer) for item in items], "gb18030")
    for name in ("h.json", "c.csv", "m.jsonl", "m.parquet", "mmlu.csv", "e.csv"):
        assert same(tmp_path / name), name
