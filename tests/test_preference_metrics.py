"""Held-out measures of a reward model against small cases worked by hand."""

import math

import numpy as np
import pytest

from rayrl.evaluation.preference_metrics import (
    LengthRule,
    ScoredPair,
    accuracy,
    accuracy_by,
    calibration,
    clustered_share,
    fit_length_rule,
    histogram,
    length_accuracy,
    length_correlation,
    length_matched,
    margin_cuts,
    margin_label,
)
from rayrl.evaluation.statistics import proportion_interval


def pair(prompt: str, difference: float, tokens: tuple[int, int] = (10, 10), **labels: str) -> ScoredPair:
    return ScoredPair(prompt, difference, 0.0, *tokens, labels)


def test_equal_scores_are_half_right() -> None:
    found = accuracy([pair("a", 1.0), pair("b", -1.0), pair("c", 0.0), pair("d", 2.0)])
    assert found is not None and found.mean == pytest.approx(2.5 / 4)
    assert accuracy([]) is None


def test_one_pair_a_prompt_gives_nearly_wilsons_interval() -> None:
    """With the n - 1 in the variance the effective sample is 99 of 100."""
    found = clustered_share((str(i), float(i < 70)) for i in range(100))
    expected = proportion_interval(0.7 * 99, 99)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_pairs_of_one_prompt_dont_count_as_many_prompts() -> None:
    """Ten copies of each prompt's value say no more than one; independent pairs inside the prompts do."""
    one = clustered_share((str(i), float(i < 14)) for i in range(20))
    copied = clustered_share((str(i), float(i < 14)) for i in range(20) for _ in range(10))
    assert (copied.mean, copied.n) == (one.mean, one.n)
    assert (copied.low, copied.high) == pytest.approx((one.low, one.high))
    mixed = clustered_share((str(i), float((i + j) % 10 < 7)) for i in range(20) for j in range(10))
    assert mixed.mean == pytest.approx(0.7) and mixed.low is not None and one.low is not None
    assert mixed.low > one.low + 0.1


def test_all_right_still_has_an_interval() -> None:
    found = clustered_share([("a", 1.0), ("a", 1.0), ("b", 1.0), ("c", 1.0)])
    expected = proportion_interval(3, 3)
    assert (found.low, found.high) == pytest.approx((expected.low, 1.0))
    with pytest.raises(ValueError, match="no values"):
        clustered_share([])


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """400 draws of 60 prompts with 1 to 5 pairs, whose chance of being right differs from prompt to prompt."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        chances = rng.beta(3.5, 1.5, size=60)
        drawn = [(str(i), float(rng.random() < p)) for i, p in enumerate(chances) for _ in range(1 + i % 5)]
        found = clustered_share(drawn)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.7 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_accuracy_by_label() -> None:
    pairs = [pair("a", 1, flaw="unsafe"), pair("b", -1, flaw="unsafe"), pair("c", 1, flaw="terse"), pair("d", 1)]
    found = accuracy_by(pairs, "flaw")
    assert list(found) == ["unsafe", "terse"]
    assert (found["unsafe"][0].mean, found["unsafe"][1]) == (0.5, 2)
    assert accuracy_by(pairs, "department") == {}


def test_length_rule_is_fitted_on_training_pairs_alone() -> None:
    assert fit_length_rule([(20, 10), (30, 10), (5, 10)]).name == "longer"
    assert fit_length_rule([(10, 20), (15, 30), (5, 10), (40, 50)]).name == "shorter"
    near = fit_length_rule([(40, 10), (40, 160), (45, 200), (38, 12)])
    assert near.name == "near" and near.target is not None and 20 < near.target < 90
    assert near.score(40) > near.score(10)


def test_length_accuracy() -> None:
    pairs = [pair("a", 0, (20, 10)), pair("b", 0, (10, 20)), pair("c", 0, (10, 10)), pair("d", 0, (9, 3))]
    found = length_accuracy(pairs, LengthRule("longer"))
    assert found is not None and found.mean == pytest.approx(2.5 / 4)


def test_length_matched_pairs() -> None:
    pairs = [pair("a", 1, (10, 12)), pair("b", 1, (10, 13)), pair("c", 1, (12, 10))]
    assert [p.prompt_id for p in length_matched(pairs, 1.25)] == ["a", "c"]


def test_calibration() -> None:
    """Two pairs at confidence 0.75 (difference log 3), one right; two at 0.9 (log 9), both right.

    ECE = (2 * |0.75 - 0.5| + 2 * |0.9 - 1|) / 4 = 0.175.
    """
    pairs = [pair("a", math.log(3)), pair("b", -math.log(3)), pair("c", math.log(9)), pair("d", math.log(9))]
    found = calibration(pairs, 5)
    assert [(round(b.confidence, 6), b.right.mean, b.pairs) for b in found.bins] == [(0.75, 0.5, 2), (0.9, 1.0, 2)]
    assert found.ece == pytest.approx(0.175)
    assert found.log_loss == pytest.approx(-(math.log(0.75) + math.log(0.25) + 2 * math.log(0.9)) / 4)
    assert found.brier == pytest.approx((0.25**2 + 0.75**2 + 2 * 0.1**2) / 4)
    assert calibration([pair("a", 1e3)], 10).bins[0].confidence == 1.0


def test_length_correlation_within_prompts_looks_past_the_prompts() -> None:
    """Over all answers longer scores higher, but within each prompt the longer answer scores lower."""
    scores, tokens = [1.0, 0.0, 11.0, 10.0], [10, 20, 110, 120]
    found = length_correlation(scores, tokens, ["a", "a", "b", "b"])
    assert found["pearson"] > 0.9 and found["within_prompt"] == pytest.approx(-1.0)
    assert found["spearman"] == pytest.approx(0.6)
    assert length_correlation([1.0, 2.0], [5, 5], ["a", "b"])["pearson"] is None


def test_margins() -> None:
    assert margin_cuts([1, 2, 3, 2]) == [1, 2]
    assert [margin_label(m, [1, 2]) for m in (1, 2, 3, None)] == [
        "up to 1",
        "above 1, up to 2",
        "above 2",
        "none given",
    ]
    assert margin_cuts([0.1 * i for i in range(31)]) == pytest.approx([1.0, 2.0])
    assert margin_label(2.0, []) == "any"


def test_histogram_shares_its_edges() -> None:
    found = histogram({"better": [1.0, 2.0], "worse": [0.0]}, bins=2)
    assert found == {"edges": [0.0, 1.0, 2.0], "counts": {"better": [0, 2], "worse": [1, 0]}}
