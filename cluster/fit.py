"""Bundles of a set of roles, and whether the nodes can hold them: pure functions, nothing starts.

A colocation group is a role with those that share its bundles; each group becomes one placement group, so that its
ranks start together or not at all. Bundle i holds the sum of what rank i of each role claims. The packing is greedy, as
Ray's own is: groups with GPUs and hard strategies first, large bundles first, GPU nodes spared by bundles without GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import DoesNotFit
from cluster.specs import NodeResources, RoleSpec, Strategy

UNIT = 10_000
"""Ray counts resources in ten-thousandths; so do we, since 0.1 + 0.2 > 0.3 in floats."""


@dataclass(frozen=True)
class Bundle:
    """Resources that one rank of each role of a group claims."""

    units: Mapping[str, int]
    """By Ray's name of the resource ("CPU", "GPU", custom ones), in ten-thousandths, without zeros."""

    @property
    def cpu_units(self) -> int:
        return self.units.get("CPU", 0)

    @property
    def gpu_units(self) -> int:
        return self.units.get("GPU", 0)

    def resources(self) -> dict[str, float]:
        """As Ray wants it: {"CPU": 0.5, "GPU": 1.0}."""
        return {name: amount / UNIT for name, amount in self.units.items()}


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

    @property
    def min_bundles(self) -> int:
        """How many must be there at the start: all, unless its ranks may come and go."""
        least = self.roles[0].min_ranks
        return len(self.bundles) if least is None else least

    @property
    def comes_and_goes(self) -> bool:
        """Whether each rank is reserved by itself."""
        return self.roles[0].min_ranks is not None


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
        The node's name for each rank, by role; fewer than all where the rest may come later and has no room now.

    Raises:
        DoesNotFit: what is asked, what there is, what to change.
        ValueError: as `groups`.
    """
    free = {node.name: _units(node.cpus, node.gpus, node.custom) for node in nodes}
    gpus = {node.name: node.gpus for node in nodes}
    where: dict[str, list[str]] = {}
    later: list[tuple[Group, list[str]]] = []
    for group in groups(specs):
        placed = _lay(group, group.bundles[: group.min_bundles], free, gpus)
        if placed is None:
            raise DoesNotFit(_explain(group, specs, nodes))
        for role in group.roles:
            where[role.name] = placed[: role.ranks]
        later.append((group, placed))
    for group, placed in later:
        for bundle in group.bundles[group.min_bundles :]:
            node = _best(bundle, free, gpus, placed, group.strategy)
            if node is None:
                break
            _take(free[node], bundle)
            placed.append(node)
        where[group.roles[0].name] = placed[: group.roles[0].ranks]
    return where


def _units(cpus: float, gpus: float, custom: Mapping[str, float]) -> dict[str, int]:
    amounts = {"CPU": cpus, "GPU": gpus, **custom}
    return {name: round(amount * UNIT) for name, amount in amounts.items() if amount}


def _take(free: dict[str, int], bundle: Bundle) -> None:
    for name, amount in bundle.units.items():
        free[name] -= amount


def _bundles(roles: Sequence[RoleSpec]) -> tuple[Bundle, ...]:
    leader = roles[0]
    if any(role.strategy != leader.strategy for role in roles):
        raise ValueError(f"roles that share bundles with {leader.name!r} must have its strategy, {leader.strategy}")
    bundles = []
    for rank in range(max(role.ranks for role in roles)):
        here = [role for role in roles if role.ranks > rank]
        units: Counter[str] = Counter()
        for role in here:
            units.update(_units(role.cpus, role.gpus, role.resources))
        if len([role for role in here if role.gpus]) > 1 and units["GPU"] > UNIT:
            shares = " + ".join(f"{role.gpus:g} ({role.name})" for role in here if role.gpus)
            raise ValueError(
                f"roles that share a GPU must claim 1 of it at the most together, got {shares}; lower their fractions"
            )
        bundles.append(Bundle(dict(units)))
    return tuple(bundles)


def _demand(group: Group) -> tuple[int, bool, int, int]:
    largest = max(bundle.gpu_units for bundle in group.bundles)
    hard = group.strategy.startswith("STRICT")
    return largest, hard, sum(b.gpu_units for b in group.bundles), sum(b.cpu_units for b in group.bundles)


def _lay(
    group: Group, bundles: Sequence[Bundle], free: dict[str, dict[str, int]], gpus: Mapping[str, float]
) -> list[str] | None:
    """A node for each of the group's bundles, taken off `free`; None where they don't fit."""
    if group.strategy == "STRICT_PACK":
        together: Counter[str] = Counter()
        for bundle in bundles:
            together.update(bundle.units)
        whole = Bundle(dict(together))
        node = _best(whole, free, gpus, [], "PACK")
        if node is None:
            return None
        _take(free[node], whole)
        return [node] * len(bundles)
    order = sorted(range(len(bundles)), key=lambda i: (-bundles[i].gpu_units, -bundles[i].cpu_units))
    placed: dict[int, str] = {}
    for index in order:
        node = _best(bundles[index], free, gpus, list(placed.values()), group.strategy)
        if node is None:
            return None
        _take(free[node], bundles[index])
        placed[index] = node
    return [placed[index] for index in range(len(bundles))]


def _best(
    bundle: Bundle,
    free: Mapping[str, Mapping[str, int]],
    gpus: Mapping[str, float],
    taken: Sequence[str],
    strategy: Strategy,
) -> str | None:
    """The node that a bundle goes to, given those that its group has taken so far."""
    able = [
        name
        for name, there in free.items()
        if all(there.get(resource, 0) >= amount for resource, amount in bundle.units.items())
        and not (strategy == "STRICT_SPREAD" and name in taken)
    ]

    def preference(name: str) -> tuple[bool, int, int, int]:
        used = taken.count(name)
        spread = used if strategy in ("SPREAD", "STRICT_SPREAD") else -used
        wastes_gpus = not bundle.gpu_units and gpus[name] > 0
        return wastes_gpus, spread, free[name].get("GPU", 0), free[name].get("CPU", 0)

    return min(able, key=preference, default=None)


def _explain(group: Group, specs: Sequence[RoleSpec], nodes: Sequence[NodeResources]) -> str:
    asked = "; ".join(
        f"{spec.name} {spec.min_ranks or spec.ranks} x {_amount(spec.cpus, spec.gpus, spec.resources)}"
        for spec in specs
    )
    kinds = Counter(_amount(node.cpus, node.gpus, node.custom) for node in nodes)
    have = "; ".join(f"{count} x {amount}" for amount, count in kinds.items()) or "none"
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    asked_cpus = round(sum((spec.min_ranks or spec.ranks) * spec.cpus for spec in specs), 4)
    asked_gpus = round(sum((spec.min_ranks or spec.ranks) * spec.gpus for spec in specs), 4)
    wanted = {name for role in group.roles for name in role.resources}
    missing = sorted(wanted - {name for node in nodes for name in node.custom})
    if missing:
        change = (
            f"no node declares the resource {', '.join(missing)} to which {group.name} is pinned: "
            "start nodes with it (ray start --resources), or change cluster.pin"
        )
    elif asked_gpus > gpus:
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
        custom = {name: amount / UNIT for name, amount in largest.units.items() if name not in ("CPU", "GPU")}
        need = _amount(largest.cpu_units / UNIT, largest.gpu_units / UNIT, custom)
        change = f"no node has {need} left for a bundle of {group.name}: make its share smaller, or add a node"
    return f"the roles don't fit the cluster: asked {asked}; nodes there: {have}; {change}"


def _amount(cpus: float, gpus: float, custom: Mapping[str, float]) -> str:
    named = "".join(f" {amount:g} {name}" for name, amount in custom.items())
    return f"{cpus:g} CPU" + (f" {gpus:g} GPU" if gpus else "") + named
