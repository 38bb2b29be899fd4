"""Which pairs a rater sees: all or a number, the same in every run, none of equal texts."""

from __future__ import annotations

from rayrl.data.candidates import CandidatesRead
from rayrl.feedback.pairs import choose_pairs, verdict_on
from rayrl.types import Candidates, Message, Origin, PromptRow

USER: Message = {"role": "user", "content": "My knee hurts."}


def read(*answers: list[str]) -> CandidatesRead:
    rows = [Candidates(PromptRow(f"p{n}", [USER]), texts, "m") for n, texts in enumerate(answers)]
    return CandidatesRead(rows, [], {row.prompt.id: ("c.jsonl", n + 1) for n, row in enumerate(rows)})


def test_all_pairs_of_k_answers() -> None:
    pairs, same = choose_pairs(read(["a", "b", "c", "d"], ["x", "y"]), "all", 0)
    assert [pair.id for pair in pairs] == ["p0/0-1", "p0/0-2", "p0/0-3", "p0/1-2", "p0/1-3", "p0/2-3", "p1/0-1"]
    assert same == 0
    assert (pairs[5].answer_a, pairs[5].answer_b) == ("c", "d")
    assert pairs[6].origin == Origin("candidates", "distilled", "instruction", "c.jsonl", 2)


def test_answers_of_the_same_text_make_no_pair() -> None:
    pairs, same = choose_pairs(read(["a", "b", "a ", "b"], ["z"]), "all", 0)
    assert [pair.id for pair in pairs] == ["p0/0-1", "p0/0-3", "p0/1-2", "p0/2-3"] and same == 2


def test_a_number_of_pairs_depends_on_the_seed_and_the_prompt_alone() -> None:
    many = read(*[["a", "b", "c", "d"]] * 60)
    chosen = [pair.id for pair in choose_pairs(many, 2, 7)[0]]
    assert len(chosen) == 120 and chosen == [pair.id for pair in choose_pairs(many, 2, 7)[0]]
    assert chosen != [pair.id for pair in choose_pairs(many, 2, 8)[0]]
    alone = CandidatesRead(many.rows[30:31], [], many.places)
    assert [pair.id for pair in choose_pairs(alone, 2, 7)[0]] == chosen[60:62]
    assert {name.split("/")[1] for name in chosen} == {"0-1", "0-2", "0-3", "1-2", "1-3", "2-3"}
    assert len(choose_pairs(many, 9, 7)[0]) == 360


def test_a_verdict_keeps_the_pair_and_names_the_rater() -> None:
    (pair,) = choose_pairs(read(["a", "b"]), "all", 0)[0]
    row = verdict_on(pair, "rubric", "b", margin=0.5, scores={"a": 0.1})
    assert (row.id, row.answer_b, row.verdict, row.margin, row.rater) == ("p0/0-1/rubric", "b", "b", 0.5, "rubric")
    assert row.scores == {"a": 0.1} and row.reason is None and row.origin == pair.origin
