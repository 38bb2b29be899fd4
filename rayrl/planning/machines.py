"""The nodes that a plan is for: a described cluster, this machine, or a Ray cluster that is joined.

A description is `NODESxGPUSxDEVICE[:CPUS[:GB]]`, several joined by `+`: `4x8xH100`, `2x8xA100-80:128:2000+1x0xCPU:64`.
CPUS and GB (host memory) are of one node. Ray is imported where a cluster is joined, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.machine import this_machine
from cluster.specs import NodeResources
from rayrl.errors import UserError
from rayrl.planning.devices import (
    ALIASES,
    CORES_PER_GPU,
    CPU,
    GIB,
    GPUS,
    HOST_BYTES_PER_GPU,
    PLAIN_CPU,
    Device,
    find_gpu,
    gpu_of_model,
)

GRAMMAR = "NODESxGPUSxDEVICE[:CPUS[:GB]], as in 4x8xH100 or 1x0xCPU:64, joined by + where nodes differ"
_GROUP = re.compile(r"(\d+)x(\d+)x([A-Za-z0-9][A-Za-z0-9_-]*)(?::(\d+)(?::(\d+))?)?")


@dataclass(frozen=True)
class Node:
    """One machine: what Ray counts, and what its devices are."""

    resources: NodeResources
    gpu: Device | None
    cpu: Device
    host_bytes: int

    @property
    def name(self) -> str:
        """As Ray or the description calls it."""
        return self.resources.name

    @property
    def gpus(self) -> int:
        """Whole devices."""
        return int(self.resources.gpus)


@dataclass(frozen=True)
class Machines:
    """What a plan is for. `described`: whether nodes could be added by writing so."""

    nodes: tuple[Node, ...]
    what: str
    described: bool = False
    private_ray: bool = False
    """Whether a run starts Ray here itself, with its object store."""

    def with_more(self, count: int) -> Machines:
        """`count` nodes more, of the first kind that has GPUs (or of the first)."""
        kind = next((node for node in self.nodes if node.gpus), self.nodes[0])
        names = range(len(self.nodes) + 1, len(self.nodes) + 1 + count)
        more = [replace(kind, resources=replace(kind.resources, name=f"node-{number}")) for number in names]
        return replace(self, nodes=(*self.nodes, *more), what=f"{self.what} and {count} more of its nodes")

    def with_resources(self, names: Iterable[str]) -> Machines:
        """The nodes, all declaring these custom resources: a description doesn't say what roles are pinned to."""
        custom = dict.fromkeys(names, 1000.0)
        nodes = [replace(node, resources=replace(node.resources, custom=custom)) for node in self.nodes]
        return replace(self, nodes=tuple(nodes))


def described(spec: str) -> Machines:
    """The nodes of a description. UserError where it isn't of the form, with what is wrong in it."""
    nodes: list[Node] = []
    for text in spec.split("+"):
        match = _GROUP.fullmatch(text.strip())
        if match is None:
            raise UserError(f"--cluster {spec}: {text.strip()!r} isn't of the form {GRAMMAR}")
        count, gpus, cpus, gb = (int(part) if part else 0 for part in match.group(1, 2, 4, 5))
        if count == 0:
            raise UserError(f"--cluster {spec}: {text.strip()!r} has no nodes")
        nodes += _like(spec, text.strip(), count, gpus, match.group(3), cpus, gb, len(nodes))
    return Machines(tuple(nodes), spec, described=True)


def _like(spec: str, text: str, count: int, gpus: int, name: str, cpus: int, gb: int, before: int) -> list[Node]:
    on_cpu = name.upper() == CPU.name
    if on_cpu != (gpus == 0):
        problem = "CPU nodes have 0 GPUs" if on_cpu else "a node without GPUs is written 1x0xCPU:64"
        raise UserError(f"--cluster {spec}: {text!r}: {problem}")
    if on_cpu and not cpus:
        raise UserError(f"--cluster {spec}: {text!r} doesn't say how many CPUs: write {count}x0xCPU:64, say")
    gpu = None if on_cpu else find_gpu(name)
    cpus = cpus or gpus * CORES_PER_GPU
    memory = gb * 10**9 or (cpus * CPU.memory if gpu is None else gpus * HOST_BYTES_PER_GPU)
    return [
        Node(NodeResources(f"node-{number}", float(cpus), float(gpus)), gpu, CPU, memory)
        for number in range(before + 1, before + 1 + count)
    ]


def here(environ: Mapping[str, str], root: Path = Path("/")) -> Machines:
    """This machine. UserError where its GPUs aren't known."""
    resources = this_machine(environ, root)
    gpu = _gpu_here(root) if resources.gpus else None
    node = Node(resources, gpu, cpu_here(root), memory_here(root))
    what = f"this machine ({resources.cpus:g} CPU, {resources.gpus:g} GPU, {node.host_bytes / GIB:.0f} GiB)"
    return Machines((node,), what, private_ray=True)


def _gpu_here(root: Path) -> Device:
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("Model:")]
    model = lines[0].partition(":")[2].strip() if lines else ""
    device = gpu_of_model(model)
    if device is None:
        raise UserError(
            f"this machine's GPUs ({model or 'unnamed'}) aren't known; describe it: --cluster 1x8xH100, say"
        )
    return device


def cpu_here(root: Path = Path("/")) -> Device:
    """The kind of this machine's cores: with quick bf16 (AMX or AVX512-BF16, as `dtype: auto` looks), or without."""
    file = root / "proc/cpuinfo"
    flags = file.read_text().split("flags", 1)[-1].split("\n", 1)[0].split() if file.is_file() else []
    return CPU if {"amx_tile", "avx512_bf16"}.intersection(flags) else PLAIN_CPU


def memory_here(root: Path = Path("/")) -> int:
    """Bytes of this machine's memory, or of its container's limit (cgroup v2) where that is less."""
    info = (root / "proc/meminfo").read_text()
    total = int(info.split("MemTotal:", 1)[1].split(None, 1)[0]) * 1024
    limit = root / "sys/fs/cgroup/memory.max"
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def joined(address: str) -> Machines:
    """The nodes of the Ray cluster at `address`, which is joined for the look.

    Raises:
        CannotConnect: nothing answers there.
        UserError: its GPUs aren't known.
    """
    import ray

    from cluster.placement import nodes
    from cluster.session import connect

    with connect(address) as session:
        totals = {node["NodeID"][:6]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        found = tuple(_joined_node(resources, totals[resources.name.rpartition("/")[2]]) for resources in nodes())
    return Machines(found, f"the Ray cluster at {session.address}")


def _joined_node(resources: NodeResources, totals: Mapping[str, float]) -> Node:
    """Ray counts a node's memory less what it keeps for its object store; both are the node's."""
    memory = int(totals.get("memory", 0.0) + totals.get("object_store_memory", 0.0))
    kinds = [name.partition(":")[2] for name in totals if name.startswith("accelerator_type:")]
    gpu = None
    if resources.gpus:
        gpu = next((device for device in map(gpu_of_model, sorted(kinds, key=len, reverse=True)) if device), None)
        if gpu is None:
            named = ", ".join(kinds) or "of a kind that it doesn't name"
            known = ", ".join([*GPUS, *ALIASES])
            raise UserError(f"node {resources.name} has GPUs {named}; known are {known}: describe the cluster instead")
    return Node(resources, gpu, cpu_here(), memory)
