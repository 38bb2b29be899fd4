"""What every masked function of rayrl/algorithms must keep, tested on all of them at once.

Garbage outside the mask, padding on either side, new holes and the order of sequences change nothing; gradients stay
inside the mask; nothing is made on another device than the inputs'.
"""

import pytest
import torch
from algorithms_cases import Batch, batches, spoil, stretch, take
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayrl.algorithms.gae import gae
from rayrl.algorithms.grpo import grpo
from rayrl.algorithms.kl import kl_per_token, token_rewards
from rayrl.algorithms.masked import Moments, whiten_BT
from rayrl.algorithms.policy_loss import importance_weights, policy_loss
from rayrl.algorithms.reinforce_pp import reinforce_pp
from rayrl.algorithms.rloo import rloo
from rayrl.algorithms.value_loss import value_loss


def policy(b: Batch):
    weights_BT = importance_weights(b.old_logprobs_BT, b.ref_logprobs_BT, b.mask_BT, 2.0)
    return policy_loss(b.logprobs_BT, b.old_logprobs_BT, b.advantages_BT, b.mask_BT, 0.2, 0.3, 3.0, weights_BT)


def value(b: Batch):
    return value_loss(b.values_BT, b.old_values_BT, b.returns_BT, b.mask_BT, 0.2)


DIFFERENTIABLE = {
    "k1": lambda b: kl_per_token(b.logprobs_BT, b.ref_logprobs_BT, b.mask_BT, "k1"),
    "k2": lambda b: kl_per_token(b.logprobs_BT, b.ref_logprobs_BT, b.mask_BT, "k2"),
    "k3": lambda b: kl_per_token(b.logprobs_BT, b.ref_logprobs_BT, b.mask_BT, "k3"),
    "policy": lambda b: policy(b).loss_BT,
    "value": lambda b: value(b).loss_BT,
}
FIXED = {
    "gae_advantages": lambda b: gae(b.rewards_BT, b.values_BT, b.mask_BT, 0.9, 0.8)[0],
    "gae_returns": lambda b: gae(b.rewards_BT, b.values_BT, b.mask_BT, 0.9, 0.8)[1],
    "reinforce_pp": lambda b: reinforce_pp(b.rewards_BT, b.mask_BT, 0.9),
    "grpo": lambda b: grpo(b.scores_B, b.group_ids_B, b.mask_BT),
    "rloo": lambda b: rloo(b.scores_B, b.group_ids_B, b.mask_BT),
    "token_rewards": lambda b: token_rewards(b.scores_B, b.rewards_BT, b.mask_BT, 0.1),
    "importance_weights": lambda b: importance_weights(b.old_logprobs_BT, b.logprobs_BT, b.mask_BT, 2.0),
    "whiten": lambda b: whiten_BT(b.values_BT, b.mask_BT, Moments(4, 2.0, 9.0)),
    "whiten_in_place": lambda b: whiten_BT(b.values_BT, b.mask_BT, Moments(4, 2.0, 9.0), shift_mean=False),
}
ALL = DIFFERENTIABLE | FIXED
SUMS = {"policy": lambda b: policy(b).sums, "value": lambda b: value(b).sums}

quick = settings(max_examples=30, deadline=None, derandomize=True)
every_function = pytest.mark.parametrize("function", ALL.values(), ids=ALL)


@every_function
@quick
@given(batches())
def test_garbage_outside_the_mask_changes_nothing(function, batch):
    clean_BT, spoilt_BT = function(batch), function(spoil(batch))
    assert torch.equal(clean_BT, spoilt_BT)
    assert (spoilt_BT[~batch.mask_BT] == 0).all()
    assert spoilt_BT.dtype == torch.float32


@every_function
@quick
@given(batches(), st.data())
def test_padding_on_either_side_and_holes_change_nothing(function, batch, data):
    T = batch.mask_BT.shape[1]
    length = T + data.draw(st.integers(1, 5))
    columns = sorted(data.draw(st.permutations(range(length)))[:T])
    stretched = stretch(batch, columns, length)
    stretched_BT = function(stretched)
    assert torch.equal(stretched_BT[:, columns], function(batch))
    assert (stretched_BT[~stretched.mask_BT] == 0).all()


@every_function
@quick
@given(batches(), st.data())
def test_order_of_sequences_changes_nothing(function, batch, data):
    rows = data.draw(st.permutations(range(len(batch.scores_B))))
    torch.testing.assert_close(function(take(batch, rows)), function(batch)[rows])


@pytest.mark.parametrize("function", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
@quick
@given(batches())
def test_gradients_stay_inside_the_mask(function, batch):
    def gradients(b: Batch) -> tuple[Tensor, Tensor]:
        leaves = [b.logprobs_BT.clone().requires_grad_(), b.values_BT.clone().requires_grad_()]
        b = Batch(**{**b.__dict__, "logprobs_BT": leaves[0], "values_BT": leaves[1]})
        found = torch.autograd.grad(function(b).sum(), leaves, allow_unused=True)
        return tuple(torch.zeros_like(batch.values_BT) if g is None else g for g in found)

    for clean_BT, spoilt_BT in zip(gradients(batch), gradients(spoil(batch)), strict=True):
        assert torch.equal(clean_BT, spoilt_BT)
        assert (spoilt_BT[~batch.mask_BT] == 0).all()


@pytest.mark.parametrize(
    "name", ["gae_advantages", "gae_returns", "reinforce_pp", "grpo", "rloo", "importance_weights"]
)
def test_targets_carry_no_gradient(name):
    leaf_BT = torch.ones(2, 3, requires_grad=True)
    scores_B = torch.tensor([1.0, 2.0], requires_grad=True)
    batch = Batch(torch.ones(2, 3).bool(), *[leaf_BT] * 8, scores_B=scores_B, group_ids_B=torch.zeros(2).long())
    assert not ALL[name](batch).requires_grad


@pytest.mark.parametrize("function", SUMS.values(), ids=SUMS)
@quick
@given(batches(), st.data())
def test_statistics_of_micro_batches_add_up(function, batch, data):
    whole = function(batch).to_tensor()
    B = len(batch.scores_B)
    cut = data.draw(st.integers(0, B))
    first, second = (function(spoil(take(batch, rows))) for rows in (list(range(cut)), list(range(cut, B))))
    torch.testing.assert_close((first + second).to_tensor(), whole, rtol=1e-6, atol=1e-5)
    assert whole[0] == batch.mask_BT.sum()


@pytest.mark.parametrize(
    "name",
    [name for name in ALL if name not in ("grpo", "rloo")],  # torch.unique needs data
)
def test_nothing_is_made_on_another_device(name):
    meta_BT = torch.empty(2, 3, device="meta")
    scores_B = torch.empty(2, device="meta")
    assert (
        ALL[name](Batch(meta_BT.bool(), *[meta_BT] * 8, scores_B=scores_B, group_ids_B=scores_B)).device.type == "meta"
    )


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("grpo", "rloo", "token_rewards")])
def test_a_shape_that_would_broadcast_is_refused(name):
    ones_BT = torch.ones(2, 1)
    batch = Batch(torch.ones(2, 3).bool(), *[ones_BT] * 8, scores_B=torch.ones(2), group_ids_B=torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"\(2, 1\) came with a mask of shape \(2, 3\)"):
        ALL[name](batch)
