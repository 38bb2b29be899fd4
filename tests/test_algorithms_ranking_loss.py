"""The pairwise ranking loss against numbers worked by hand, and its gradients against the formula's."""

import math

import pytest
import torch

from rayrl.algorithms.ranking_loss import PairBatch, pair_losses, ranking_loss


def pairs(rows: list[tuple[int, int, int]], ties: list[bool] | None = None, **columns: list[float]) -> PairBatch:
    """(better, worse, prompt) rows; without margins and with weight 1 unless said."""
    count = len(rows)
    better, worse, prompt = (torch.tensor(column) for column in zip(*rows, strict=True))
    return PairBatch(
        better,
        worse,
        torch.tensor(ties or [False] * count),
        torch.tensor(columns.get("margins", [0.0] * count)),
        torch.tensor(columns.get("weights", [1.0] * count)),
        prompt,
    )


def test_one_pair() -> None:
    """log(1 + e^-2) = 0.126928 for scores 3 and 1; swapped, log(1 + e^2) = 2.126928."""
    scores = torch.tensor([3.0, 1.0])
    assert ranking_loss(scores, pairs([(0, 1, 0)])).item() == pytest.approx(0.126928, abs=1e-6)
    assert ranking_loss(scores, pairs([(1, 0, 0)])).item() == pytest.approx(2.126928, abs=1e-6)


def test_all_pairs_of_three_ranked_answers() -> None:
    """Scores 2, 1, 0 in their true order: (2 log(1 + e^-1) + log(1 + e^-2)) / 3 = (2 * 0.313262 + 0.126928) / 3."""
    loss = ranking_loss(torch.tensor([2.0, 1.0, 0.0]), pairs([(0, 1, 0), (0, 2, 0), (1, 2, 0)]))
    assert loss.item() == pytest.approx((2 * 0.313262 + 0.126928) / 3, abs=1e-6)


def test_each_prompt_counts_once_however_many_pairs_it_has() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, 5.0, 5.0])
    both = ranking_loss(scores, pairs([(0, 1, 0), (3, 4, 1), (0, 2, 0), (1, 2, 0)]))
    first = ranking_loss(scores, pairs([(0, 1, 0), (0, 2, 0), (1, 2, 0)]))
    assert both.item() == pytest.approx(first.item() + math.log(2), abs=1e-6)


def test_a_margin_is_the_distance_at_which_the_loss_is_log_2() -> None:
    scores = torch.tensor([3.0, 1.0])
    assert ranking_loss(scores, pairs([(0, 1, 0)], margins=[2.0])).item() == pytest.approx(math.log(2), abs=1e-6)
    assert ranking_loss(scores, pairs([(0, 1, 0)], margins=[1.0])).item() == pytest.approx(0.313262, abs=1e-6)


def test_a_tie_is_half_a_win_for_each_side() -> None:
    """At a difference of 2: (0.126928 + 2.126928) / 2 = 1.126928; least, log 2, at 0; its margin counts nothing."""
    tied = pairs([(0, 1, 0)], ties=[True], margins=[9.0])
    assert ranking_loss(torch.tensor([3.0, 1.0]), tied).item() == pytest.approx(1.126928, abs=1e-6)
    assert ranking_loss(torch.tensor([1.0, 3.0]), tied).item() == pytest.approx(1.126928, abs=1e-6)
    assert ranking_loss(torch.tensor([4.0, 4.0]), tied).item() == pytest.approx(math.log(2), abs=1e-6)


def test_gradients() -> None:
    """d/dr_better = -(1 - sigmoid(d - margin)); of a tie sigmoid(d) - 1/2; shared answers add theirs up."""
    scores = torch.tensor([1.0, 0.0, 0.5], requires_grad=True)
    batch = pairs([(0, 1, 0), (0, 2, 0)], ties=[False, True], margins=[0.25, 0.0], weights=[2.0, 1.0])
    ranking_loss(scores, batch).backward()
    decided = -2 * (1 - 1 / (1 + math.exp(-0.75))) / 2
    tied = (1 / (1 + math.exp(-0.5)) - 0.5) / 2
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([decided + tied, -decided, -tied], abs=1e-6)


def test_gradient_check_in_double_precision() -> None:
    scores = torch.randn(4, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    batch = pairs([(0, 1, 0), (2, 1, 0), (3, 2, 1)], ties=[False, True, False], margins=[0.5, 0.0, 0.0])
    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, batch), (scores,))


def test_large_differences_stay_finite() -> None:
    difference = torch.tensor([-1e4, 1e4, 1e4])
    losses = pair_losses(difference, torch.tensor([False, False, True]), torch.zeros(3))
    assert losses.tolist() == [1e4, 0.0, 5e3]
