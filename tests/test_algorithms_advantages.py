"""GAE, GRPO, RLOO and REINFORCE++: hand-worked numbers and second implementations."""

from itertools import pairwise

import pytest
import torch
from algorithms_cases import batches
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.algorithms.gae import gae
from rayrl.algorithms.grpo import grpo
from rayrl.algorithms.reinforce_pp import reinforce_pp
from rayrl.algorithms.rloo import rloo

quick = settings(max_examples=60, deadline=None, derandomize=True)
NAN = float("nan")


def test_gae_by_hand():
    # gamma = lam = 0.5, so gamma * lam = 0.25; rewards 1 2 4, values 2 4 8:
    # delta_3 = 4 + 0   - 8 = -4     A_3 = -4                       return -4    + 8 = 4
    # delta_2 = 2 + 0.5*8 - 4 = 2    A_2 = 2 + 0.25 * -4 = 1        return  1    + 4 = 5
    # delta_1 = 1 + 0.5*4 - 2 = 1    A_1 = 1 + 0.25 *  1 = 1.25     return  1.25 + 2 = 3.25
    mask_BT = torch.ones(1, 3, dtype=torch.bool)
    advantages_BT, returns_BT = gae(torch.tensor([[1.0, 2, 4]]), torch.tensor([[2.0, 4, 8]]), mask_BT, 0.5, 0.5)
    assert advantages_BT.tolist() == [[1.25, 1, -4]]
    assert returns_BT.tolist() == [[3.25, 5, 4]]


def test_gae_skips_holes_and_padding():
    # The same three tokens, with padding on both sides and a patient's turn of two tokens after the first.
    mask_BT = torch.tensor([[False, True, False, False, True, True, False]])
    rewards_BT = torch.tensor([[9.0, 1, 9, NAN, 2, 4, 9]])
    values_BT = torch.tensor([[9.0, 2, NAN, 9, 4, 8, 9]])
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, 0.5, 0.5)
    assert advantages_BT.tolist() == [[0, 1.25, 0, 0, 1, -4, 0]]
    assert returns_BT.tolist() == [[0, 3.25, 0, 0, 5, 4, 0]]


def naive_gae(rewards, values, mask, gamma, lam):
    """The definition: A_t = sum over k of (gamma * lam)^k * delta_(t+k), over the list of valid tokens."""
    valid = [t for t in range(len(mask)) if mask[t]]
    value_after = {t: values[later] for t, later in pairwise(valid)}
    delta = {t: rewards[t] + gamma * value_after.get(t, 0.0) - values[t] for t in valid}
    advantages = [0.0] * len(mask)
    for i, t in enumerate(valid):
        advantages[t] = sum((gamma * lam) ** k * delta[later] for k, later in enumerate(valid[i:]))
    returns = [advantages[t] + values[t] if mask[t] else 0.0 for t in range(len(mask))]
    return advantages, returns


@quick
@given(batches(), st.floats(0.1, 1), st.floats(0, 1))
def test_gae_agrees_with_its_definition(batch, gamma, lam):
    advantages_BT, returns_BT = gae(batch.rewards_BT, batch.values_BT, batch.mask_BT, gamma, lam)
    rows = zip(batch.rewards_BT.tolist(), batch.values_BT.tolist(), batch.mask_BT.tolist(), strict=True)
    for i, row in enumerate(rows):
        advantages, returns = naive_gae(*row, gamma, lam)
        assert advantages_BT[i].tolist() == pytest.approx(advantages, abs=1e-5)
        assert returns_BT[i].tolist() == pytest.approx(returns, abs=1e-5)


@quick
@given(batches(), st.floats(0.1, 10))
def test_gae_scales_with_rewards_and_values(batch, scale):
    once = gae(batch.rewards_BT, batch.values_BT, batch.mask_BT, 0.9, 0.8)
    scaled = gae(scale * batch.rewards_BT, scale * batch.values_BT, batch.mask_BT, 0.9, 0.8)
    torch.testing.assert_close(scaled, tuple(scale * x_BT for x_BT in once), rtol=1e-4, atol=1e-5)


@quick
@given(batches())
def test_gae_has_no_advantage_where_values_are_exact(batch):
    # gamma 1: the exact value of a token is the sum of the rewards from it on.
    returns_BT = reinforce_pp(batch.rewards_BT, batch.mask_BT, 1.0)
    advantages_BT, _ = gae(batch.rewards_BT, returns_BT, batch.mask_BT, 1.0, 0.95)
    assert advantages_BT.abs().max() < 1e-5


