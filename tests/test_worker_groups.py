"""Groups of like nodes for roles: who stands together, how large a node is, how many there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DoesNotFit
from cluster.fit import check_fits
from cluster.specs import RoleSpec
from cluster.worker_groups import Size, WorkerGroup, group_of_role, kind, pin_name, plan


def spec(name: str, ranks: int, cpus: float = 1, gpus: float = 0, **more: Any) -> RoleSpec:
    """A role; `come_and_go` stands for ranks that need not all be there."""
    if more.pop("come_and_go", False):
        more["min_ranks"] = more.get("min_ranks", ranks)
    return RoleSpec(name, ranks, cpus, gpus, **more)


def shapes(*specs: RoleSpec, **sizes: Size) -> dict[str, tuple[int, float, float]]:
    """(nodes, CPUs, GPUs) by group."""
    return {g.name: (g.max_nodes, g.node.cpus, g.node.gpus) for g in plan(specs, sizes)}


def test_roles_stand_by_device_and_by_whose_bundles_they_share() -> None:
    roles = [
        spec("policy", 2, 1, 0.5),
        spec("critic", 2, 1, 0.5, colocate_with="policy"),
        spec("reference", 1, 0.5),
        spec("reward:model", 1, 1, 1),
        spec("reward:rule", 1, 0.1),
        spec("rollout", 3, 2, 1, come_and_go=True),
        spec("judge", 2, 0.25),
    ]
    assert group_of_role(roles) == {
        "policy": "policy",
        "critic": "policy",
        "reward:model": "reward",
        "reward:rule": "reward",  # one kind, one pin
        "rollout": "rollout",
        "reference": "cpu",
        "judge": "cpu",
    }
    assert shapes(*roles) == {"policy": (1, 8, 2), "rollout": (3, 4, 1), "reward": (1, 4, 1), "cpu": (1, 1, 0)}
    assert (kind("reward:model"), kind("policy"), pin_name("cpu")) == ("reward", "policy", "cpu-pod")


def test_without_gpus_only_ranks_that_come_and_go_stand_apart() -> None:
    roles = [spec("policy", 2, 0.25), spec("rollout", 2, 0.5, come_and_go=True), spec("reward", 1, 0.05)]
    # Two engines of half a CPU are on one node, since a node has whole CPUs.
    assert shapes(*roles) == {"cpu": (1, 1, 0), "rollout": (1, 1, 0)}


@pytest.mark.parametrize(
    ("ranks", "gpus", "strategy", "nodes", "each"),
    [
        (4, 1, "PACK", 1, 4),
        (12, 1, "PACK", 2, 6),  # in equal parts
        (17, 1, "PACK", 3, 6),
        (3, 4, "PACK", 2, 8),  # whole ranks
        (2, 16, "PACK", 2, 16),
        (3, 0.6, "PACK", 1, 3),  # a share lies on one device
        (4, 0.5, "PACK", 1, 2),
        (9, 0.6, "PACK", 2, 5),
        (20, 0.5, "PACK", 2, 5),
        (4, 1, "STRICT_SPREAD", 4, 1),
        (12, 1, "STRICT_PACK", 1, 12),
    ],
)
def test_gpus_of_a_node(ranks: int, gpus: float, strategy: Any, nodes: int, each: int) -> None:
    assert shapes(spec("policy", ranks, 2, gpus, strategy=strategy))["policy"][::2] == (nodes, each)


def test_cpus_of_a_node() -> None:
    assert shapes(spec("policy", 5, 8)) == {"cpu": (3, 16, 0)}
    assert shapes(spec("policy", 5, 8), cpu=Size(cpus=40)) == {"cpu": (1, 40, 0)}
    assert shapes(spec("policy", 1, 20)) == {"cpu": (1, 20, 0)}
    assert shapes(spec("policy", 5, 8, strategy="STRICT_PACK")) == {"cpu": (1, 40, 0)}
    # With GPUs 4 a GPU, unless ranks claim more or the user says otherwise.
    assert shapes(spec("policy", 4, 0.5, 1)) == {"policy": (1, 16, 4)}
    assert shapes(spec("policy", 4, 6, 1)) == {"policy": (1, 24, 4)}
    assert shapes(spec("rollout", 2, 1, 2, come_and_go=True)) == {"rollout": (2, 8, 2)}
    assert shapes(spec("policy", 4, 2, 1), policy=Size(gpus=2)) == {"policy": (2, 8, 2)}
    assert shapes(spec("policy", 4, 2, 1), policy=Size(gpus=4, cpus=4)) == {"policy": (2, 4, 4)}


def group_of(specs: list[RoleSpec], size: Size) -> WorkerGroup:
    (found,) = plan(specs, {"rollout": size})
    return found


def test_a_group_autoscales_between_what_must_and_what_may_be_there() -> None:
    engines = [spec("rollout", 6, 2, 1, min_ranks=2)]
    fixed, scaled = group_of(engines, Size()), group_of(engines, Size(min_nodes=2))
    assert (fixed.min_nodes, fixed.max_nodes, fixed.autoscales) == (6, 6, False)
    assert (scaled.min_nodes, scaled.max_nodes, scaled.autoscales) == (2, 6, True)
    assert group_of(engines, Size(gpus=4, min_nodes=1)).max_nodes == 2
    assert group_of(engines, Size(min_nodes=2, max_nodes=8)).max_nodes == 8
    assert [node.name for node in scaled.nodes(2)] == ["rollout-0", "rollout-1"]
    with pytest.raises(ValueError, match="2 nodes hold the ranks that must be there at the start, and min_pods is 1"):
        group_of(engines, Size(min_nodes=1))
    with pytest.raises(ValueError, match="max_pods must be at least 6, got 3"):
        group_of(engines, Size(min_nodes=2, max_nodes=3))


@pytest.mark.parametrize(
    ("ranks", "gpus", "size", "idle"),
    [
        (4, 1, Size(), 0),
        (4, 1, Size(gpus=3), 2),
        (4, 1, Size(gpus=2, min_nodes=1), 0),
        (4, 1, Size(gpus=2, min_nodes=1, max_nodes=9), 0),  # pods that nobody asks for aren't there
        (4, 1, Size(min_nodes=5), 1),
        (4, 2, Size(gpus=3), 4),
        (4, 0.5, Size(gpus=2), 0),
        (3, 0.6, Size(gpus=2), 1),
    ],
)
def test_gpus_without_a_rank_are_counted(ranks: int, gpus: float, size: Size, idle: int) -> None:
    assert group_of([spec("rollout", ranks, 1, gpus, min_ranks=1)], size).idle_gpus == idle


def test_one_resource_names_one_group() -> None:
    roles = [spec("policy", 1, resources={"a": 1}), spec("rollout", 1, come_and_go=True, resources={"a": 1})]
    with pytest.raises(ValueError, match="pinned to a"):
        plan(roles, {})
    (group,) = plan(roles[:1], {})
    assert group.node.custom == {"a": 1000}


def test_a_node_that_is_too_small_is_named() -> None:
    with pytest.raises(DoesNotFit, match=r"worker group cpu \(policy\): .*4 CPUs are asked and 2 there"):
        plan([spec("policy", 1, 4)], {"cpu": Size(cpus=2)})


claims = st.tuples(st.integers(1, 9), st.sampled_from([0.05, 0.5, 1, 3]), st.sampled_from([0, 0, 0.3, 0.5, 1, 2, 4]))


@given(st.lists(claims, min_size=1, max_size=5), st.booleans(), st.sampled_from(["PACK", "SPREAD"]))
def test_what_is_planned_holds_every_rank_where_it_belongs(
    asked: list[tuple[int, float, float]], engines: bool, strategy: Any
) -> None:
    roles = [
        spec(f"role{index}", ranks, cpus, gpus, strategy=strategy, come_and_go=engines and index == 0)
        for index, (ranks, cpus, gpus) in enumerate(asked)
    ]
    groups = group_of_role(roles)
    pinned = [replace(role, resources={pin_name(groups[role.name]): 1.0}) for role in roles]
    where = check_fits(pinned, [node for group in plan(pinned, {}) for node in group.nodes(group.min_nodes)])
    for role in roles:
        assert len(where[role.name]) == role.ranks
        assert {node.rpartition("-")[0] for node in where[role.name]} == {groups[role.name]}
