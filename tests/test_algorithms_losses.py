"""Clipped policy and value losses: hand-worked numbers and where gradients vanish."""

import math

import pytest
import torch
from algorithms_cases import batches
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.algorithms.masked import Moments
from rayrl.algorithms.policy_loss import PolicySums, importance_weights, policy_loss
from rayrl.algorithms.value_loss import explained_variance, value_loss

quick = settings(max_examples=40, deadline=None, derandomize=True)
NAN = float("nan")

# clip_low 0.2, clip_high 0.28 (DAPO), dual clip 3. Gradient with respect to log pi where unclipped: -A * ratio.
#   A  ratio  loss = max(-A ratio, -A clip(ratio))    gradient
#   1   1.5   max(-1.5, -1.28) = -1.28  clipped high    0
#   1   0.5   max(-0.5, -0.8)  = -0.5                  -0.5
#  -1   1.5   max(1.5, 1.28)   = 1.5                    1.5
#  -1   0.5   max(0.5, 0.8)    = 0.8    clipped low     0
#  -1   4     max(4, 1.28) = 4, min(4, 3) = 3  dual     0
#   2   1     -2                                       -2
ADVANTAGES_BT = torch.tensor([[1.0, 1, -1, -1, -1, 2]])
RATIOS_BT = torch.tensor([[1.5, 0.5, 1.5, 0.5, 4, 1]])
OLD_BT = torch.full((1, 6), -2.0)
MASK_BT = torch.ones(1, 6, dtype=torch.bool)


def test_policy_loss_by_hand():
    logprobs_BT = (OLD_BT + RATIOS_BT.log()).requires_grad_()
    result = policy_loss(logprobs_BT, OLD_BT, ADVANTAGES_BT, MASK_BT, 0.2, 0.28, 3.0)
    torch.testing.assert_close(result.loss_BT.detach(), torch.tensor([[-1.28, -0.5, 1.5, 0.8, 3, -2]]))
    result.loss_BT.sum().backward()
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor([[0, -0.5, 1.5, 0, 0, -2]]))


def test_policy_statistics_by_hand():
    sums = policy_loss(OLD_BT + RATIOS_BT.log(), OLD_BT, ADVANTAGES_BT, MASK_BT, 0.2, 0.28, 3.0).sums
    assert (sums.num_tokens, sums.clip_low_sum, sums.clip_high_sum, sums.dual_clip_sum) == (6, 1, 1, 1)
    # k3, ratio - 1 - ln ratio: 1.5: 0.094535 twice; 0.5: 0.193147 twice; 4: 1.613706; 1: 0
    assert sums.approx_kl_sum.item() == pytest.approx(2.189070, abs=1e-5)
    assert sums.ratio_sum.item() == pytest.approx(9, rel=1e-6)  # 1.5 + 0.5 + 1.5 + 0.5 + 4 + 1
    assert sums.ratio_squared_sum.item() == pytest.approx(22, rel=1e-6)  # 2.25 + 0.25 + 2.25 + 0.25 + 16 + 1
    twice = PolicySums.from_tensor(sums.to_tensor() + sums.to_tensor())
    means = twice.means()
    assert list(means) == ["clip_low", "clip_high", "dual_clip", "approx_kl", "ratio", "ratio_squared"]
    assert means["ratio"] == pytest.approx(1.5, rel=1e-6)
    assert not any(getattr(sums, name + "_sum").requires_grad for name in means)


def test_without_dual_clip_the_loss_is_unbounded():
    logprobs_BT = (OLD_BT + RATIOS_BT.log()).requires_grad_()
    result = policy_loss(logprobs_BT, OLD_BT, ADVANTAGES_BT, MASK_BT, 0.2, 0.28, None)
    result.loss_BT.sum().backward()
    assert result.loss_BT[0, 4].item() == pytest.approx(4, rel=1e-6)
    assert logprobs_BT.grad[0, 4].item() == pytest.approx(4, rel=1e-6)
    assert result.sums.dual_clip_sum == 0


def test_on_policy_the_gradient_is_that_of_reinforce():
    logprobs_BT = OLD_BT.clone().requires_grad_()
    policy_loss(logprobs_BT, OLD_BT, ADVANTAGES_BT, MASK_BT, 0.2, 0.2, None).loss_BT.sum().backward()
    assert torch.equal(logprobs_BT.grad, -ADVANTAGES_BT)


