"""A judge whose position bias and noise are known: win rates come out as in closed form; no call is paid twice."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from judge_cases import judge_config
from judge_server import HostileServer, Scorer

from rayrl.evaluation.pairwise import Outcome, TieRule, outcome_of, tally
from rayrl.judge.compare import Judgement
from rayrl.judge.service import JudgeOwner
from rayrl.types import PromptRow

BIAS, TIES, NOISE = 0.3, 0.15, 0.2
"""Chance that whatever stands first wins; that the judge else calls it a tie; that it else takes the worse one."""
TRIALS, PAIRS, BETTER = 100, 40, 0.7
"""Of each trial's pairs, the share in which model a's answer is the better one."""
RULES: tuple[TieRule, ...] = ("consistent", "points", "sum")


def unit(*parts: str) -> float:
    """A number in [0, 1) that depends on the texts alone."""
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:8], "big") / 2**64


def known_judge(texts: dict[str, str]) -> Any:
    """The better answer holds the word "right"."""
    first, second = texts["ANSWER A"], texts["ANSWER B"]
    if unit("bias", first, second) < BIAS:
        better = "A"
    elif unit("tie", first, second) < TIES:
        return {"A": {"accuracy": 6, "conciseness": 6}, "B": {"accuracy": 6, "conciseness": 6}}
    else:
        truth = "A" if "right" in first else "B"
        better = truth if unit("noise", first, second) >= NOISE else ("B" if truth == "A" else "A")
    return {side: {"accuracy": 8 if side == better else 5, "conciseness": 6} for side in "AB"}


def order_chances(a_better: bool, a_first: bool) -> dict[Outcome, float]:
    """What one order says, in closed form."""
    rest = (1 - BIAS) * (1 - TIES)
    right = 1 - NOISE if a_better else NOISE
    return {
        "a": rest * right + (BIAS if a_first else 0.0),
        "tie": (1 - BIAS) * TIES,
        "b": rest * (1 - right) + (0.0 if a_first else BIAS),
    }


def both(one: Outcome, other: Outcome, rule: TieRule) -> float:
    """What two orders together are worth to model a."""
    value = {"a": 1, "tie": 0, "b": -1}
    total = value[one] + value[other]
    if rule == "consistent":
        return {2: 1.0, -2: 0.0}.get(total, 0.5)
    return 1.0 if total > 0 else 0.0 if total < 0 else 0.5  # the scores are symmetric, so sum and points agree


def expectation(rule: TieRule) -> float:
    """The win rate to expect."""
    rates = []
    for a_better in (True, False):
        ab, ba = order_chances(a_better, True), order_chances(a_better, False)
        assert sum(ab.values()) == pytest.approx(1) and sum(ba.values()) == pytest.approx(1)
        rates.append(sum(ab[one] * ba[other] * both(one, other, rule) for one, other in product(ab, ba)))
    return BETTER * rates[0] + (1 - BETTER) * rates[1]


def pairs_of(trial: int) -> list[tuple[PromptRow, str, str]]:
    found = []
    for number in range(PAIRS):
        row = PromptRow(f"{trial}-{number}", [{"role": "user", "content": f"Case {trial}-{number}."}])
        answers = [f"It is {word}, case {trial}-{number}." for word in ("right", "wrong")]
        a_better = number < BETTER * PAIRS
        found.append((row, *(answers if a_better else reversed(answers))))
    return found  # type: ignore[return-value]


def judge(url: str, folder: Path, pairs: list[tuple[PromptRow, str, str]], **changes: Any) -> list[Judgement]:
    config = judge_config(url, folder, **{"concurrency": 32, "timeout_s": 30.0, **changes})

    async def run() -> list[Judgement]:
        owner = JudgeOwner(config.cache)
        try:
            return list(await asyncio.gather(*(owner.compare(config, *pair) for pair in pairs)))
        finally:
            await owner.close()

    return asyncio.run(run())


def test_intervals_cover_the_closed_form(tmp_path: Path) -> None:
    """Both orders are asked of a real server, 100 trials of 40 pairs; each rule's 95% interval covers in 90 or more."""
    everything = [pair for trial in range(TRIALS) for pair in pairs_of(trial)]
    with HostileServer(score=known_judge) as server:
        found = judge(server.url, tmp_path, everything)
        assert server.repeated() == 0 and len(server.log) == 2 * TRIALS * PAIRS
    names = ["accuracy", "conciseness"]
    for rule in RULES:
        truth, covered, rates = expectation(rule), 0, []
        for trial in range(TRIALS):
            own = found[trial * PAIRS : (trial + 1) * PAIRS]
            rate = tally(outcome_of(one.scores, rule, names)[0] for one in own).win_rate
            assert rate is not None and rate.low is not None and rate.high is not None
            covered += rate.low <= truth <= rate.high
            rates.append(rate.mean)
        assert covered >= 90, f"{rule}: {covered} of {TRIALS} intervals cover {truth:.4f}"
        assert covered < 100 or rule != "sum"  # an interval that always covers is too wide to say anything
        assert sum(rates) / TRIALS == pytest.approx(truth, abs=0.02)
        assert truth != pytest.approx(0.5, abs=0.05)


def test_a_single_order_would_be_off() -> None:
    """What makes both orders necessary: with a always first, the bias alone moves the rate by 15 points."""
    single = sum(
        share * (chances["a"] + chances["tie"] / 2)
        for share, chances in ((BETTER, order_chances(True, True)), (1 - BETTER, order_chances(False, True)))
    )
    assert single - expectation("sum") > 0.1


def falls_silent(after: int) -> tuple[Scorer, Callable[[], int]]:
    """A judge that answers so many requests whole and is dead from then on."""
    count = 0

    def score(texts: dict[str, str]) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise OSError("the judge is dead")
        return known_judge(texts)

    return score, lambda: count


def test_a_judge_that_dies_in_the_middle_costs_no_repeated_call(tmp_path: Path) -> None:
    pairs = pairs_of(0)
    dying, _ = falls_silent(after=31)
    with HostileServer(score=dying) as server:
        first = judge(server.url, tmp_path, pairs, max_retries=0, concurrency=1)
        answered = server.outcomes()["ok"]
    assert answered == 31
    assert sum(one.verdict == "set_aside" for one in first) >= PAIRS - 16
    with HostileServer(score=known_judge) as server:  # another port: the cache goes by model and words
        second = judge(server.url, tmp_path, pairs)
        assert server.outcomes() == {"ok": 2 * PAIRS - 31} and server.repeated() == 0
    assert all(one.verdict != "set_aside" for one in second)
    with HostileServer(score=known_judge) as server:
        assert judge(server.url, tmp_path, pairs) == second
        assert server.log == []
