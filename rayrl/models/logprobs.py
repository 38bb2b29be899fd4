"""Log-probabilities and entropies of chosen tokens from hidden states, without keeping the logits.

The vocabulary product is the largest tensor of a small model (49,152 wide here, against 576 hidden). As in fused
linear cross-entropy (Liger Kernel, arXiv 2410.10989) it is made for a slice of rows at a time, in the forward
pass and again in the backward pass; only one number a row is kept. Rows are response tokens only: prompt tokens and
padding never reach it. Softmax runs in float32 whatever the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 256
ROWS_AT_ONCE_TRAINED = 1024
"""In the backward pass of a trained projection: each slice adds to a gradient as large as the projection."""


def _scaled_logits(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V).float()
    return logits_NV if temperature == 1.0 else logits_NV.div_(temperature)


class _SelectedLogprobs(torch.autograd.Function):
    """(hidden, weight, bias) -> log p of `ids_N` and entropy of each row.

    With a frozen projection the gradient of a row's log p to its hidden state, W[id] - sum_v p_v W_v, doesn't depend on
    what comes from above, so the forward pass leaves it ready: two vocabulary products an epoch, not three.
    With a trained one, or an entropy bonus, the backward pass makes the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        ids_N: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ready = ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3]) and not with_entropy
        logprob_N = hidden_ND.new_empty(len(ids_N), dtype=torch.float32)
        lse_N, entropy_N = torch.empty_like(logprob_N), torch.zeros_like(logprob_N)
        direction_ND = torch.empty_like(hidden_ND) if ready else None
        for rows in _slices(len(ids_N), ROWS_AT_ONCE):
            logits = _scaled_logits(hidden_ND[rows], weight_VD, bias_V, temperature)
            chosen = logits.gather(1, ids_N[rows, None])[:, 0]
            top = logits.amax(-1, keepdim=True)
            exps = logits.sub_(top).exp_() if not with_entropy else (logits - top).exp_()
            total = exps.sum(-1)
            lse = top[:, 0] + total.log()
            logprob_N[rows], lse_N[rows] = chosen - lse, lse
            if with_entropy:
                entropy_N[rows] = lse - (exps * logits).sum(-1) / total
            if direction_ND is not None:
                expected = (exps.to(weight_VD.dtype) @ weight_VD).float() / total[:, None]
                direction = (weight_VD[ids_N[rows]].float() - expected) / temperature
                direction_ND[rows] = direction.to(direction_ND.dtype)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, ids_N, lse_N, entropy_N, direction_ND)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        return logprob_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logprob_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, ids_N, lse_N, entropy_N, direction_ND = ctx.saved_tensors
        if direction_ND is not None:
            grad = (direction_ND.float() * grad_logprob_N[:, None]).to(hidden_ND.dtype)
            return grad, None, None, None, None, None
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for rows in _slices(len(ids_N), ROWS_AT_ONCE if grad_weight_VD is None else ROWS_AT_ONCE_TRAINED):
            logits = _scaled_logits(hidden_ND[rows], weight_VD, bias_V, ctx.temperature)
            grad_lp = grad_logprob_N[rows, None]
            log_p = logits.sub_(lse_N[rows, None])
            if ctx.with_entropy:
                grad = -log_p.exp() * (grad_lp + grad_entropy_N[rows, None] * (log_p + entropy_N[rows, None]))
            else:
                grad = log_p.exp_().mul_(-grad_lp)
            grad.scatter_add_(1, ids_N[rows, None], grad_lp)
            if ctx.temperature != 1.0:
                grad.div_(ctx.temperature)
            grad = grad.to(hidden_ND.dtype)
            grad_hidden_ND[rows] = grad @ weight_VD
            if grad_weight_VD is not None:
                grad_weight_VD += grad.T @ hidden_ND[rows]
            if grad_bias_V is not None:
                grad_bias_V += grad.sum(0)
        grad_weight = grad_weight_VD.to(weight_VD.dtype) if grad_weight_VD is not None else None
        grad_bias = grad_bias_V.to(bias_V.dtype) if grad_bias_V is not None else None
        return grad_hidden_ND, grad_weight, grad_bias, None, None, None


def _slices(num_rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, num_rows, size)]


class LogprobHead(nn.Module):
    """The model's output projection, read as log-probabilities of chosen tokens.

    It shares the projection's own parameter (tied to the embedding or not). Where that is frozen it is a constant here:
    ZeRO-3 would take it apart, while a frozen trunk outside DeepSpeed still embeds tokens with it.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        params: dict[str, Any] = {"weight": projection.weight}
        params["bias"] = projection.bias if isinstance(projection, nn.Linear) else None
        for name, param in params.items():
            if param is None or param.requires_grad:
                self.register_parameter(name, param)
            else:
                self.register_buffer(name, param.detach(), persistent=False)

    def forward(
        self, hidden_ND: Tensor, ids_N: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] and entropies [N] (nats, float32; zeros without `with_entropy`)."""
        return _SelectedLogprobs.apply(hidden_ND, self.weight, self.bias, ids_N, temperature, with_entropy)
