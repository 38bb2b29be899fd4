"""The ranks of one role as one thing: called together, waited for together, named in errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from cluster.health import wait_for
from cluster.placement import Placement


class Group:
    """Actor handles of a role. Methods are called by name, on all ranks or on one."""

    def __init__(self, role: str, handles: Sequence[Any]) -> None:
        self.role = role
        self.handles = list(handles)

    @classmethod
    def start(cls, actor: type, role: str, placement: Placement, ranks: int) -> Group:
        """Starts the ranks of `role` in their bundles; nothing is loaded yet."""
        remote = ray.remote(actor)
        return cls(role, [remote.options(**placement.options(role, rank)).remote() for rank in range(ranks)])

    @property
    def names(self) -> list[str]:
        """As in "policy[1]"."""
        return [f"{self.role}[{rank}]" for rank in range(len(self.handles))]

    def __len__(self) -> int:
        return len(self.handles)

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[ray.ObjectRef]:
        """Starts `method` on every rank with the same arguments."""
        return [getattr(handle, method).remote(*args, **kwargs) for handle in self.handles]

    def each(self, method: str, arguments: Sequence[Sequence[Any]], num_returns: int = 1) -> list[Any]:
        """Starts `method` on rank i with arguments[i]; with `num_returns` above 1, a list of references a rank."""
        return [
            getattr(handle, method).options(num_returns=num_returns).remote(*own)
            for handle, own in zip(self.handles, arguments, strict=True)
        ]

    def in_turn(self, method: str, arguments: Sequence[Sequence[Any]], num_returns: int) -> list[Any]:
        """As `each`, for any number of arguments: rank i % len(self) takes arguments[i]."""
        return [
            getattr(self.handles[i % len(self)], method).options(num_returns=num_returns).remote(*own)
            for i, own in enumerate(arguments)
        ]

    def wait(self, refs: Sequence[ray.ObjectRef], timeout_s: float, what: str) -> list[Any]:
        """Values of one reference a rank."""
        return wait_for(refs, timeout_s, what, self.names)

    def run(self, timeout_s: float, what: str, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """`call` and `wait`."""
        return self.wait(self.call(method, *args, **kwargs), timeout_s, what)

    def kill(self) -> None:
        """Ends the actors at once."""
        for handle in self.handles:
            ray.kill(handle)
