"""Ray placement groups for a set of roles: one a colocation group, made together, waited for with a timeout.

Gang scheduling is Ray's (https://docs.ray.io/en/latest/ray-core/scheduling/placement-group.html); cluster/fit.py says
beforehand whether the nodes can hold the roles at all.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import PlacementTimeout
from cluster.fit import Bundle, Group, check_fits, groups
from cluster.specs import NodeResources, RoleSpec, Strategy

POLL_S = 0.2
"""Between looks at bundles that may come one by one."""


def nodes() -> list[NodeResources]:
    """What the living nodes of the connected cluster have in all, the head's name first if it has any CPUs or GPUs."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            resources: Mapping[str, float] = node["Resources"]
            name = f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}"
            own = ("CPU", "GPU", "memory", "object_store_memory")
            custom = {key: n for key, n in resources.items() if key not in own and not key.startswith("node:")}
            found.append(NodeResources(name, resources.get("CPU", 0.0), resources.get("GPU", 0.0), custom))
    return found


@dataclass(frozen=True)
class Reserved:
    """One placement group of Ray's: all bundles of a group, or that of `only_rank` alone."""

    group: Group
    bundles: tuple[Bundle, ...]
    handle: PlacementGroup
    only_rank: int | None


class Placement:
    """The reserved bundles of a run. `create` is the way in; `options` says how to start an actor in them.

    A bundle whose node dies is laid anew by Ray as soon as a node has room; actors started in it meanwhile wait for it.
    """

    def __init__(self, specs: Sequence[RoleSpec], reserved: Sequence[Reserved], label: str) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._reserved = list(reserved)
        self._label = label
        self._bundle_of: dict[tuple[str, int], tuple[PlacementGroup, int]] = {}
        for one in reserved:
            for role in one.group.roles:
                for index in range(min(len(one.bundles), role.ranks)):
                    rank = index if one.only_rank is None else one.only_rank
                    self._bundle_of[role.name, rank] = (one.handle, index)
        self._starts: Counter[tuple[str, int]] = Counter()

    @classmethod
    def create(cls, specs: Sequence[RoleSpec], timeout_s: float, label: str = "rayrl") -> Placement:
        """Checks that the roles fit, reserves their bundles and waits for all that the start needs.

        Ranks above a role's `min_ranks` aren't waited for: `is_there` tells when theirs can start. `label` names the
        run in Ray's dashboard: groups are called "LABEL/policy+critic", actors "LABEL/policy[1]".

        Raises:
            DoesNotFit: the nodes are too small; nothing was reserved.
            PlacementTimeout: they aren't free in time; what was reserved is given back.
            ValueError: roles that contradict each other, as in `fit.groups`.
        """
        check_fits(specs, nodes())
        label = f"{label}-{secrets.token_hex(2)}"  # two runs of one name may share a cluster
        reserved = [one for group in groups(specs) for one in _reserve(group, label)]
        placement = cls(specs, reserved, label)
        try:
            placement._wait(timeout_s)
        except BaseException:
            placement.remove()
            raise
        return placement

    def options(self, role: str, rank: int) -> dict[str, Any]:
        """Arguments for `SomeActor.options(**...)` that start rank `rank` of a role in its bundle."""
        spec = self._specs[role]
        if not 0 <= rank < spec.ranks:
            raise IndexError(f"role {role!r} has ranks 0 to {spec.ranks - 1}, not {rank}")
        handle, bundle = self._bundle_of[role, rank]
        self._starts[role, rank] += 1
        again = f" #{self._starts[role, rank]}" if self._starts[role, rank] > 1 else ""
        options: dict[str, Any] = {
            # Ray frees a dead actor's name a little later, so the next one has another.
            "name": f"{self._label}/{role}[{rank}]{again}",
            "num_cpus": spec.cpus,
            "num_gpus": spec.gpus,
            "resources": dict(spec.resources),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(handle, placement_group_bundle_index=bundle),
        }
        # Ray leaves all devices visible to an actor that claims none of them.
        env = {**({} if spec.gpus else {"CUDA_VISIBLE_DEVICES": ""}), **spec.env}
        if env:
            options["runtime_env"] = {"env_vars": env}
        return options

    def is_there(self, role: str, rank: int) -> bool:
        """Whether the bundle of this rank lies on living nodes now."""
        handle, _ = self._bundle_of[role, rank]
        return bool(placement_group_table(handle)["state"] == "CREATED")

    def remove(self) -> None:
        """Gives all bundles back; actors still in them are killed. A second call does nothing."""
        while self._reserved:
            remove_placement_group(self._reserved.pop().handle)

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for one in self._reserved:
            if one.only_rank is None and not one.handle.wait(max(0.0, deadline - time.monotonic())):
                raise _no_room(one.group, timeout_s)
        for group in {one.group.name: one.group for one in self._reserved if one.only_rank is not None}.values():
            role = group.roles[0]
            while sum(self.is_there(role.name, rank) for rank in range(role.ranks)) < group.min_bundles:
                if time.monotonic() > deadline:
                    raise _no_room(group, timeout_s)
                time.sleep(POLL_S)


def _reserve(group: Group, label: str) -> list[Reserved]:
    """The group's bundles as one placement group, or each by itself where ranks may come and go."""
    if group.comes_and_goes:
        return [
            Reserved(group, (bundle,), _placement_group((bundle,), "PACK", f"{label}/{group.name}[{rank}]"), rank)
            for rank, bundle in enumerate(group.bundles)
        ]
    handle = _placement_group(group.bundles, group.strategy, f"{label}/{group.name}")
    return [Reserved(group, group.bundles, handle, None)]


def _placement_group(bundles: Sequence[Bundle], strategy: Strategy, name: str) -> PlacementGroup:
    return placement_group([bundle.resources() for bundle in bundles], strategy=strategy, name=name)


def _no_room(group: Group, timeout_s: float) -> PlacementTimeout:
    free = ray.available_resources()
    return PlacementTimeout(
        f"no room for {group.name} within {timeout_s:g} s: its {group.min_bundles} bundles "
        f"({group.strategy}, the largest {group.bundles[0].resources()}) would fit, but something else "
        f"uses the cluster, where {free.get('CPU', 0.0):g} CPU and {free.get('GPU', 0.0):g} GPU are free; "
        "end the other run or wait longer (start_timeout_s)"
    )
