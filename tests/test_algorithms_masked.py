"""Masked sums, moments, whitening and aggregation: hand-worked numbers, and splits that must add up."""

import pytest
import torch
from algorithms_cases import batches, spoil, stretch, take
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rayrl.algorithms.aggregate import aggregate, normaliser
from rayrl.algorithms.masked import Moments, TokenSums, masked_mean, masked_sum, over_mask, select, whiten_BT

quick = settings(max_examples=40, deadline=None, derandomize=True)
NAN = float("nan")
# Two sequences: [1, (hole), 3] and [(padding), (padding), 8].
LOSS_BT = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, 8.0]])
MASK_BT = torch.tensor([[True, False, True], [False, False, True]])


def test_sums_and_means():
    assert masked_sum(LOSS_BT, MASK_BT) == 12  # 1 + 3 + 8
    assert masked_sum(LOSS_BT, MASK_BT, dim=1).tolist() == [4, 8]
    assert masked_mean(LOSS_BT, MASK_BT) == 4  # 12 / 3
    assert masked_mean(LOSS_BT, MASK_BT, dim=1).tolist() == [2, 8]
    assert masked_mean(LOSS_BT, torch.zeros_like(MASK_BT)) == 0


def test_one_number_a_sequence_over_its_tokens():
    assert over_mask(torch.tensor([5.0, 6.0]), MASK_BT).tolist() == [[5, 0, 5], [0, 0, 6]]
    with pytest.raises(ValueError, match="isn't one number for each of the mask's 2 sequences"):
        over_mask(torch.ones(3), MASK_BT)


def test_a_mask_that_is_not_bool_is_refused():
    with pytest.raises(ValueError, match=r"convert it to torch\.bool"):
        select(LOSS_BT, MASK_BT.long())


def test_low_precision_is_summed_in_float32():
    # bfloat16 has 8 bits: 256 + 1 is 256 there.
    x = torch.tensor([256.0, 1.0], dtype=torch.bfloat16)
    assert masked_sum(x, torch.tensor([True, True])) == 257


def test_moments_by_hand():
    moments = Moments.of(LOSS_BT, MASK_BT)
    assert moments == Moments(3, 12, 74)  # 1 + 9 + 64
    assert moments.mean == 4
    assert moments.variance == pytest.approx(74 / 3 - 16)  # 26/3, = (9 + 1 + 16) / 3
    assert Moments.from_tensor(moments.to_tensor()) == moments
    assert moments.to_tensor().dtype == torch.float64
    assert Moments(1, 2.0, 4.0) + Moments(2, 3.0, 5.0) == Moments(3, 5, 9)


def test_moments_of_nothing_say_so():
    nothing = Moments.of(LOSS_BT, torch.zeros_like(MASK_BT))
    assert nothing == Moments(0, 0, 0)
    with pytest.raises(ValueError, match="the mask is empty on every rank"):
        _ = nothing.variance


def test_whitening_by_hand():
    # mean 4, standard deviation sqrt(26/3) = 2.943920
    moments = Moments.of(LOSS_BT, MASK_BT)
    expected_BT = torch.tensor([[-3 / 2.943920, 0, -1 / 2.943920], [0, 0, 4 / 2.943920]])
    torch.testing.assert_close(whiten_BT(LOSS_BT, MASK_BT, moments), expected_BT)
    in_place_BT = whiten_BT(LOSS_BT, MASK_BT, moments, shift_mean=False)
    torch.testing.assert_close(in_place_BT, torch.where(MASK_BT, expected_BT + 4, 0.0))


def test_whitening_equal_values_gives_zero():
    x_BT = torch.full((2, 3), 0.7)
    assert whiten_BT(x_BT, MASK_BT, Moments.of(x_BT, MASK_BT)).abs().max() < 1e-3