def test_clip_higher_lets_a_likely_token_grow_further():
    logprobs_BT = torch.tensor([[math.log(1.25)]], requires_grad=True)
    one = torch.ones(1, 1)
    for clip_high, gradient in ((0.2, 0.0), (0.28, -1.25)):
        logprobs_BT.grad = None
        result = policy_loss(logprobs_BT, 0 * one, one, one.bool(), 0.2, clip_high, None)
        result.loss_BT.sum().backward()
        assert logprobs_BT.grad.item() == pytest.approx(gradient, rel=1e-6)
        assert result.sums.clip_high_sum == (gradient == 0)


@quick
@given(batches(), st.one_of(st.none(), st.floats(1.1, 5)))
def test_policy_gradient_vanishes_exactly_where_clipped(batch, dual_clip):
    logprobs_BT = batch.logprobs_BT.clone().requires_grad_()
    result = policy_loss(logprobs_BT, batch.old_logprobs_BT, batch.advantages_BT, batch.mask_BT, 0.2, 0.28, dual_clip)
    result.loss_BT.sum().backward()
    ratio_BT, advantages_BT = (logprobs_BT.detach() - batch.old_logprobs_BT).exp(), batch.advantages_BT
    clipped_BT = ((advantages_BT > 0) & (ratio_BT > 1.28)) | ((advantages_BT < 0) & (ratio_BT < 0.8))
    if dual_clip is not None:
        clipped_BT |= (advantages_BT < 0) & (ratio_BT > dual_clip)
    free_BT = batch.mask_BT & ~clipped_BT
    torch.testing.assert_close(logprobs_BT.grad, torch.where(free_BT, -advantages_BT * ratio_BT, 0.0))
    sums = result.sums
    counted = sums.clip_low_sum + sums.clip_high_sum + sums.dual_clip_sum
    assert counted == (clipped_BT & batch.mask_BT).sum()


@quick
@given(batches(), st.floats(0.1, 10))
def test_policy_loss_scales_with_the_advantages(batch, scale):
    arguments = (batch.mask_BT, 0.2, 0.28, 3.0)
    once_BT = policy_loss(batch.logprobs_BT, batch.old_logprobs_BT, batch.advantages_BT, *arguments).loss_BT
    scaled_BT = policy_loss(batch.logprobs_BT, batch.old_logprobs_BT, scale * batch.advantages_BT, *arguments).loss_BT
    torch.testing.assert_close(scaled_BT, scale * once_BT, rtol=1e-4, atol=1e-5)


def test_a_ratio_beyond_float_range_stays_finite():
    logprobs_BT = torch.tensor([[0.0, 0.0, -200.0]], requires_grad=True)
    old_BT, advantages_BT = torch.tensor([[-200.0, -200.0, 0.0]]), torch.tensor([[-1.0, 0.0, 1.0]])
    for dual_clip in (None, 3.0):
        loss_BT = policy_loss(logprobs_BT, old_BT, advantages_BT, MASK_BT[:, :3], 0.2, 0.2, dual_clip).loss_BT
        (gradient_BT,) = torch.autograd.grad(loss_BT.sum(), logprobs_BT)
        assert loss_BT.isfinite().all()
        assert gradient_BT.isfinite().all()


def test_importance_weights_by_hand():
    # exp(ln 1.5) = 1.5; exp(ln 0.5) = 0.5; exp(ln 4) = 4, held at 2; masked: 0; infinite ratio: 2
    trainer_BT = torch.tensor([[1.5, 0.5, 4.0, 1.0, 1.0]]).log()
    trainer_BT[0, 4] = 200.0
    engine_BT = torch.tensor([[0.0, 0.0, 0.0, NAN, 0.0]])
    mask_BT = torch.tensor([[True, True, True, False, True]])
    weights_BT = importance_weights(trainer_BT.requires_grad_(), engine_BT, mask_BT, 2.0)
    torch.testing.assert_close(weights_BT, torch.tensor([[1.5, 0.5, 2.0, 0.0, 2.0]]))
    assert not weights_BT.requires_grad


def test_importance_weights_multiply_loss_and_gradient():
    logprobs_BT = (OLD_BT + RATIOS_BT.log()).requires_grad_()
    weights_BT = torch.tensor([[1.0, 2, 0.5, 1, 0.5, 0]])
    result = policy_loss(logprobs_BT, OLD_BT, ADVANTAGES_BT, MASK_BT, 0.2, 0.28, 3.0, weights_BT)
    torch.testing.assert_close(result.loss_BT.detach(), torch.tensor([[-1.28, -1, 0.75, 0.8, 1.5, 0]]))
    result.loss_BT.sum().backward()
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor([[0.0, -1, 0.75, 0, 0, 0]]))


