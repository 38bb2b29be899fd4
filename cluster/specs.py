"""What a role asks of the cluster. Knows nothing of what the role computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""How Ray lays a group's bundles on nodes: together, apart, and the same as a must."""


@dataclass(frozen=True)
class RoleSpec:
    """A role: so many ranks, each one actor with these resources.

    Example: RoleSpec("critic", 2, cpus=0.5, colocate_with="policy")
    """

    name: str
    ranks: int
    cpus: float
    """A rank's CPUs; may be fractional."""
    gpus: float = 0.0
    """A rank's GPUs; below 1 a share of one device, else whole devices."""
    strategy: Strategy = "PACK"
    colocate_with: str | None = None
    """Another role whose bundles this one shares, rank i with rank i. That role itself shares nobody's."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of its processes."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """A rank's custom resources, as nodes declare them (`ray start --resources`): they pin a role to kinds of nodes."""
    min_ranks: int | None = None
    """With how many ranks a run may start and go on, where they are independent of each other; None: with all only."""

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"role {self.name!r}: ranks must be at least 1, got {self.ranks}")
        if self.cpus < 0 or self.gpus < 0 or self.cpus + self.gpus == 0:
            raise ValueError(
                f"role {self.name!r}: a rank needs a positive share of CPUs or GPUs, got {self.cpus} and {self.gpus}"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"role {self.name!r}: more than one GPU a rank must be a whole number, got {self.gpus}")
        if self.min_ranks is not None and not 1 <= self.min_ranks <= self.ranks:
            raise ValueError(f"role {self.name!r}: min_ranks must be 1 to {self.ranks}, got {self.min_ranks}")
        if self.min_ranks is not None and self.colocate_with is not None:
            raise ValueError(f"role {self.name!r} shares bundles and can't come and go by itself: leave min_ranks out")


@dataclass(frozen=True)
class NodeResources:
    """What one node has in all.

    Example: NodeResources("10.0.0.4", cpus=64, gpus=8)
    """

    name: str
    cpus: float
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    """Custom resources by name."""
