"""Sums over a role's ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def total(sums: Tensor) -> Tensor:
    """All-reduced sum of a float64 tensor over the ranks (every rank must call it), back on the CPU."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return sums.cpu()
    device = torch.device("cuda", 0) if dist.get_backend() == "nccl" else torch.device("cpu")
    moved = sums.to(device)
    dist.all_reduce(moved)
    return moved.cpu()
