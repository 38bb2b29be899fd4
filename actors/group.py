"""The ranks of one role as one thing: called together, waited for together, named in errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from actors.worker import BESIDE_WORK
from cluster.health import Watch, wait_for
from cluster.placement import Placement

NewActor = Callable[[int], Any]
"""From a rank to the handle of a new actor for it."""


class Group:
    """Actor handles of a role, by rank. Methods are called by name, on all ranks or on one."""

    def __init__(self, role: str, handles: Sequence[Any] | Mapping[int, Any], new: NewActor | None = None) -> None:
        """`handles`: in order of ranks from 0, or by rank. `new` is needed for `renew`."""
        self.role = role
        self._by_rank = dict(handles) if isinstance(handles, Mapping) else dict(enumerate(handles))
        self._new = new

    @classmethod
    def start(cls, actor: type, role: str, placement: Placement, ranks: Sequence[int]) -> Group:
        """Starts `ranks` of `role` in their bundles; nothing is loaded yet."""
        remote = ray.remote(concurrency_groups=BESIDE_WORK)(actor)

        def new(rank: int) -> Any:
            return remote.options(**placement.options(role, rank)).remote()

        return cls(role, {rank: new(rank) for rank in ranks}, new)

    @property
    def handles(self) -> list[Any]:
        """In order of ranks."""
        return list(self.by_name.values())

    @property
    def names(self) -> list[str]:
        """As in "policy[1]"."""
        return list(self.by_name)

    @property
    def by_name(self) -> dict[str, Any]:
        """Handles by name, in order of ranks."""
        return {f"{self.role}[{rank}]": self._by_rank[rank] for rank in self.ranks}

    @property
    def ranks(self) -> list[int]:
        """Those that are there."""
        return sorted(self._by_rank)

    def __len__(self) -> int:
        return len(self._by_rank)

    def part(self, ranks: Sequence[int]) -> Group:
        """Some of the ranks, as they are now."""
        return Group(self.role, {rank: self._by_rank[rank] for rank in ranks})

    def add(self, other: Group) -> None:
        """Takes another group's ranks in."""
        self._by_rank |= other._by_rank

    def remove(self, rank: int) -> None:
        """Ends the actor of a rank; it is no longer called."""
        handle = self._by_rank.pop(rank)
        with contextlib.suppress(RayError, ValueError):
            ray.kill(handle)

    def new(self, rank: int) -> Group:
        """A new actor for a rank, by itself: it has loaded nothing and isn't called with the others yet."""
        assert self._new is not None, "a group that was given handles can't make new ones"
        return Group(self.role, {rank: self._new(rank)})

    def renew(self, ranks: Sequence[int]) -> Group:
        """Ends the actors of these ranks where they live and puts new ones in their place; those, which must load."""
        for rank in ranks:
            if rank in self._by_rank:
                self.remove(rank)
            self.add(self.new(rank))
        return self.part(ranks)

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
        handles = self.handles
        return [
            getattr(handles[i % len(self)], method).options(num_returns=num_returns).remote(*own)
            for i, own in enumerate(arguments)
        ]

    def wait(self, refs: Sequence[ray.ObjectRef], timeout_s: float, what: str, watch: Watch | None = None) -> list[Any]:
        """Values of one reference a rank."""
        return wait_for(refs, timeout_s, what, self.names, watch)

    def run(self, timeout_s: float, what: str, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """`call` and `wait`."""
        return self.wait(self.call(method, *args, **kwargs), timeout_s, what)
