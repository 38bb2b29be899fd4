"""Bundles of a set of roles, and whether the nodes can hold them: pure functions, nothing starts.

A colocation group is a role with those that share its bundles; each group becomes one placement group, so that its
ranks start together or not at all. Bundle i holds the sum of what rank i of each role claims. The packing is greedy, as
Ray's own is: groups with GPUs and hard strategies first, large bundles first, GPU nodes spared by bundles without GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import DoesNotFit
from cluster.specs import NodeResources, RoleSpec, Strategy

UNIT = 10_000
"""Ray counts resources in ten-thousandths; so do we, since 0.1 + 0.2 > 0.3 in floats."""


@dataclass(frozen=True)
class Bundle:
    """Resources that one rank of each role of a group claims, in ten-thousandths."""

    cpu_units: int
    gpu_units: int

    def resources(self) -> dict[str, float]:
        """As Ray wants it: {"CPU": 0.5, "GPU": 1.0}, without zeros."""
        named = {"CPU": self.cpu_units / UNIT, "GPU": self.gpu_units / UNIT}
        return {name: amount for name, amount in named.items() if amount}


@dataclass(frozen=True)
class Group:
    """Roles that share bundles, the leading one first; bundle i is for rank i of each."""

    roles: tuple[RoleSpec, ...]
    bundles: tuple[Bundle, ...]

    @property
    def name(self) -> str:
        """ "policy+critic" """
        return "+".join(role.name for role in self.roles)

    @property
    def strategy(self) -> Strategy:
        return self.roles[0].strategy


def groups(specs: Sequence[RoleSpec]) -> list[Group]:
    """The colocation groups, most demanding first (the order in which they are placed).

    Raises:
        ValueError: two roles of one name, a leader that isn't there or follows another, strategies that differ in a
            group, GPU shares of a bundle that come to more than the one device they are to share.
    """
    by_name = {spec.name: spec for spec in specs}
    if len(by_name) < len(specs):
        raise ValueError(f"role names must differ, got {[spec.name for spec in specs]}")
    members: dict[str, list[RoleSpec]] = {spec.name: [spec] for spec in specs if spec.colocate_with is None}
    for spec in specs:
        if spec.colocate_with is None:
            continue
        if spec.colocate_with not in members:
            raise ValueError(
                f"role {spec.name!r} shares the bundles of {spec.colocate_with!r}, which has none of its own"
            )
        members[spec.colocate_with].append(spec)
    found = [Group(tuple(roles), _bundles(roles)) for roles in members.values()]
    return sorted(found, key=_demand, reverse=True)


def check_fits(specs: Sequence[RoleSpec], nodes: Sequence[NodeResources]) -> dict[str, list[str]]:
    """Lays all ranks on the nodes.

    Returns:
        The node's name for each rank, by role.

    Raises:
        DoesNotFit: what is asked, what there is, what to change.
        ValueError: as `groups`.
    """
    free = {node.name: [round(node.cpus * UNIT), round(node.gpus * UNIT)] for node in nodes}
    spared = {node.name: node.gpus for node in nodes}
    where: dict[str, list[str]] = {}
    for group in groups(specs):
        placed = _lay(group, free, spared)
        if placed is None:
            raise DoesNotFit(_explain(group, specs, nodes))
        for role in group.roles:
            where[role.name] = placed[: role.ranks]
    return where


def _bundles(roles: Sequence[RoleSpec]) -> tuple[Bundle, ...]:
    leader = roles[0]
    if any(role.strategy != leader.strategy for role in roles):
        raise ValueError(f"roles that share bundles with {leader.name!r} must have its strategy, {leader.strategy}")
    bundles = []
    for rank in range(max(role.ranks for role in roles)):
        here = [role for role in roles if role.ranks > rank]
        cpu_units = sum(round(role.cpus * UNIT) for role in here)
        gpu_units = sum(round(role.gpus * UNIT) for role in here)
        if len([role for role in here if role.gpus]) > 1 and gpu_units > UNIT:
            shares = " + ".join(f"{role.gpus:g} ({role.name})" for role in here if role.gpus)
            raise ValueError(
                f"roles that share a GPU must claim 1 of it at the most together, got {shares}; lower their fractions"
            )
        bundles.append(Bundle(cpu_units, gpu_units))
    return tuple(bundles)


def _demand(group: Group) -> tuple[int, bool, int, int]:
    largest = max(bundle.gpu_units for bundle in group.bundles)
    hard = group.strategy.startswith("STRICT")
    return largest, hard, sum(b.gpu_units for b in group.bundles), sum(b.cpu_units for b in group.bundles)


def _lay(group: Group, free: dict[str, list[int]], gpus: dict[str, float]) -> list[str] | None:
    """A node for each bundle, taken off `free`; None where they don't fit."""
    if group.strategy == "STRICT_PACK":
        cpu_units = sum(bundle.cpu_units for bundle in group.bundles)
        gpu_units = sum(bundle.gpu_units for bundle in group.bundles)
        node = _best(Bundle(cpu_units, gpu_units), free, gpus, [], "PACK")
        if node is None:
            return None
        free[node][0] -= cpu_units
        free[node][1] -= gpu_units
        return [node] * len(group.bundles)
    order = sorted(range(len(group.bundles)), key=lambda i: (-group.bundles[i].gpu_units, -group.bundles[i].cpu_units))
    placed: dict[int, str] = {}
    for index in order:
        bundle = group.bundles[index]
        node = _best(bundle, free, gpus, list(placed.values()), group.strategy)
        if node is None:
            return None
        free[node][0] -= bundle.cpu_units
        free[node][1] -= bundle.gpu_units
        placed[index] = node
    return [placed[index] for index in range(len(group.bundles))]


