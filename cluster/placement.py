"""Ray placement groups for a set of roles: one a colocation group, made together, waited for with a timeout.

Gang scheduling is Ray's (https://docs.ray.io/en/latest/ray-core/scheduling/placement-group.html); cluster/fit.py says
beforehand whether the nodes can hold the roles at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import PlacementTimeout
from cluster.fit import Group, check_fits, groups
from cluster.specs import NodeResources, RoleSpec


def nodes() -> list[NodeResources]:
    """What the living nodes of the connected cluster have in all, the head's name first if it has any CPUs or GPUs."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            resources: Mapping[str, float] = node["Resources"]
            name = f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}"
            found.append(NodeResources(name, resources.get("CPU", 0.0), resources.get("GPU", 0.0)))
    return found


class Placement:
    """The reserved bundles of a run. `create` is the way in; `options` says how to start an actor in them."""

    def __init__(self, specs: Sequence[RoleSpec], reserved: Sequence[tuple[Group, PlacementGroup]]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._reserved = list(reserved)
        self._group_of = {role.name: handle for group, handle in reserved for role in group.roles}

    @classmethod
    def create(cls, specs: Sequence[RoleSpec], timeout_s: float) -> Placement:
        """Checks that the roles fit, reserves their bundles and waits for all of them.

        Raises:
            DoesNotFit: the nodes are too small; nothing was reserved.
            PlacementTimeout: they aren't free in time; what was reserved is given back.
            ValueError: roles that contradict each other, as in `fit.groups`.
        """
        check_fits(specs, nodes())
        reserved = []
        for group in groups(specs):
            bundles = [bundle.resources() for bundle in group.bundles]
            reserved.append((group, placement_group(bundles, strategy=group.strategy, name=group.name)))
        placement = cls(specs, reserved)
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
        options: dict[str, Any] = {
            "num_cpus": spec.cpus,
            "num_gpus": spec.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group_of[role], placement_group_bundle_index=rank
            ),
        }
        # Ray leaves all devices visible to an actor that claims none of them.
        env = {**({} if spec.gpus else {"CUDA_VISIBLE_DEVICES": ""}), **spec.env}
        if env:
            options["runtime_env"] = {"env_vars": env}
        return options

    def remove(self) -> None:
        """Gives all bundles back; actors still in them are killed. A second call does nothing."""
        while self._reserved:
            _, handle = self._reserved.pop()
            remove_placement_group(handle)

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for group, handle in self._reserved:
            if not handle.wait(max(0.0, deadline - time.monotonic())):
                free = ray.available_resources()
                raise PlacementTimeout(
                    f"no room for {group.name} within {timeout_s:g} s: its {len(group.bundles)} bundles "
                    f"({group.strategy}, the largest {group.bundles[0].resources()}) would fit, but something else "
                    f"uses the cluster, where {free.get('CPU', 0.0):g} CPU and {free.get('GPU', 0.0):g} GPU are free; "
                    "end the other run or wait longer (start_timeout_s)"
                )
