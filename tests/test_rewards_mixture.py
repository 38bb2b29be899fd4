"""The mixture, with numbers worked by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.config.ppo import MixtureConfig, RewardEntry
from rayrl.rewards.mixture import Mixture, RewardFailure
from rayrl.types import SourceScores


def entry(name: str, weight: float = 1.0, **other: Any) -> RewardEntry:
    return RewardEntry(name=name, kind="rule", rule="repetition", weight=weight, **other)


def mixture(*entries: RewardEntry, **config: Any) -> Mixture:
    return Mixture(entries, MixtureConfig(**config))


def test_the_weighted_sum() -> None:
    mixed = mixture(entry("a", 2.0), entry("b", -0.5)).mix(
        [SourceScores("b", [1.0, 2.0, 0.0]), SourceScores("a", [1.0, 0.0, 0.25])]
    )
    assert mixed.mixed_B == [1.5, -1.0, 0.5]
    assert mixed.raw == mixed.normalised == {"a": [1.0, 0.0, 0.25], "b": [1.0, 2.0, 0.0]}
    assert mixed.omitted == {"a": 0, "b": 0}


def test_a_term_left_out_keeps_the_total_weight() -> None:
    # Weights 2, 1, -1: magnitude 4. Without a (sample 0) the others are doubled; without b and c (sample 1) a has 4.
    entries = [entry(n, w, on_failure="omit") for n, w in (("a", 2.0), ("b", 1.0), ("c", -1.0))]
    mixed = mixture(*entries).mix(
        [
            SourceScores("a", [None, 0.5, 1.0], {0: "TimeoutError: slow"}),
            SourceScores("b", [0.75, None, 1.0]),
            SourceScores("c", [0.25, math.nan, 1.0]),
        ]
    )
    assert mixed.mixed_B == [2 * (0.75 - 0.25), 4 * 0.5, 2.0]
    assert mixed.omitted == {"a": 1, "b": 1, "c": 1}
    assert mixed.raw["c"] == [0.25, None, 1.0]


def test_sources_are_normalised_before_and_the_sum_after() -> None:
    # a: mean 2, deviations -1, 1, standard deviation sqrt(2), clipped to 0.5. b stays. The sum is clipped to 2.
    mixed = mixture(entry("a", normalise="batch_whiten", clip=0.5), entry("b", 2.0), clip=2.0).mix(
        [SourceScores("a", [1.0, 3.0]), SourceScores("b", [1.0, 2.0])]
    )
    assert mixed.normalised == {"a": [-0.5, 0.5], "b": [1.0, 2.0]}
    assert mixed.mixed_B == [1.5, 2.0]
    whitened = mixture(entry("a"), normalise="batch_whiten").mix([SourceScores("a", [1.0, 3.0])])
    assert whitened.mixed_B == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)])


def test_omitted_scores_are_not_counted_in_statistics() -> None:
    mix = mixture(entry("a", normalise="running_std", on_failure="omit"), entry("b"))
    mixed = mix.mix([SourceScores("a", [1.0, None, 3.0]), SourceScores("b", [0.0, 0.5, 0.0])])
    # Standard deviation of 1 and 3 (n - 1): sqrt(2). The sample without a has b at weight 2.
    assert mixed.normalised["a"] == [pytest.approx(1 / math.sqrt(2)), None, pytest.approx(3 / math.sqrt(2))]
    assert mixed.mixed_B[1] == 1.0
    assert mix.state_dict()["sources"]["a"]["count"] == 2


def test_evaluation_weighs_raw_scores_and_moves_nothing() -> None:
    mix = mixture(entry("a", 2.0, normalise="running_std", clip=0.1), normalise="running_std")
    mix.mix([SourceScores("a", [1.0, 3.0])])
    before = mix.state_dict()
    mixed = mix.mix([SourceScores("a", [1.0, 5.0])], normalise=False)
    assert mixed.mixed_B == [2.0, 10.0] and mixed.normalised == mixed.raw
    assert mix.state_dict() == before


@pytest.mark.parametrize(
    ("bad", "failures", "reason"),
    [
        (None, {1: "TimeoutError: 3 s"}, "TimeoutError: 3 s"),
        (None, {}, "no score and no reason given"),
        (math.nan, {}, "the score is nan, not a finite number"),
        (-math.inf, {}, "the score is -inf, not a finite number"),
    ],
)
def test_a_failure_stops_the_run_and_moves_nothing(bad: float | None, failures: dict[int, str], reason: str) -> None:
    mix = mixture(entry("a", normalise="running_std"), entry("judge"))
    before = mix.state_dict()
    message = f"reward 'judge' failed on 2 of 3 samples, first on sample 1: {reason}; mend the source"
    with pytest.raises(RewardFailure) as failure:
        mix.mix([SourceScores("a", [1.0, 2.0, 3.0]), SourceScores("judge", [0.0, bad, bad], failures)])
    assert str(failure.value).startswith(message)
    assert mix.state_dict() == before


def test_a_sample_without_any_source_is_an_error() -> None:
    mix = mixture(entry("a", on_failure="omit"), entry("b", 0.0))
    with pytest.raises(RewardFailure, match=r"sample 1; a: OSError: gone"):
        mix.mix([SourceScores("a", [1.0, None], {1: "OSError: gone"}), SourceScores("b", [1.0, 1.0])])


def test_what_does_not_fit_is_refused() -> None:
    mix = mixture(entry("a"), entry("b"))
    with pytest.raises(ValueError, match="the mixture has"):
        mix.mix([SourceScores("a", [1.0])])
    with pytest.raises(ValueError, match="the mixture has"):
        mix.mix([SourceScores("a", [1.0]), SourceScores("b", [1.0]), SourceScores("a", [1.0])])
    with pytest.raises(ValueError, match="batch sizes differ"):
        mix.mix([SourceScores("a", [1.0]), SourceScores("b", [1.0, 2.0])])
    with pytest.raises(ValueError, match="every weight is 0"):
        mixture(entry("a", 0.0))


def test_state_survives_json_exactly() -> None:
    entries = (entry("a", 0.3, normalise="running_std"), entry("b", normalise="batch_whiten"))
    first = mixture(*entries, normalise="running_std")
    batches = [[0.1, 0.7, 1 / 3], [2 / 7, 0.9, 1e-9], [0.3, 0.2, 0.8]]

    def mix(target: Mixture, batch: list[float]) -> list[float]:
        return list(target.mix([SourceScores("a", batch), SourceScores("b", batch[::-1])]).mixed_B)

    for batch in batches[:2]:
        mix(first, batch)
    resumed = mixture(*entries, normalise="running_std")
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert mix(resumed, batches[2]) == mix(first, batches[2])
    assert mix(mixture(*entries, normalise="running_std"), batches[2]) != mix(first, batches[2])


def test_state_of_other_sources_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpoint's reward sources are \['a'\].*\['b'\]"):
        mixture(entry("b")).load_state_dict(mixture(entry("a")).state_dict())


SCORE = st.none() | st.floats(-10, 10)


@settings(derandomize=True)
@given(st.lists(st.tuples(SCORE, st.floats(-10, 10)), min_size=1, max_size=8), st.randoms())
def test_permuting_the_batch_permutes_the_scores(samples: list[tuple[float | None, float]], draw: Any) -> None:
    order = list(range(len(samples)))
    draw.shuffle(order)

    def mix(rows: list[tuple[float | None, float]]) -> list[float]:
        target = mixture(entry("a", 0.7, on_failure="omit"), entry("b", -0.2, normalise="running_std"))
        columns = [SourceScores("a", [a for a, _ in rows]), SourceScores("b", [b for _, b in rows])]
        return list(target.mix(columns[:: draw.choice([1, -1])]).mixed_B)

    straight = mix(samples)
    assert mix([samples[i] for i in order]) == pytest.approx([straight[i] for i in order], rel=1e-9, abs=1e-9)