def _best(
    bundle: Bundle, free: dict[str, list[int]], gpus: dict[str, float], taken: list[str], strategy: Strategy
) -> str | None:
    """The node that a bundle goes to, given those that its group has taken so far."""
    able = [
        name
        for name, (cpu_units, gpu_units) in free.items()
        if cpu_units >= bundle.cpu_units
        and gpu_units >= bundle.gpu_units
        and not (strategy == "STRICT_SPREAD" and name in taken)
    ]

    def preference(name: str) -> tuple[bool, int, int, int]:
        used = taken.count(name)
        spread = used if strategy in ("SPREAD", "STRICT_SPREAD") else -used
        wastes_gpus = not bundle.gpu_units and gpus[name] > 0
        return wastes_gpus, spread, free[name][1], free[name][0]

    return min(able, key=preference, default=None)


def _explain(group: Group, specs: Sequence[RoleSpec], nodes: Sequence[NodeResources]) -> str:
    asked = "; ".join(f"{spec.name} {spec.ranks} x {_amount(spec.cpus, spec.gpus)}" for spec in specs)
    kinds = Counter(_amount(node.cpus, node.gpus) for node in nodes)
    have = "; ".join(f"{count} x {amount}" for amount, count in kinds.items()) or "none"
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    asked_cpus = round(sum(spec.ranks * spec.cpus for spec in specs), 4)
    asked_gpus = round(sum(spec.ranks * spec.gpus for spec in specs), 4)
    if asked_gpus > gpus:
        change = f"{asked_gpus:g} GPUs are asked and {gpus:g} there: lower the ranks, or let roles share GPUs"
    elif asked_cpus > cpus:
        change = (
            f"{asked_cpus:g} CPUs are asked and {cpus:g} there: lower the CPUs a rank (fractions work) or the ranks"
        )
    elif group.strategy == "STRICT_SPREAD":
        change = f"STRICT_SPREAD wants {len(group.bundles)} nodes for {group.name}: use SPREAD, or fewer ranks"
    elif group.strategy == "STRICT_PACK":
        change = f"STRICT_PACK wants one node for {group.name}: use PACK, or fewer ranks"
    else:
        largest = max(group.bundles, key=lambda bundle: (bundle.gpu_units, bundle.cpu_units))
        need = _amount(largest.cpu_units / UNIT, largest.gpu_units / UNIT)
        change = f"no node has {need} left for a bundle of {group.name}: make its share smaller, or add a node"
    return f"the roles don't fit the cluster: asked {asked}; nodes there: {have}; {change}"


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f" {gpus:g} GPU" if gpus else "")
