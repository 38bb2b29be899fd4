"""A judge as rater: pairs of answers to Comparisons, as they are done.

Whatever happens to a pair, it comes out: labelled, inconsistent, or set aside with the reason. Left out: which pairs
are judged (pairs.py) and how a judge is asked (rayrl/judge).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import ray

from rayrl.errors import RunError
from rayrl.feedback.pairs import Pair, verdict_on
from rayrl.judge.service import JudgeService
from rayrl.types import Comparison

_PAIRS_PER_SLOT = 4
"""Pairs under way for each request at one time: enough that pairs which wait for a retry leave no slot idle."""


def judge_pairs(pairs: Iterable[Pair], judge: JudgeService) -> Iterator[Comparison]:
    """Judges pairs in both orders; yields each Comparison when it is done, in no fixed order.

    A pair's id is `PAIR/judge:MODEL`, the same in every run. A pair that the budget leaves out is set aside with a
    reason that begins with `compare.BUDGET_REASON`; judged again with a higher budget, only such pairs cost anything.
    Raises EndpointRefused where no request would succeed; what was judged until then is in the cache.
    """
    rater = f"judge:{judge.config.model}"
    waiting = iter(pairs)
    under_way: dict[ray.ObjectRef, Pair] = {}
    window = _PAIRS_PER_SLOT * judge.config.concurrency
    while True:
        while len(under_way) < window and (pair := next(waiting, None)) is not None:
            under_way[judge.submit(pair.prompt, pair.answer_a, pair.answer_b, pair.subject)] = pair
        if not under_way:
            return
        done = judge.wait(list(under_way), 1)
        pair = under_way.pop(done[0])
        try:
            found = judge.result(done[0])
        except RunError:
            _let_end(under_way, judge)
            raise
        yield verdict_on(
            pair, rater, found.verdict, margin=found.margin, scores=dict(found.scores), reason=found.reason
        )


def _let_end(under_way: Iterable[ray.ObjectRef], judge: JudgeService) -> None:
    """Waits for what is under way, refused like the first: Ray prints a traceback for each error that nobody takes."""
    for reference in under_way:
        with contextlib.suppress(RunError):
            judge.result(reference)
