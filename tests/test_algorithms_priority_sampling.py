"""Priority sampling without replacement against its definition, the closed form and the paper's own curve."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from rayrl.algorithms.priority_sampling import expected_shares, priority_order

# HuatuoGPT-II's instructions and priorities: (number, pi, epochs) by source, Chinese and English (facts of its paper).
PAPER = {
    "web_zh": (640_621, 32, 1),
    "web_en": (394_490, 32, 1),
    "literature_zh": (177_261, 16, 1),
    "literature_en": (878_241, 16, 1),
    "encyclopedia_zh": (411_183, 8, 1),
    "encyclopedia_en": (147_059, 8, 1),
    "books_zh": (1_802_517, 4, 1),
    "books_en": (801_522, 4, 1),
    "sft": (142_248, 1, 3),
}


def probability(order: tuple[int, ...], pi: list[float]) -> float:
    """Of one order, drawn one by one as the definition says."""
    left, value = sum(pi), 1.0
    for item in order:
        value *= pi[item] / left
        left -= pi[item]
    return value


def test_orders_come_as_often_as_the_definition_says() -> None:
    pi = [4.0, 2.0, 1.0]
    orders = list(itertools.permutations(range(3)))
    assert sum(probability(order, pi) for order in orders) == pytest.approx(1)
    assert probability((0, 1, 2), pi) == pytest.approx(4 / 7 * 2 / 3)
    runs = 4000
    seen = Counter(tuple(priority_order([1, 1, 1], pi, [1, 1, 1], seed).tolist()) for seed in range(runs))
    expected = [runs * probability(order, pi) for order in orders]
    assert chisquare([seen[order] for order in orders], expected).pvalue > 0.001


def test_drawn_counts_match_the_formula_over_a_hundred_seeds() -> None:
    """Which source the k-th draw comes from, k by k, over 100 seeds on a small set."""
    sizes, pi = [6, 10, 20], [8.0, 3.0, 1.0]
    drawn = np.zeros((sum(sizes), 3))
    for seed in range(100):
        for position, index in enumerate(priority_order(sizes, pi, [1, 1, 1], seed).tolist()):
            drawn[position, 0 if index < 6 else 1 if index < 16 else 2] += 1
    expected = exact_positions(sizes, pi) * 100
    for group in (slice(0, 6), slice(6, 14), slice(14, 36)):  # enough draws in each cell
        assert chisquare(drawn[group].sum(0), expected[group].sum(0)).pvalue > 0.001


def exact_positions(sizes: list[int], pi: list[float]) -> np.ndarray:
    """[draw, source]: probability that a draw is of a source, by the states (drawn of each source)."""
    states = {(0, 0, 0): 1.0}
    rows = []
    for _ in range(sum(sizes)):
        row, after = np.zeros(3), Counter[tuple[int, ...]]()
        for state, chance in states.items():
            weights = [(size - done) * weight for size, done, weight in zip(sizes, state, pi, strict=True)]
            for source, weight in enumerate(weights):
                if weight:
                    share = chance * weight / sum(weights)
                    row[source] += share
                    moved = list(state)
                    moved[source] += 1
                    after[tuple(moved)] += share
        rows.append(row)
        states = dict(after)
    return np.array(rows)


def test_everything_is_drawn_as_often_as_its_epochs() -> None:
    order = priority_order([4, 3], [9, 1], [1, 2.5], seed=3)
    counts = Counter(order.tolist())
    assert [counts[i] for i in range(4)] == [1] * 4
    assert sorted(counts[i] for i in range(4, 7)) == [2, 2, 3] or sorted(counts[i] for i in range(4, 7)) == [2, 3, 3]
    assert sum(counts.values()) == 4 + 2 * 3 + round(0.5 * 3)
    assert priority_order([0, 2], [1, 1], [1, 1], 0).tolist() in ([0, 1], [1, 0])
    assert len(priority_order([], [], [], 0)) == 0


def test_the_order_depends_on_the_seed_alone() -> None:
    first = priority_order([50, 70], [5, 1], [1, 3], 7).tolist()
    assert first == priority_order([50, 70], [5, 1], [1, 3], 7).tolist()
    assert first != priority_order([50, 70], [5, 1], [1, 3], 8).tolist()


def test_shares_over_time_match_the_closed_form() -> None:
    sizes, pi, epochs = [3000, 6000, 2000], [32.0, 4.0, 1.0], [1, 1, 3]
    order = priority_order(sizes, pi, epochs, 0)
    source = np.searchsorted(np.cumsum(sizes), order, side="right")
    blocks = 20
    seen = np.array([np.bincount(part, minlength=3) / len(part) for part in np.array_split(source, blocks)]).T
    counts = [size * passes for size, passes in zip(sizes, epochs, strict=True)]
    middle = (np.arange(blocks) + 0.5) / blocks
    fine = np.linspace(0, 1, 2001)[:-1] + 0.00025
    wanted = expected_shares(counts, pi, fine).reshape(3, blocks, -1).mean(axis=2)
    assert np.abs(seen - wanted).max() < 0.05
    assert expected_shares(counts, pi, middle).sum(axis=0) == pytest.approx(np.ones(blocks))


def test_the_papers_curve_is_met() -> None:
    """The starting shares and the last thirtieth's share of fine-tuning data that its figure shows (about 0.91)."""
    numbers, pi, epochs = (np.array(column, dtype=float) for column in zip(*PAPER.values(), strict=True))
    counts = (numbers * epochs).tolist()
    start = dict(zip(PAPER, expected_shares(counts, pi.tolist(), np.array([0.0]))[:, 0], strict=True))
    assert start["web_zh"] == pytest.approx(0.31, abs=0.01)
    assert start["literature_en"] == pytest.approx(0.22, abs=0.015)
    assert start["web_en"] == pytest.approx(0.19, abs=0.01)
    assert start["books_zh"] == pytest.approx(0.11, abs=0.01)
    end = expected_shares(counts, pi.tolist(), np.linspace(29 / 30, 1, 200))[-1].mean()
    assert end == pytest.approx(0.79, abs=0.02)
    with_sharegpt = [*counts[:-1], counts[-1] + 3 * 90_000]
    assert expected_shares(with_sharegpt, pi.tolist(), np.linspace(29 / 30, 1, 200))[-1].mean() == pytest.approx(
        0.93, abs=0.02
    )
