"""Intervals against printed tables and numbers worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.evaluation.statistics import (
    Estimate,
    by_prompt,
    mean_interval,
    paired_difference,
    paired_share_difference,
    proportion_interval,
    student_t_cdf,
    student_t_quantile,
)


@pytest.mark.parametrize(
    ("p", "df", "table"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 5, 2.571),
        (0.975, 10, 2.228),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.95, 4, 2.132),
        (0.995, 7, 3.499),
        (0.9995, 3, 12.924),
    ],
)
def test_t_quantile_agrees_with_the_printed_table(p: float, df: int, table: float) -> None:
    assert student_t_quantile(p, df) == pytest.approx(table, abs=5.1e-4)
    assert student_t_quantile(1 - p, df) == pytest.approx(-table, abs=5.1e-4)


def test_t_quantile_has_closed_forms_for_one_and_two_degrees_of_freedom() -> None:
    for p in (0.6, 0.9, 0.975, 0.999):
        assert student_t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
        assert student_t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9)


def test_t_quantile_tends_to_the_normal_one() -> None:
    assert student_t_quantile(0.975, 1e6) == pytest.approx(1.959964, abs=5e-6)


@given(st.floats(0.001, 0.999), st.floats(0.5, 5000))
def test_t_quantile_inverts_the_distribution(p: float, df: float) -> None:
    assert student_t_cdf(student_t_quantile(p, df), df) == pytest.approx(p, abs=1e-9)


def test_t_quantile_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="0 < p < 1"):
        student_t_quantile(1.0, 5)


def test_mean_interval_by_hand() -> None:
    # 1..5: mean 3, standard deviation sqrt(2.5), t(4) = 2.7764; half = 2.7764 * 1.5811 / 2.2361 = 1.9632
    estimate = mean_interval([1, 2, 3, 4, 5])
    assert (estimate.mean, estimate.n) == (3, 5)
    assert estimate.low == pytest.approx(1.0368, abs=1e-4)
    assert estimate.high == pytest.approx(4.9632, abs=1e-4)


def test_one_value_has_a_mean_and_no_interval() -> None:
    estimate = mean_interval([0.7])
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (0.7, None, None, 1)


def test_answers_to_a_prompt_count_once() -> None:
    # a's four answers must not outweigh b's one
    means = by_prompt([("a", 0.0), ("a", 1.0), ("a", 0.0), ("a", 1.0), ("b", 1.0)])
    assert means == {"a": 0.5, "b": 1.0}
    assert mean_interval(means.values()).mean == 0.75
    assert mean_interval(means.values()).n == 2


def test_paired_difference_by_hand() -> None:
    # differences 1, 2, 3 (d has no partner): mean 2, sd 1, t(2) = 4.3027; half = 4.3027 / sqrt(3) = 2.4842
    before = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 5.0}
    after = {"c": 33.0, "b": 22.0, "a": 11.0}
    estimate = paired_difference(before, after)
    assert (estimate.mean, estimate.n) == (2, 3)
    assert estimate.low == pytest.approx(-0.4842, abs=1e-4)
    assert estimate.high == pytest.approx(4.4842, abs=1e-4)


def test_pairing_finds_what_spread_between_prompts_hides() -> None:
    before = {str(i): float(i) for i in range(10)}
    after = {key: value + 0.1 + 0.01 * (int(key) % 2) for key, value in before.items()}
    first, last = mean_interval(before.values()), mean_interval(after.values())
    assert first.high is not None and last.low is not None and last.low < first.high
    difference = paired_difference(before, after)
    assert difference.low is not None and difference.low > 0.09


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="same held-out prompts"):
        paired_difference({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_agrees_with_published_values(successes: int, n: int, low: float, high: float) -> None:
    estimate = proportion_interval(successes, n)
    assert estimate.mean == successes / n
    assert estimate.low == pytest.approx(low, abs=5e-5)
    assert estimate.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_interval_holds_its_share_and_stays_inside(n: int, share: float) -> None:
    estimate = proportion_interval(share * n, n)
    assert estimate.low is not None and estimate.high is not None
    assert 0 <= estimate.low <= estimate.mean + 1e-12
    assert estimate.mean - 1e-12 <= estimate.high <= 1


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        proportion_interval(3, 2)


def paired(both: int, after_only: int, before_only: int, neither: int) -> Estimate:
    """The paired difference of shares from the four counts."""
    pairs = [(True, True)] * both + [(True, False)] * after_only + [(False, True)] * before_only
    pairs += [(False, False)] * neither
    before = {str(i): was for i, (_, was) in enumerate(pairs)}
    return paired_share_difference(before, {str(i): now for i, (now, _) in enumerate(pairs)})


def test_a_paired_difference_of_shares_is_newcombes() -> None:
    """His own example (1998, table II, method 10): 36, 12, 2 and 0 of 50."""
    found = paired(36, 12, 2, 0)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.2, 0.0569, 0.3404, 50), abs=5e-5)


@pytest.mark.parametrize("counts", [(54, 0, 0, 0), (0, 0, 0, 30), (0, 4, 0, 0), (0, 0, 6, 0), (0, 5, 0, 1)])
def test_it_has_a_width_and_stays_inside_its_range_at_the_extremes(counts: tuple[int, int, int, int]) -> None:
    found = paired(*counts)
    assert found.low is not None and found.high is not None
    assert -1 <= found.low <= found.mean <= found.high <= 1 and found.high - found.low > 0.05


def test_a_paired_difference_needs_shared_prompts() -> None:
    with pytest.raises(ValueError, match="no prompt is in both"):
        paired_share_difference({"a": True}, {"b": True})
