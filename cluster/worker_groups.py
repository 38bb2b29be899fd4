"""From what roles claim to groups of like nodes: which roles stand together, how large a node is, how many there are.

Groups follow role and device. Roles that share bundles are in one group. Roles whose ranks may come and go have a group
of their own, so that its nodes may come and go too; other roles with GPUs have one by the name of the first that shares
its bundles; all that claim no GPU are together in `cpu`. What stands before a colon in a role's name is its kind, and
roles of one kind stay together, since a pin names kinds. Every group declares a custom resource of its own, and roles
that ask for it are laid nowhere else. Pure functions; how nodes become pods is in kuberay.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.errors import DoesNotFit
from cluster.fit import UNIT, Bundle, Group, check_fits, groups
from cluster.specs import NodeResources, RoleSpec

CPU_GROUP = "cpu"
MAX_GPUS = 8
"""GPUs of a node by default: what one machine usually has."""
MAX_CPUS = 16
"""CPUs of a node without GPUs by default."""
CPUS_A_GPU = 4
"""CPUs of a node with GPUs by default, or what its ranks claim if that is more: Ray itself, compilation, tokenizers and
loaders run beside the ranks."""
PLENTY = 1000
"""How much of its custom resources a node declares: ranks take 1 each, and CPUs and GPUs are what runs out."""


@dataclass(frozen=True)
class Size:
    """What is asked of a group's nodes; None: by what the ranks claim."""

    cpus: int | None = None
    gpus: int | None = None
    min_nodes: int | None = None
    """Given, the group autoscales from so many up."""
    max_nodes: int | None = None


@dataclass(frozen=True)
class WorkerGroup:
    """Nodes of one kind and the roles on them."""

    name: str
    roles: tuple[str, ...]
    node: NodeResources
    """One node."""
    min_nodes: int
    max_nodes: int
    """As many as the smallest number unless the group autoscales."""
    idle_gpus: int = 0
    """GPUs that no rank claims when all ranks are there."""

    @property
    def autoscales(self) -> bool:
        return self.min_nodes < self.max_nodes

    def nodes(self, count: int) -> list[NodeResources]:
        """`count` nodes by the names NAME-0, NAME-1 ..."""
        return [replace(self.node, name=f"{self.name}-{index}") for index in range(count)]


@dataclass
class _Members:
    """The colocation groups of one worker group."""

    groups: list[Group] = field(default_factory=list)

    @property
    def specs(self) -> list[RoleSpec]:
        return [role for group in self.groups for role in group.roles]

    @property
    def bundles(self) -> list[Bundle]:
        return [bundle for group in self.groups for bundle in group.bundles]

    @property
    def come_and_go(self) -> bool:
        return all(group.comes_and_goes for group in self.groups)


def group_of_role(specs: Sequence[RoleSpec]) -> dict[str, str]:
    """The worker group's name for each role. Raises ValueError as `fit.groups`."""
    return {role.name: name for name, members in _assign(specs).items() for role in members.specs}


def pin_name(group: str) -> str:
    """The custom resource that the nodes of a group declare."""
    return f"{group}-pod"


def plan(specs: Sequence[RoleSpec], sizes: Mapping[str, Size]) -> list[WorkerGroup]:
    """The worker groups that hold the roles, which must already ask for their group's resource.

    Raises:
        ValueError: a size for a group that isn't there, bounds that can't hold the roles, one resource in two groups.
        DoesNotFit: a node is too small for a rank.
    """
    assigned = _assign(specs)
    unknown = sorted(set(sizes) - set(assigned))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: the roles make no such worker group; theirs are {', '.join(assigned)}")
    found = [_sized(name, members, sizes.get(name, Size())) for name, members in assigned.items()]
    declared = Counter(resource for group in found for resource in group.node.custom)
    twice = sorted(resource for resource, count in declared.items() if count > 1)
    if twice:
        raise ValueError(
            f"roles of different worker groups are pinned to {', '.join(twice)}: one resource for each group"
        )
    check_fits(specs, [node for group in found for node in group.nodes(group.min_nodes)])
    return found


def _assign(specs: Sequence[RoleSpec]) -> dict[str, _Members]:
    found = groups(specs)
    with_gpu = {
        kind(role.name) for group in found for role in group.roles if any(bundle.gpu_units for bundle in group.bundles)
    }
    assigned: dict[str, _Members] = {}
    for group in found:
        alone = group.comes_and_goes or any(kind(role.name) in with_gpu for role in group.roles)
        name = kind(group.roles[0].name) if alone else CPU_GROUP
        assigned.setdefault(name, _Members()).groups.append(group)
    return assigned


def kind(role: str) -> str:
    """What stands before the colon: "reward" of "reward:dose"."""
    return role.partition(":")[0]


