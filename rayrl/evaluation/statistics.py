"""Means, differences and shares with their intervals, for evaluations of a few hundred prompts.

The unit is the prompt: answers to the same prompt are alike, so they are averaged first and count once.
Means and paired differences use Student's t; shares use Wilson's interval (1927), which stays inside 0..1 and is
right near its ends. The t distribution is computed from the incomplete beta function (continued fraction, as in
Press et al., Numerical Recipes, 6.4), so that no further package is needed for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval. Example: Estimate(0.42, 0.38, 0.46, 100)"""

    mean: float
    low: float | None
    """None where one prompt alone can't tell."""
    high: float | None
    n: int
    """Prompts that it rests on."""


def by_prompt(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean value of each prompt from (prompt id, value of one answer) pairs."""
    gathered: dict[str, list[float]] = {}
    for prompt_id, value in values:
        gathered.setdefault(prompt_id, []).append(value)
    return {prompt_id: fmean(answers) for prompt_id, answers in gathered.items()}


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Estimate:
    """The mean of independent values and its t interval. Raises ValueError where there are none."""
    values = list(values)
    if not values:
        raise ValueError("mean_interval: no values; evaluate at least one prompt")
    mean, n = fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = student_t_quantile(0.5 + confidence / 2, n - 1) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(before: Mapping[str, float], after: Mapping[str, float], confidence: float = 0.95) -> Estimate:
    """after - before over the prompts that both have. Raises ValueError where they share none."""
    shared = [prompt_id for prompt_id in before if prompt_id in after]
    if not shared:
        raise ValueError("paired_difference: no prompt is in both evaluations; use the same held-out prompts")
    return mean_interval((after[prompt_id] - before[prompt_id] for prompt_id in shared), confidence)


def paired_share_difference(before: Mapping[str, bool], after: Mapping[str, bool]) -> Estimate:
    """after - before of two shares over the prompts that both have, with its 95% interval.

    Newcombe's (1998, Statistics in Medicine 17, method 10): Wilson's intervals of both shares, put together with their
    correlation. It stays inside -1..1 and has a width where no prompt, or every one, changes.
    Raises ValueError where they share none.
    """
    shared = [prompt_id for prompt_id in before if prompt_id in after]
    if not shared:
        raise ValueError("paired_share_difference: no prompt is in both evaluations; use the same prompts")
    n = len(shared)
    counts = Counter((after[prompt_id], before[prompt_id]) for prompt_id in shared)
    both, first, second, neither = (
        counts[pair] for pair in ((True, True), (True, False), (False, True), (False, False))
    )
    p1, p2 = (both + first) / n, (both + second) / n
    (l1, u1), (l2, u2) = wilson(p1, n), wilson(p2, n)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    product = both * neither - first * second
    phi = 0.0 if not margins else (max(product - n / 2, 0) if product > 0 else product) / math.sqrt(margins)
    low = math.sqrt(max(0.0, (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2))
    high = math.sqrt(max(0.0, (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2))
    return Estimate(p1 - p2, max(-1.0, p1 - p2 - low), min(1.0, p1 - p2 + high), n)


def proportion_interval(successes: float, n: int, confidence: float = 0.95) -> Estimate:
    """A share and its Wilson interval.

    `successes` may be fractional: the sum over n prompts of each one's share of answers. This takes the answers to
    a prompt as one, so the interval is at least as wide as it should be.
    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"proportion_interval: {successes} of {n} isn't a share")
    return Estimate(successes / n, *wilson(successes / n, n, confidence), n)


def wilson(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of `n`, which may be an effective sample size and so no whole number."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def student_t_cdf(t: float, df: float) -> float:
    """P(T <= t) for Student's t with `df` degrees of freedom."""
    tail = 0.5 * _incomplete_beta(df / (df + t * t), df / 2, 0.5)
    return 1 - tail if t > 0 else tail


def student_t_quantile(p: float, df: float) -> float:
    """t with P(T <= t) = p, to about 1e-10. Raises ValueError unless 0 < p < 1 and df > 0."""
    if not 0 < p < 1 or df <= 0:
        raise ValueError(f"student_t_quantile: needs 0 < p < 1 and df > 0, got p={p}, df={df}")
    if p < 0.5:
        return -student_t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while student_t_cdf(high, df) < p:
        low, high = high, 2 * high
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only below here
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny, c = 1e-300, 1.0
    d = 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            return math.exp(log_front) * fraction / a
    raise ArithmeticError(f"incomplete beta function didn't converge at x={x}, a={a}, b={b}")