def test_reinforce_pp_by_hand():
    # gamma 0.5, rewards 1 2 4 with a hole: 4; 2 + 0.5 * 4 = 4; 1 + 0.5 * 4 = 3
    mask_BT = torch.tensor([[True, False, True, True, False]])
    rewards_BT = torch.tensor([[1.0, NAN, 2, 4, NAN]])
    assert reinforce_pp(rewards_BT, mask_BT, 0.5).tolist() == [[3, 0, 4, 4, 0]]


# Two prompts, their answers mixed up: prompt 5 scores 1 2 6, prompt -1 scores 4 8.
SCORES_B = torch.tensor([1.0, 4.0, 2.0, 8.0, 6.0])
GROUPS_B = torch.tensor([5, -1, 5, -1, 5])
MASK_BT = torch.tensor([[True, False, True]] * 5)


def test_grpo_by_hand():
    # prompt 5: mean 3, distances -2 -1 3, std sqrt(14 / 2) = 2.645751; prompt -1: mean 6, distances -2 2, std sqrt(8)
    distances = [-2.0, -2.0, -1.0, 2.0, 3.0]
    advantages_BT = grpo(SCORES_B, GROUPS_B, MASK_BT, divide_by_std=False)
    assert advantages_BT.tolist() == [[d, 0, d] for d in distances]
    stds = [2.645751, 2.828427, 2.645751, 2.828427, 2.645751]
    divided = [d / (std + 1e-4) for d, std in zip(distances, stds, strict=True)]
    assert grpo(SCORES_B, GROUPS_B, MASK_BT)[:, 0].tolist() == pytest.approx(divided, rel=1e-6)


def test_rloo_by_hand():
    # prompt 5: 1 - (2+6)/2, 2 - (1+6)/2, 6 - (1+2)/2; prompt -1: 4 - 8, 8 - 4
    advantages_BT = rloo(SCORES_B, GROUPS_B, MASK_BT)
    assert advantages_BT.tolist() == [[a, 0, a] for a in (-3, -4, -1.5, 4, 4.5)]


def test_equal_scores_give_no_advantage():
    # 0.7 isn't a binary number: a mean taken in float32 would leave a rest that the division blows up.
    scores_B, groups_B = torch.full((7,), 0.7), torch.zeros(7, dtype=torch.long)
    mask_BT = torch.ones(7, 1, dtype=torch.bool)
    assert grpo(scores_B, groups_B, mask_BT).abs().max() < 1e-9
    assert rloo(scores_B, groups_B, mask_BT).abs().max() < 1e-9


@quick
@given(batches(), st.floats(0.1, 10), st.floats(-10, 10))
def test_group_advantages_ignore_shift_and_follow_scale(batch, scale, shift):
    moved_B = scale * batch.scores_B.double() + shift
    close = {"rtol": 1e-4, "atol": 1e-5}
    arguments = (batch.group_ids_B, batch.mask_BT)
    torch.testing.assert_close(rloo(moved_B, *arguments), scale * rloo(batch.scores_B, *arguments), **close)
    torch.testing.assert_close(
        grpo(moved_B, *arguments, eps=1e-12), grpo(batch.scores_B, *arguments, eps=1e-12), **close
    )


@quick
@given(batches())
def test_rloo_is_grpo_without_division_times_n_over_n_minus_1(batch):
    count_B = (batch.group_ids_B[:, None] == batch.group_ids_B).sum(1)
    relative_BT = grpo(batch.scores_B, batch.group_ids_B, batch.mask_BT, divide_by_std=False)
    expected_BT = relative_BT * (count_B / (count_B - 1))[:, None]
    torch.testing.assert_close(rloo(batch.scores_B, batch.group_ids_B, batch.mask_BT), expected_BT)


@pytest.mark.parametrize("function", [grpo, rloo])
def test_a_group_of_one_is_an_error(function):
    with pytest.raises(ValueError, match=r"prompt groups \[3\] have one answer here; sample at least two"):
        function(torch.ones(3), torch.tensor([2, 2, 3]), torch.ones(3, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must both be \[B\]"):
        function(torch.ones(2, 1), torch.tensor([2, 2]), torch.ones(2, 1, dtype=torch.bool))