def test_importance_weights_outside_the_mask_are_ignored():
    mask_BT = torch.tensor([[True, False, False]])
    weights_BT = torch.tensor([[0.5, NAN, float("inf")]])
    ones_BT = torch.ones(1, 3)
    loss_BT = policy_loss(ones_BT, ones_BT, ones_BT, mask_BT, 0.2, 0.2, None, weights_BT).loss_BT
    assert loss_BT.tolist() == [[-0.5, 0, 0]]


def test_gradients_flow_to_the_trained_model_alone():
    leaves = [torch.full((1, 3), x, requires_grad=True) for x in (0.1, 0.0, 1.0, 0.5)]
    logprobs_BT, old_BT, advantages_BT, weights_BT = leaves
    policy_loss(logprobs_BT, old_BT, advantages_BT, MASK_BT[:, :3], 0.2, 0.2, 3.0, weights_BT).loss_BT.sum().backward()
    assert (logprobs_BT.grad != 0).all()
    assert [leaf.grad for leaf in leaves[1:]] == [None] * 3
    # Values 0.1 and 0.7 from 0, clip 0.2, return 1: the first isn't clipped, the second is, through the old value.
    values_BT = torch.tensor([[0.1, 0.7]], requires_grad=True)
    targets = [torch.full((1, 2), x, requires_grad=True) for x in (0.0, 1.0)]
    value_loss(values_BT, *targets, MASK_BT[:, :2], 0.2).loss_BT.sum().backward()
    torch.testing.assert_close(values_BT.grad, torch.tensor([[-0.9, 0.0]]))
    assert [leaf.grad for leaf in targets] == [None] * 2


def test_value_loss_by_hand():
    # clip 0.5, old value 1. Gradient where unclipped: V - R.
    #  V    R   (V-R)^2  clip(V)  (clip(V)-R)^2   loss    gradient
    #  2    3      1       1.5        2.25        1.125      0       moved towards R by more than the clip
    #  2    1      1       1.5        0.25        0.5        1
    #  1.2  0      1.44    1.2        1.44        0.72       1.2
    #  0   -1      1       0.5        2.25        1.125      0
    values_BT = torch.tensor([[2.0, 2.0, 1.2, 0.0]], requires_grad=True)
    returns_BT, old_BT = torch.tensor([[3.0, 1.0, 0.0, -1.0]]), torch.ones(1, 4)
    result = value_loss(values_BT, old_BT, returns_BT, MASK_BT[:, :4], 0.5)
    torch.testing.assert_close(result.loss_BT.detach(), torch.tensor([[1.125, 0.5, 0.72, 1.125]]))
    result.loss_BT.sum().backward()
    torch.testing.assert_close(values_BT.grad, torch.tensor([[0, 1, 1.2, 0]]))
    assert (result.sums.num_tokens, result.sums.clip_sum) == (4, 2)
    assert result.sums.means()["value"] == pytest.approx(1.3)  # (2 + 2 + 1.2 + 0) / 4
    unclipped = value_loss(values_BT, old_BT, returns_BT, MASK_BT[:, :4], None)
    torch.testing.assert_close(unclipped.loss_BT.detach(), torch.tensor([[0.5, 0.5, 0.72, 0.5]]))
    assert unclipped.sums.clip_sum == 0


@quick
@given(batches(), st.floats(0.05, 1))
def test_value_gradient_vanishes_exactly_where_clipped(batch, clip):
    values_BT = batch.values_BT.clone().requires_grad_()
    result = value_loss(values_BT, batch.old_values_BT, batch.returns_BT, batch.mask_BT, clip)
    result.loss_BT.sum().backward()
    error_BT, moved_BT = batch.values_BT - batch.returns_BT, batch.values_BT - batch.old_values_BT
    held_error_BT = batch.old_values_BT + moved_BT.clamp(-clip, clip) - batch.returns_BT
    clipped_BT = (moved_BT.abs() > clip) & (held_error_BT.abs() > error_BT.abs())
    torch.testing.assert_close(values_BT.grad, torch.where(batch.mask_BT & ~clipped_BT, error_BT, 0.0))
    assert result.sums.clip_sum == (batch.mask_BT & clipped_BT).sum()


def test_explained_variance_by_hand():
    # Returns 1 2 3 (variance 2/3), values 1 2 2, errors 0 0 1 (variance 1/3 - 1/9 = 2/9): 1 - 1/3
    returns, errors = Moments(3, 6.0, 14.0), Moments(3, 1.0, 1.0)
    assert explained_variance(returns, errors) == pytest.approx(2 / 3)
    assert explained_variance(returns, Moments(3, 0.0, 0.0)) == 1
    assert explained_variance(returns, returns) == 0
    assert explained_variance(Moments(3, 6.0, 12.0), errors) is None
