"""Log-probabilities, entropies and their gradients, against log_softmax under autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rayrl.models.builtin import resolve_model
from rayrl.models.loading import load_causal_lm
from rayrl.models.logprobs import ROWS_AT_ONCE, LogprobHead


def make_head(vocab_size: int, width: int, bias: bool, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(vocab_size)
    linear = nn.Linear(width, vocab_size, bias=bias, dtype=dtype)
    nn.init.normal_(linear.weight)
    return linear, torch.randn(2 * ROWS_AT_ONCE + 17, width, dtype=dtype, requires_grad=True)


def plain(linear: nn.Linear, hidden_ND: Tensor, ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp_NV = torch.log_softmax(linear(hidden_ND).float() / temperature, -1)
    return logp_NV.gather(1, ids_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(-1)


def test_two_tokens_worked_by_hand() -> None:
    """Logits (ln 3, 0) / 1 are probabilities 3/4 and 1/4; at temperature 0.5 they are 9/10 and 1/10."""
    linear = nn.Linear(1, 2, bias=False)
    linear.weight.data = torch.tensor([[math.log(3.0)], [0.0]])
    hidden_ND, ids_N = torch.ones(2, 1), torch.tensor([0, 1])
    logprobs_N, entropy_N = LogprobHead(linear)(hidden_ND, ids_N, 1.0, True)
    torch.testing.assert_close(logprobs_N, torch.tensor([math.log(0.75), math.log(0.25)]))
    torch.testing.assert_close(entropy_N, torch.full((2,), 0.75 * math.log(4 / 3) + 0.25 * math.log(4.0)))
    logprobs_N, _ = LogprobHead(linear)(hidden_ND, ids_N, 0.5, False)
    torch.testing.assert_close(logprobs_N, torch.tensor([math.log(0.9), math.log(0.1)]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("model_name", ["tiny-random", "tiny-random-untied"])
def test_equals_log_softmax_of_the_models_own_logits(model_name: str, temperature: float) -> None:
    model = load_causal_lm(resolve_model(model_name), "fp32").requires_grad_(False)
    ids_BL = torch.arange(3, 27).view(2, 12)
    want_BLV = torch.log_softmax(model(ids_BL).logits / temperature, -1)
    hidden_ND = model.base_model(ids_BL).last_hidden_state[:, :-1].reshape(-1, 64)
    next_N = ids_BL[:, 1:].reshape(-1)
    logprobs_N, entropy_N = LogprobHead(model.get_output_embeddings())(hidden_ND, next_N, temperature, True)
    want_NV = want_BLV[:, :-1].reshape(len(next_N), -1)
    torch.testing.assert_close(logprobs_N, want_NV.gather(1, next_N[:, None])[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy_N, -(want_NV.exp() * want_NV).sum(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_autograd_over_several_slices(
    bias: bool, temperature: float, with_entropy: bool
) -> None:
    linear, hidden_ND = make_head(37, 16, bias)
    ids_N = torch.randint(0, 37, (len(hidden_ND),))
    weights_N, entropy_weights_N = torch.randn(2, len(hidden_ND))
    inputs = [hidden_ND, *linear.parameters()]
    results = []
    for function in (lambda: plain(linear, hidden_ND, ids_N, temperature), lambda: LogprobHead(linear)(
        hidden_ND, ids_N, temperature, with_entropy
    )):  # fmt: skip
        logprobs_N, entropy_N = function()
        loss = (weights_N * logprobs_N).sum() + with_entropy * (entropy_weights_N * entropy_N).sum()
        results.append([logprobs_N, entropy_N * with_entropy, *torch.autograd.grad(loss, inputs)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


def test_gradients_pass_a_numeric_check_in_double_precision() -> None:
    """Finite differences of (log-probability, entropy) agree with the backward pass, whatever autograd believes.

    Softmax runs in float32, so the step and the tolerance are a float32's.
    """
    torch.manual_seed(0)
    linear = nn.Linear(4, 6, dtype=torch.float64)
    hidden_ND = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    ids_N = torch.tensor([0, 5, 2])
    head = LogprobHead(linear)

    def function(hidden_ND: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_N, entropy_N = head(hidden_ND, ids_N, 0.7, True)
        return logprobs_N.double(), entropy_N.double()

    inputs = (hidden_ND, linear.weight, linear.bias)
    assert torch.autograd.gradcheck(function, inputs, eps=1e-2, atol=5e-3, rtol=1e-2)


def test_no_rows_give_no_values_and_zero_gradients() -> None:
    linear, _ = make_head(5, 4, True)
    hidden_ND = torch.zeros(0, 4, requires_grad=True)
    logprobs_N, entropy_N = LogprobHead(linear)(hidden_ND, torch.zeros(0, dtype=torch.long), 1.0, True)
    assert logprobs_N.shape == entropy_N.shape == (0,)
    (logprobs_N.sum() + entropy_N.sum()).backward()
    assert linear.weight.grad is not None and not linear.weight.grad.any()
    assert hidden_ND.grad is not None and hidden_ND.grad.shape == (0, 4)


def test_bf16_weights_stay_near_float32() -> None:
    linear, hidden_ND = make_head(37, 16, False, torch.bfloat16)
    ids_N = torch.arange(len(hidden_ND)) % 37
    logprobs_N, entropy_N = LogprobHead(linear)(hidden_ND, ids_N, 1.0, True)
    assert logprobs_N.dtype == entropy_N.dtype == torch.float32
    exact = nn.Linear(16, 37, bias=False)
    exact.weight.data = linear.weight.detach().float()
    want_N, want_entropy_N = plain(exact, hidden_ND.detach().float(), ids_N, 1.0)
    assert (logprobs_N - want_N).abs().mean() < 0.02  # bf16 keeps 8 bits: logits near 8 are rounded to 1/32
    assert (entropy_N - want_entropy_N).abs().mean() < 0.02
    logprobs_N.sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.dtype == torch.bfloat16


def test_a_frozen_projection_is_a_constant_and_a_trained_one_a_parameter() -> None:
    linear, _ = make_head(5, 4, True)
    assert [name for name, _ in LogprobHead(linear).named_parameters()] == ["weight", "bias"]
    assert LogprobHead(linear).weight is linear.weight
    linear.requires_grad_(False)
    frozen = LogprobHead(linear)
    assert list(frozen.parameters()) == [] and list(frozen.state_dict()) == []
    assert frozen.weight.data_ptr() == linear.weight.data_ptr()