def _sized(name: str, members: _Members, size: Size) -> WorkerGroup:
    needs_gpus = any(bundle.gpu_units for bundle in members.bundles)
    if size.gpus and not needs_gpus:
        raise ValueError(f"worker group {name} has no role that claims GPUs ({_names(members)}); leave gpus out")
    gpus = (size.gpus or _gpus(members)) if needs_gpus else 0
    cpus = size.cpus or _cpus(members, gpus)
    resources = {resource for role in members.specs for resource in role.resources}
    node = NodeResources(name, cpus, gpus, dict.fromkeys(sorted(resources), float(PLENTY)))
    needed = _count(name, members, node, [replace(spec, min_ranks=None) for spec in members.specs])
    roles = tuple(role.name for role in members.specs)
    idle = max(0, max(needed, size.min_nodes or 0) * gpus - _devices(members.bundles))
    if size.min_nodes is None:
        return WorkerGroup(name, roles, node, needed, needed, idle)
    at_first = [replace(spec, ranks=spec.min_ranks or spec.ranks) for spec in members.specs]
    least = _count(name, members, node, at_first)
    if size.min_nodes < least:
        raise ValueError(
            f"worker group {name}: {least} nodes hold the ranks that must be there at the start, and min_pods is "
            f"{size.min_nodes}; raise it, or lower how many ranks that are (recovery.min_engines)"
        )
    most = size.max_nodes or max(needed, size.min_nodes)
    if most < max(needed, size.min_nodes):
        raise ValueError(f"worker group {name}: max_pods must be at least {max(needed, size.min_nodes)}, got {most}")
    return WorkerGroup(name, roles, node, size.min_nodes, most, idle)


def _count(name: str, members: _Members, node: NodeResources, specs: Sequence[RoleSpec]) -> int:
    """The smallest number of such nodes that holds the ranks."""
    bundles = [bundle for group in groups(specs) for bundle in group.bundles]
    cpus = sum(bundle.cpu_units for bundle in bundles) / UNIT
    least = max(1, math.ceil(_devices(bundles) / node.gpus) if node.gpus else 1, math.ceil(cpus / node.cpus))
    problem = ""
    for count in range(min(least, len(bundles)), len(bundles) + 1):
        try:
            check_fits(specs, [replace(node, name=f"{name}-{index}") for index in range(count)])
        except DoesNotFit as error:
            problem = str(error)
            continue
        return count
    raise DoesNotFit(f"worker group {name} ({_names(members)}): {problem}")


def _gpus(members: _Members) -> int:
    """GPUs of a node: one bundle's where nodes come and go, else all of them, in equal parts of at most MAX_GPUS."""
    bundles = members.bundles
    largest = max(math.ceil(bundle.gpu_units / UNIT) for bundle in bundles)
    together = [_devices(group.bundles) for group in members.groups if group.strategy == "STRICT_PACK"]
    if together:
        return max(largest, *together)
    if members.come_and_go or any(group.strategy == "STRICT_SPREAD" for group in members.groups):
        return largest
    most, devices = max(MAX_GPUS, largest), _devices(bundles)
    if devices <= most:
        return devices
    if {bundle.gpu_units for bundle in bundles} != {bundles[0].gpu_units}:
        return most
    parts = devices // largest  # one a bundle, or a device of shares
    nodes = math.ceil(parts / (most // largest))
    return math.ceil(parts / nodes) * largest


def _devices(bundles: Sequence[Bundle]) -> int:
    """Devices for these bundles on one node. A share lies on one device, so three shares of 0.6 need three."""
    whole = sum(math.ceil(bundle.gpu_units / UNIT) for bundle in bundles if bundle.gpu_units >= UNIT)
    free: list[int] = []
    for share in sorted((bundle.gpu_units for bundle in bundles if 0 < bundle.gpu_units < UNIT), reverse=True):
        index = next((index for index, left in enumerate(free) if left >= share), None)
        if index is None:
            free.append(UNIT - share)
        else:
            free[index] -= share
    return whole + len(free)


def _cpus(members: _Members, gpus: int) -> int:
    """CPUs of a node: what the ranks claim that its GPUs have room for, or all ranks where there are none.

    With GPUs at least CPUS_A_GPU each.
    """
    bundles = members.bundles
    largest = max(bundle.cpu_units for bundle in bundles)
    if members.come_and_go and not gpus:
        claimed = largest
    elif gpus:
        per_bundle = min(bundle.gpu_units for bundle in bundles if bundle.gpu_units)
        with_gpu = [bundle.cpu_units for bundle in bundles if bundle.gpu_units]
        without = sum(bundle.cpu_units for bundle in bundles if not bundle.gpu_units)
        fitting = max(1, min(len(with_gpu), gpus * UNIT // per_bundle))
        claimed = max(sum(sorted(with_gpu, reverse=True)[:fitting]) + without, gpus * CPUS_A_GPU * UNIT)
    else:
        together = [
            sum(b.cpu_units for b in group.bundles) for group in members.groups if group.strategy == "STRICT_PACK"
        ]
        claimed = max(largest, *together, min(sum(bundle.cpu_units for bundle in bundles), MAX_CPUS * UNIT), 0)
    return max(1, math.ceil(claimed / UNIT))


def _names(members: _Members) -> str:
    return ", ".join(role.name for role in members.specs)