@quick
@given(batches(), st.floats(0.1, 100), st.floats(-10, 10))
def test_whitened_by_rank_has_mean_0_and_variance_1_over_all_and_ignores_scale(batch, scale, shift):
    x_BT, mask_BT = batch.values_BT, batch.mask_BT
    assume(mask_BT.sum() >= 2)
    ranks = [slice(0, 1), slice(1, None)]
    moments = Moments.of(x_BT[ranks[0]], mask_BT[ranks[0]]) + Moments.of(x_BT[ranks[1]], mask_BT[ranks[1]])
    whitened_BT = torch.cat([whiten_BT(x_BT[rank], mask_BT[rank], moments) for rank in ranks])
    after = Moments.of(whitened_BT, mask_BT)
    assert after.mean == pytest.approx(0, abs=1e-4)
    assert after.variance == pytest.approx(1, abs=1e-4)
    moved_BT = scale * x_BT + shift
    again_BT = whiten_BT(moved_BT, mask_BT, Moments.of(moved_BT, mask_BT))
    torch.testing.assert_close(again_BT, whitened_BT, rtol=1e-2, atol=1e-2)


def test_aggregation_by_hand():
    # token_mean: (1 + 3 + 8) / 3; sequence_mean: (2 + 8) / 2; fixed_length: 12 / (2 sequences * 10 tokens)
    for how, expected in (("token_mean", 4.0), ("sequence_mean", 5.0), ("fixed_length", 0.6)):
        result = aggregate(LOSS_BT, MASK_BT, how, normaliser(how, 3, 2, 10))
        assert result.item() == pytest.approx(expected)


def test_a_sequence_without_tokens_adds_nothing_and_counts():
    loss_BT = torch.cat([LOSS_BT, torch.full((1, 3), NAN)])
    mask_BT = torch.cat([MASK_BT, torch.zeros(1, 3, dtype=torch.bool)])
    # sequence_mean: (2 + 8 + 0) / 3; fixed_length: 12 / (3 * 10)
    for how, expected in (("token_mean", 4.0), ("sequence_mean", 10 / 3), ("fixed_length", 0.4)):
        result = aggregate(loss_BT, mask_BT, how, normaliser(how, 3, 3, 10))
        assert result.item() == pytest.approx(expected)


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "fixed_length"])
@quick
@given(batches(), st.data())
def test_micro_batches_and_ranks_add_up_to_the_full_batch(how, batch, data):
    assume(batch.mask_BT.any())
    batch = spoil(batch)
    B, T = batch.mask_BT.shape
    divisor = normaliser(how, int(batch.mask_BT.sum()), B, 16)
    part_B = data.draw(st.lists(st.integers(0, 3), min_size=B, max_size=B))

    def loss_and_gradient(parts):
        total, gradient_BT = 0.0, torch.zeros(B, T)
        for rows in parts:
            # Each part is padded to a length of its own.
            part = stretch(take(batch, rows), list(range(1, T + 1)), T + 1 + len(rows))
            leaf_BT = part.values_BT.requires_grad_()
            share = aggregate(leaf_BT, part.mask_BT, how, divisor)
            share.backward()
            total += share.item()
            gradient_BT[rows] = leaf_BT.grad[:, 1 : T + 1]
        return total, gradient_BT

    whole, whole_gradient_BT = loss_and_gradient([list(range(B))])
    split, split_gradient_BT = loss_and_gradient([[i for i in range(B) if part_B[i] == part] for part in range(4)])
    assert split == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert torch.equal(split_gradient_BT, whole_gradient_BT)


def test_aggregation_errors():
    with pytest.raises(ValueError, match="needs at least one valid token"):
        normaliser("token_mean", 0, 2, 10)
    for call in (lambda: normaliser("mean", 1, 1, 1), lambda: aggregate(LOSS_BT, MASK_BT, "mean", 1.0)):
        with pytest.raises(ValueError, match="unknown loss aggregation 'mean'; choose token_mean"):
            call()


def test_token_sums_need_tokens_and_their_own_length():
    assert (TokenSums(torch.tensor(2.0)) + TokenSums(torch.tensor(3.0))).num_tokens == 5
    with pytest.raises(ValueError, match="statistics of no tokens"):
        TokenSums(torch.tensor(0.0)).means()
    with pytest.raises(ValueError, match="longer than argument"):
        TokenSums.from_tensor(torch.ones(2))
