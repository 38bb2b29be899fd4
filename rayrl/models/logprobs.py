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


def _scaled_logits(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V).float()
    return logits_NV if temperature == 1.0 else logits_NV.div_(temperature)


class _SelectedLogprobs(torch.autograd.Function):
    """(hidden, weight, bias) -> log p of `ids_N`, entropy, and log-sum-exp of each row."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ids_N: Tensor, temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        logprobs, entropies, lses = [], [], []
        for hidden, ids in zip(hidden_ND.split(ROWS_AT_ONCE), ids_N.split(ROWS_AT_ONCE), strict=True):
            logits = _scaled_logits(hidden, weight_VD, bias_V, temperature)
            lse = logits.logsumexp(-1)
            logprobs.append(logits.gather(1, ids[:, None])[:, 0] - lse)
            lses.append(lse)
            if with_entropy:
                entropies.append(lse - (torch.softmax(logits, -1) * logits).sum(-1))
        empty = hidden_ND.new_zeros(0, dtype=torch.float32)
        lse_N = torch.cat(lses) if lses else empty
        entropy_N = torch.cat(entropies) if entropies else torch.zeros_like(lse_N)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, ids_N, lse_N, entropy_N)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        return torch.cat(logprobs) if logprobs else empty, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logprob_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, ids_N, lse_N, entropy_N = ctx.saved_tensors
        needs_weight = ctx.needs_input_grad[1]
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for a in range(0, len(ids_N), ROWS_AT_ONCE):
            b = min(a + ROWS_AT_ONCE, len(ids_N))
            logits = _scaled_logits(hidden_ND[a:b], weight_VD, bias_V, ctx.temperature)
            grad_lp = grad_logprob_N[a:b, None]
            if ctx.with_entropy:
                centred = logits - lse_N[a:b, None]  # log p
                probs = centred.exp()
                grad = -probs * (grad_lp + grad_entropy_N[a:b, None] * (centred + entropy_N[a:b, None]))
            else:
                grad = logits.sub_(lse_N[a:b, None]).exp_().mul_(-grad_lp)
            grad.scatter_add_(1, ids_N[a:b, None], grad_lp)
            if ctx.temperature != 1.0:
                grad.div_(ctx.temperature)
            grad = grad.to(hidden_ND.dtype)
            torch.mm(grad, weight_VD, out=grad_hidden_ND[a:b])
            if grad_weight_VD is not None:
                grad_weight_VD += grad.T @ hidden_ND[a:b]
            if grad_bias_V is not None:
                grad_bias_V += grad.sum(0)
        grad_weight = grad_weight_VD.to(weight_VD.dtype) if grad_weight_VD is not None else None
        grad_bias = grad_bias_V.to(bias_V.dtype) if grad_bias_V is not None else None
        return grad_hidden_ND, grad_weight, grad_bias, None, None, None


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
