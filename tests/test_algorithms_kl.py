"""KL estimators against exact enumeration, KL in the reward, controllers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.algorithms.kl import AdaptiveKL, FixedKL, kl_per_token, make_controller, token_rewards
from rayrl.config.ppo import KLConfig

NAN = float("nan")
# Three tokens. KL(pi || ref) = 0.6 ln 3 + 0.3 ln 1 + 0.1 ln 0.2 = 0.659167 - 0.160944 = 0.498223
PI_V = torch.tensor([0.6, 0.3, 0.1])
REF_V = torch.tensor([0.2, 0.3, 0.5])
KL = 0.498223
ALL_V = torch.ones(1, 3, dtype=torch.bool)


def expectation(pi_V, ref_V, estimator):
    """Of the estimator over all tokens of a vocabulary, each weighted with its probability."""
    kl_BT = kl_per_token(pi_V.log()[None], ref_V.log()[None], torch.ones(1, len(pi_V), dtype=torch.bool), estimator)
    return (pi_V.detach() * kl_BT[0]).sum()


def test_estimators_by_hand():
    # d = ln 2: k1 = 0.693147, k2 = 0.693147^2 / 2 = 0.240227, k3 = 1/2 - 1 + 0.693147 = 0.193147
    # d = -ln 2: k1 = -0.693147, k2 = 0.240227, k3 = 2 - 1 - 0.693147 = 0.306853
    logprobs_BT, ref_BT = torch.tensor([[-1.0, -1.0, 7.0]]), torch.tensor([[-1 - math.log(2), -1 + math.log(2), NAN]])
    mask_BT = torch.tensor([[True, True, False]])
    for estimator, expected in (("k1", [0.693147, -0.693147]), ("k2", [0.240227] * 2), ("k3", [0.193147, 0.306853])):
        assert kl_per_token(logprobs_BT, ref_BT, mask_BT, estimator)[0].tolist() == pytest.approx(
            [*expected, 0], abs=1e-6
        )


def test_k1_and_k3_have_the_exact_kl_as_expectation():
    assert expectation(PI_V, REF_V, "k1").item() == pytest.approx(KL, abs=1e-6)
    assert expectation(PI_V, REF_V, "k3").item() == pytest.approx(KL, abs=1e-6)
    # With the ratio upside down (pi / ref, as trlx has it) the expectation of k3 is
    # 0.36/0.2 + 0.09/0.3 + 0.01/0.5 - 1 - KL = 1.12 - 0.498223 = 0.621777
    upside_down = (PI_V * kl_per_token(REF_V.log()[None], PI_V.log()[None], ALL_V, "k3")[0]).sum()
    assert upside_down.item() == pytest.approx(0.621777, abs=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_k3_is_unbiased_and_never_negative_for_any_distribution(logits, ref_logits):
    pi_V, ref_V = torch.tensor(logits).softmax(0), torch.tensor(ref_logits).softmax(0)
    exact = (pi_V * (pi_V.log() - ref_V.log())).sum().item()
    assert expectation(pi_V, ref_V, "k3").item() == pytest.approx(exact, abs=1e-5)
    k3_BT = kl_per_token(pi_V.log()[None], ref_V.log()[None], torch.ones(1, 4, dtype=torch.bool), "k3")
    assert k3_BT.min() > -1e-9


def test_k3_keeps_its_digits_near_zero():
    # d = 1e-4: k3 = d^2/2 - d^3/6 = 4.99983e-9; computed as exp(-d) - 1 + d in float32 it would be noise of 1e-8
    d_BT = torch.tensor([[1e-4]])
    assert kl_per_token(d_BT, torch.zeros(1, 1), ALL_V[:, :1], "k3").item() == pytest.approx(4.99983e-9, rel=1e-2)


def test_expected_gradients_of_the_estimators_as_a_loss():
    logits_V = PI_V.log().clone().requires_grad_()
    pi_V = logits_V.softmax(0)
    (forward_V,) = torch.autograd.grad((pi_V * (pi_V.log() - REF_V.log())).sum(), logits_V, retain_graph=True)
    (backward_V,) = torch.autograd.grad((REF_V * (REF_V.log() - pi_V.log())).sum(), logits_V, retain_graph=True)
    expected = {"k1": torch.zeros(3), "k2": forward_V, "k3": backward_V}
    for estimator, gradient_V in expected.items():
        (found_V,) = torch.autograd.grad(expectation(pi_V, REF_V, estimator), logits_V, retain_graph=True)
        torch.testing.assert_close(found_V, gradient_V, rtol=1e-5, atol=1e-6)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="unknown KL estimator 'k4'; choose k1, k2 or k3"):
        kl_per_token(torch.zeros(1, 3), torch.zeros(1, 3), ALL_V, "k4")


def test_token_rewards_by_hand():
    # coef 0.1: -0.1 * kl on every valid token; scores 5 and 7 on the last valid token of each; the third has none.
    kl_BT = torch.tensor([[1.0, NAN, 2.0, NAN], [NAN, 3.0, 4.0, 5.0], [NAN] * 4])
    mask_BT = torch.tensor([[True, False, True, False], [False, True, True, True], [False] * 4])
    expected_BT = torch.tensor([[-0.1, 0, 5 - 0.2, 0], [0, -0.3, -0.4, 7 - 0.5], [0.0] * 4])
    torch.testing.assert_close(token_rewards(torch.tensor([5.0, 7.0, NAN]), kl_BT, mask_BT, 0.1), expected_BT)


def test_rewards_add_up_to_score_minus_penalty():
    kl_BT = torch.tensor([[0.5, 0.25, 0.25]])
    assert token_rewards(torch.tensor([2.0]), kl_BT, ALL_V, 0.5).sum() == 1.5  # 2 - 0.5 * 1


def test_fixed_controller_stays():
    controller = make_controller(KLConfig(controller="fixed", coef=0.05))
    controller.update(100.0, 64)
    assert isinstance(controller, FixedKL)
    assert controller.value == 0.05


def test_adaptive_controller_by_hand():
    controller = make_controller(KLConfig(controller="adaptive", coef=0.1, target=6, horizon=10000))
    assert isinstance(controller, AdaptiveKL)
    controller.update(12.0, 64)  # 12/6 - 1 = 1, clipped to 0.2: 0.1 * (1 + 0.2 * 64 / 10000) = 0.1 * 1.00128
    assert controller.value == pytest.approx(0.100128, rel=1e-12)
    controller.update(6.6, 64)  # 0.1: * 1.00064
    assert controller.value == pytest.approx(0.100128 * 1.00064, rel=1e-12)
    controller.update(6.0, 64)  # on target
    assert controller.value == pytest.approx(0.100128 * 1.00064, rel=1e-12)
    controller.update(-1.0, 64)  # k1 may be negative: -0.2, * 0.99872
    assert controller.value == pytest.approx(0.100128 * 1.00064 * 0.99872, rel=1e-12)


def test_controllers_resume_from_their_state():
    config = KLConfig(controller="adaptive", coef=0.1)
    first, second = make_controller(config), make_controller(config)
    first.update(12.0, 64)
    second.load_state_dict(first.state_dict())
    assert second.value == first.value != 0.1
    fixed = FixedKL(0.3)
    fixed.load_state_dict(FixedKL(0.2).state_dict())
    assert fixed.value == 0.2
    with pytest.raises(ValueError, match="KL controller is 'adaptive' and this run's is 'fixed'"):
        fixed.load_state_dict(first.state_dict())


def test_adaptive_controller_errors():
    with pytest.raises(ValueError, match="so it must start above 0"):
        AdaptiveKL(0.0, 6, 10000)
    controller = AdaptiveKL(0.1, 6, 100)
    with pytest.raises(ValueError, match="the KL of a sequence is nan"):
        controller.update(NAN, 1)
    with pytest.raises(ValueError, match=r"kl\.horizon is 100 but an iteration has 500 sequences; set it above 100"):
        controller.update(0.0, 500)
    assert controller.value == 0.1
