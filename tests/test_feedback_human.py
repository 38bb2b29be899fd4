"""Human rankings: by item, by criterion, what annotators agree on, what the third decides. Numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayrl.config.feedback import AdmissionConfig, HumanConfig, RankingSourceConfig
from rayrl.feedback.adjudicate import comparisons, decide, disagreement
from rayrl.feedback.agreement import annotator_agreement, cohen_kappa, ordinal_alpha, rater_agreement
from rayrl.feedback.rankings import Item, combine, group, read_items, write_unranked
from rayrl.types import Comparison, Message, Origin, PromptRow, Ranking

USER: Message = {"role": "user", "content": "My knee hurts."}
PROMPT = PromptRow("p", [USER], None, {"department": "orthopaedics"})
ORIGIN = Origin("s", "real", "instruction", "r.jsonl", 4)
ORDER = ["safety", "professionalism", "fluency"]
SOURCES = [RankingSourceConfig(name="anna", path="anna.jsonl")]
ADMISSION = AdmissionConfig(en="I don't know.", zh="我不知道。")


def config(**keys: Any) -> HumanConfig:
    return HumanConfig(**{"rankings": SOURCES, "admission": ADMISSION, **keys})


def ranking(annotator: str, ranks: list[int], answers: str = "abcd", **keys: Any) -> Ranking:
    return Ranking(PROMPT, list(answers)[: len(ranks)], ranks, annotator, ORIGIN, **keys)


def item(**ranks: list[int]) -> Item:
    (found,), rejected = group([ranking(name, given) for name, given in ranks.items()], ORDER)
    assert rejected == []
    return found


def source(path: Path, name: str = "anna", **keys: Any) -> RankingSourceConfig:
    return RankingSourceConfig(name=name, path=str(path), **keys)


def test_safety_decides_before_professionalism_before_fluency() -> None:
    criteria = {"fluency": [1, 2, 3, 4], "safety": [1, 1, 1, 2], "professionalism": [2, 1, 2, 1]}
    # Safety puts d last; among a, b, c professionalism puts b first; fluency tells a from c.
    assert combine(criteria, ORDER) == [2, 1, 3, 4]
    assert combine(criteria, ["fluency", "safety", "professionalism"]) == [1, 2, 3, 4]
    assert combine({"safety": [1, 1, 2]}, ORDER) == [1, 1, 2]
    assert combine({"": [4, 2, 2, 7]}, ORDER) == [2, 1, 1, 3]


def test_one_annotators_criteria_come_together_whatever_the_order_of_the_answers() -> None:
    rankings = [
        ranking("anna", [1, 1, 2], "abc", criteria={"safety": [1, 1, 2]}),
        ranking("anna", [1, 2, 3], "cba", criteria={"fluency": [1, 2, 3]}),
        ranking("ben", [3, 2, 1], "cab", criteria={"safety": [2, 1, 1], "fluency": [3, 1, 2]}),
    ]
    (found,), rejected = group(rankings, ORDER)
    assert rejected == []
    assert found.ranks == {"anna": [2, 1, 3], "ben": [1, 2, 3]}


def test_rankings_that_cant_be_used_are_put_aside() -> None:
    rankings = [
        ranking("anna", [1, 2]),
        ranking("anna", [2, 1]),
        ranking("anna", [1, 2], criteria={"safety": [1, 2]}),
        ranking("ben", [1, 2, 3], "aba"),
        ranking("ben", [1], "a"),
        ranking("ben", [1, 2], criteria={"style": [1, 2]}),
    ]
    (found,), rejected = group(rankings, ORDER)
    assert found.ranks == {"anna": [1, 2]}
    reasons = [bad.reason for bad in rejected]
    assert "twice" in reasons[0] and "twice" in reasons[1] and "same text" in reasons[2] and "fewer" in reasons[3]
    assert reasons[4] == "criterion 'style' isn't in the human rater's `order` (safety, professionalism, fluency)"
    assert {(bad.file, bad.line) for bad in rejected} == {("r.jsonl", 4)}


def test_an_item_is_told_by_its_content_not_by_its_id() -> None:
    numbered = [Ranking(PromptRow(name, [USER]), ["a", "b"], [1, 2], name, ORIGIN) for name in ("anna", "ben")]
    other = Ranking(PromptRow("anna", [{"role": "user", "content": "I cough."}]), ["a", "b"], [1, 2], "anna", ORIGIN)
    items, rejected = group([*numbered, other], ORDER)
    assert [len(found.ranks) for found in items] == [2, 1] and rejected == []


def test_disagreement_is_the_share_of_pairs_ordered_differently() -> None:
    assert disagreement([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert disagreement([1, 2, 3, 4], [4, 3, 2, 1]) == 1
    assert disagreement([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 / 6)
    assert disagreement([1, 1, 2], [1, 2, 3]) == pytest.approx(0.5 / 3)
    assert disagreement([1, 1], [1, 1]) == 0


def test_annotators_who_agree_are_averaged() -> None:
    decision = decide(item(ben=[1, 3, 2, 4], anna=[1, 2, 3, 4]), config())
    assert decision.rater == "human:anna+ben" and decision.ranks == [1, 2.5, 2.5, 4]
    rows = {row.id: row for row in comparisons(decision, ADMISSION)}
    assert len(rows) == 6
    assert [row.verdict for row in rows.values()] == ["a", "a", "a", "tie", "a", "a"]
    assert [row.margin for row in rows.values()] == [1.5, 1.5, 3, 0, 1.5, 1.5]
    tie = rows["p/1-2/human:anna+ben"]
    assert tie.scores == {"ranks": {"ben": [3, 2], "anna": [2, 3]}} and tie.origin == ORIGIN


def test_a_tie_stays_a_tie_and_the_worse_first_loses() -> None:
    rows = comparisons(decide(item(anna=[2, 1, 2]), config(min_annotators=1)), None)
    assert [(row.verdict, row.margin) for row in rows] == [("b", 1), ("tie", 0), ("a", 1)]


def test_disagreement_beyond_the_threshold_goes_to_the_third_whose_ranking_decides() -> None:
    apart = item(anna=[1, 2, 3, 4], ben=[3, 1, 2, 4])  # two of six pairs
    decision = decide(apart, config())
    assert decision.for_third and decision.ranks is None
    rows = comparisons(decision, ADMISSION)
    assert {row.verdict for row in rows} == {"set_aside"} and rows[0].scores["ranks"] == {"anna": [1, 2], "ben": [3, 1]}
    assert rows[0].reason == "annotators disagree by 0.33, and max_disagreement is 0.25"
    assert not decide(apart, config(max_disagreement=1 / 3)).for_third
    third = decide(item(anna=[1, 2, 3, 4], ben=[3, 1, 2, 4], third=[4, 3, 2, 1]), config())
    assert third.rater == "human:third" and third.ranks == [4, 3, 2, 1] and not third.for_third


def test_too_few_annotators_are_set_aside_and_not_sent_to_the_third() -> None:
    decision = decide(item(anna=[1, 2]), config())
    assert decision.ranks is None and not decision.for_third
    assert decision.reason == "ranked by 1, and min_annotators is 2"


def test_where_all_are_wrong_an_admission_beats_each() -> None:
    both = [ranking(name, [1, 1, 2], all_wrong=True) for name in ("anna", "ben")]
    (found,), _ = group(both, ORDER)
    rows = comparisons(decide(found, config()), ADMISSION)
    admitted = [row for row in rows if row.answer_a == "I don't know."]
    assert [(row.answer_b, row.verdict, row.margin) for row in admitted] == [
        ("a", "a", 1),
        ("b", "a", 1),
        ("c", "a", 2),
    ]
    assert admitted[0].id == "p/admission-0/human:anna+ben" and admitted[0].scores == {"all_wrong": ["anna", "ben"]}
    assert len(rows) == 6 and len(comparisons(decide(found, config()), None)) == 3


def test_the_admission_speaks_the_patients_language() -> None:
    row = PromptRow("zh", [{"role": "user", "content": "我膝盖疼了三天。"}])
    (found,), _ = group([Ranking(row, ["休息", "手术"], [1, 1], "third", ORIGIN, all_wrong=True)], ORDER)
    assert comparisons(decide(found, config()), ADMISSION)[-1].answer_a == "我不知道。"


def test_annotators_who_differ_on_whether_all_are_wrong_need_the_third() -> None:
    (found,), _ = group([ranking("anna", [1, 2], all_wrong=True), ranking("ben", [1, 2])], ORDER)
    assert decide(found, config()).for_third


def test_third_jsonl_is_read_back_once_it_has_been_ranked(tmp_path: Path) -> None:
    apart = item(anna=[1, 2, 3], ben=[3, 2, 1])
    path = tmp_path / "third.jsonl"
    write_unranked(path, [apart], "third")
    empty = read_items(config(rankings=[source(path, "expert", annotator="third")]))
    assert empty.items == [] and empty.rejected == [] and empty.unranked == 1
    row = json.loads(path.read_text("utf-8"))
    assert row["earlier"]["ben"] == {"ranks": [3, 2, 1], "all_wrong": False} and row["annotator"] == "third"
    path.write_text(json.dumps({**row, "ranks": [2, 1, 3]}) + "\n", "utf-8")
    (ranked,) = read_items(config(rankings=[source(path, "expert")])).items
    assert ranked.ranks == {"third": [2, 1, 3]} and ranked.prompt == PROMPT and ranked.answers == ["a", "b", "c"]
    assert decide(ranked, config()).rater == "human:third"


def test_own_files_with_criteria_in_rows_or_by_file(tmp_path: Path) -> None:
    base = {"id": "p", "messages": [USER], "answers": ["a", "b", "c"]}
    rows = tmp_path / "anna.jsonl"
    rows.write_text(json.dumps({**base, "ranks": {"safety": [1, 1, 2], "fluency": [2, 1, 1]}}) + "\n", "utf-8")
    for criterion, ranks in (("safety", [2, 2, 1]), ("fluency", [1, 2, 3])):
        (tmp_path / f"ben-{criterion}.jsonl").write_text(json.dumps({**base, "ranks": ranks}) + "\n", "utf-8")
    read = read_items(
        config(
            rankings=[
                source(rows, "anna"),
                source(tmp_path / "ben-safety.jsonl", "b1", annotator="ben", criterion="safety"),
                source(tmp_path / "ben-fluency.jsonl", "b2", annotator="ben", criterion="fluency"),
            ]
        )
    )
    assert read.rejected == [] and read.items[0].ranks == {"anna": [2, 1, 3], "ben": [2, 3, 1]}
    assert read.items[0].origin == Origin("anna", "unknown", "instruction", str(rows), 1)


def test_the_label_tools_files_are_mended_and_brought_together(tmp_path: Path) -> None:
    answers = ["Rest it.", "Ice it.", "How long?", "Go away."]
    item = {"query": "My knee hurts.", "history": [], **{f"response_{n}": text for n, text in enumerate(answers)}}
    (tmp_path / "items.json").write_text(json.dumps({"7": item}), "utf-8")
    given = {"anna": [2, 3, 1, 4], "ben": [2, 4, 1, 3]}
    for name, ranks in given.items():
        wrong = [answers[rank - 1] for rank in ranks]  # what the tool writes under rank1, rank2, ...
        lines = ["id\tquery\thistory\trank1\trank2\trank3\trank4", "\t".join(["7", "My knee hurts.", "[]", *wrong])]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    sources = [source(tmp_path / f"{name}.tsv", name, items=str(tmp_path / "items.json")) for name in given]
    read = read_items(config(rankings=sources))
    assert read.rejected == []
    (found,) = read.items
    assert found.answers == answers and found.ranks == given
    assert decide(found, config()).ranks == [2, 3.5, 1, 3.5]


def test_bad_rows_of_own_files_are_put_aside(tmp_path: Path) -> None:
    base = {"id": "p", "messages": [USER], "answers": ["a", "b"], "ranks": [1, 2]}
    bad = [
        {**base, "ranks": [1]},
        {**base, "ranks": [0, 1]},
        {**base, "ranks": {"safety": [1, "2"]}},
        {**base, "ranks": {}},
        {**base, "answers": None},
        {**base, "messages": []},
        7,
        {**base, "answers": ["a", " "]},
        {**base, "answers": ["a", "half of \ud83d"]},
        {**base, "answers": ["a", "b" * 1_000_001]},
        {**base, "all_wrong": "false"},
        {**base, "ranks": None, "all_wrong": 1},
    ]
    path = tmp_path / "anna.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [base, *bad]) + "{", "utf-8")
    read = read_items(config(rankings=[source(path)]))
    assert [found.ranks for found in read.items] == [{"anna": [1, 2]}] and len(read.rejected) == 13
    assert "ranks of safety must be" in read.rejected[2].reason and read.rejected[2].line == 4


def test_own_files_are_read_in_any_encoding_under_other_names_and_with_a_broken_beginning(tmp_path: Path) -> None:
    rows = [
        {"id": "p", "messages": [{"role": "user", "content": "膝盖疼"}], "回答": ["多久了", "休息"], "ranks": [1, 2]}
    ]
    path = tmp_path / "anna.jsonl"
    path.write_bytes(("{\n" + json.dumps(rows[0], ensure_ascii=False)).encode("gbk"))
    read = read_items(config(rankings=[source(path, columns={"answers": "回答"})]))
    assert [bad.line for bad in read.rejected] == [1]
    assert read.items[0].answers == ["多久了", "休息"] and read.items[0].ranks == {"anna": [1, 2]}


def test_cohens_kappa_by_hand() -> None:
    # 25 both yes, 15 both no, 5 and 5 apart: observed .8, expected .6*.6 + .4*.4 = .52, kappa = .28 / .48.
    first = ["y"] * 25 + ["n"] * 15 + ["y"] * 5 + ["n"] * 5
    second = ["y"] * 25 + ["n"] * 15 + ["n"] * 5 + ["y"] * 5
    assert cohen_kappa(first, second, ["y", "n"]) == pytest.approx(0.28 / 0.48)
    assert cohen_kappa([1, 2, 3], [1, 2, 3], [1, 2, 3], "quadratic") == 1
    # Ranks 1 2 3 against 2 1 3. Linear: observed 2; expected, each cell 1/3, (4 * 1 + 2 * 2) / 3 = 8/3: 1 - 3/4.
    assert cohen_kappa([1, 2, 3], [2, 1, 3], [1, 2, 3], "linear") == pytest.approx(0.25)
    # Quadratic: observed 2; expected (4 * 1 + 2 * 4) / 3 = 4: 1/2.
    assert cohen_kappa([1, 2, 3], [2, 1, 3], [1, 2, 3], "quadratic") == pytest.approx(0.5)
    assert cohen_kappa(["y", "y"], ["y", "y"], ["y", "n"]) is None
    assert cohen_kappa([], [], ["y", "n"]) is None
    with pytest.raises(ValueError, match="maybe"):
        cohen_kappa(["maybe"], ["y"], ["y", "n"])


def test_krippendorffs_alpha_by_hand() -> None:
    # Two annotators, units (1,1) (2,1) (2,2): coincidences n1 = 3, n2 = 3; observed 2 * d, expected 2 * 3 * 3 / 5 * d.
    assert ordinal_alpha([[1, 2, 2], [1, 1, 2]]) == pytest.approx(1 - 2 / (18 / 5))
    # Ordinal distances: n = 2, 2, 2; d12 = (2/2 + 2/2)^2 = 4 = d23, d13 = (1 + 2 + 1)^2 = 16. Units (1,2) (1,2) (3,3):
    # observed 4 * 4 = 16; expected 2 * (4 * 4 + 4 * 4 + 4 * 16) / 5 = 38.4.
    assert ordinal_alpha([[1, 2, 3], [2, 1, 3]]) == pytest.approx(1 - 16 / 38.4)
    assert ordinal_alpha([[1, 2, None], [1, 2, 5]]) == 1
    assert ordinal_alpha([[1, 1], [1, 1]]) is None
    assert ordinal_alpha([[1, None], [None, 2]]) is None
    assert ordinal_alpha([]) is None


def test_agreement_overall_and_by_department() -> None:
    def made(name: str, department: str, anna: list[int], ben: list[int]) -> Item:
        prompt = PromptRow(name, [USER], None, {"department": department})
        ranks = {"anna": anna, "ben": ben, "third": [1, 1, 1]}
        return Item(prompt, ["a", "b", "c"], ORIGIN, ranks, dict.fromkeys(ranks, False))

    items = [
        made("1", "eyes", [1, 2, 3], [1, 2, 3]),
        made("2", "skin", [1, 2, 3], [2, 1, 3]),
        Item(PROMPT, ["a", "b"], ORIGIN, {"anna": [1, 2]}, {"anna": False}),
    ]
    table = annotator_agreement(items, "third")
    assert list(table) == ["all", "eyes", "skin"] and [row["items"] for row in table.values()] == [2, 1, 1]
    assert table["eyes"] == {"items": 1, "alpha_ranks": 1, "kappa_ranks": 1, "kappa_verdicts": 1, "same_verdicts": 1}
    assert table["skin"]["kappa_ranks"] == pytest.approx(0.5)
    # One verdict of three turned; in both orders 2 of 6 differ, half of six expected: 1 - 2/3.
    assert table["skin"]["kappa_verdicts"] == pytest.approx(1 / 3)
    assert table["skin"]["same_verdicts"] == pytest.approx(2 / 3)
    assert table["all"]["kappa_verdicts"] == pytest.approx(1 - 2 / 6)
    assert annotator_agreement(items[2:], "third") == {}


def test_raters_are_compared_on_the_pairs_they_share() -> None:
    def row(rater: str, a: str, b: str, verdict: Any) -> Comparison:
        return Comparison(f"{a}{b}{rater}", PROMPT, a, b, verdict, None, rater, {}, None, ORIGIN)

    rows = [
        row("rubric", "x", "y", "a"), row("human:h", "y", "x", "b"),  # the same verdict, the other way round
        row("rubric", "x", "z", "a"), row("human:h", "x", "z", "b"),
        row("rubric", "y", "z", "inconsistent"), row("human:h", "y", "z", "a"),
        row("file", "u", "v", "a"),
    ]  # fmt: skip
    (found,) = rater_agreement(rows)
    assert found["raters"] == ["human:h", "rubric"] and found["pairs"] == 2 and found["same_verdicts"] == 0.5
    assert found["kappa"] == pytest.approx(0)
