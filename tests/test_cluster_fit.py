from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DoesNotFit
from cluster.fit import check_fits, groups
from cluster.machine import this_machine
from cluster.specs import NodeResources, RoleSpec

TWO_GPU_NODES = [NodeResources("a", 16, 4), NodeResources("b", 16, 4), NodeResources("c", 32, 0)]


def test_bundles_hold_the_sum_of_what_their_ranks_claim() -> None:
    policy = RoleSpec("policy", 2, cpus=0.1, gpus=0.5)
    critic = RoleSpec("critic", 2, cpus=0.2, gpus=0.3, colocate_with="policy")
    rollout = RoleSpec("rollout", 1, cpus=1, gpus=0.2, colocate_with="policy")
    alone = RoleSpec("reward:x", 1, cpus=0.5)
    shared, own = groups([alone, policy, critic, rollout])
    assert shared.name == "policy+critic+rollout"
    assert [bundle.resources() for bundle in shared.bundles] == [{"CPU": 1.3, "GPU": 1.0}, {"CPU": 0.3, "GPU": 0.8}]
    assert [bundle.resources() for bundle in own.bundles] == [{"CPU": 0.5}]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([RoleSpec("a", 1, 1), RoleSpec("a", 1, 1)], "names must differ"),
        ([RoleSpec("a", 1, 1, colocate_with="b")], "'b', which has none of its own"),
        (
            [RoleSpec("a", 1, 1), RoleSpec("b", 1, 1, colocate_with="a"), RoleSpec("c", 1, 1, colocate_with="b")],
            "'b', which has none of its own",
        ),
        ([RoleSpec("a", 1, 1), RoleSpec("b", 1, 1, strategy="SPREAD", colocate_with="a")], "must have its strategy"),
        ([RoleSpec("a", 1, 1, gpus=1), RoleSpec("b", 1, 1, gpus=0.1, colocate_with="a")], "lower their fractions"),
    ],
)
def test_contradicting_roles(specs: list[RoleSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups(specs)


@pytest.mark.parametrize(("ranks", "cpus", "gpus"), [(0, 1, 0), (1, 0, 0), (1, -1, 1), (1, 1, 1.5)])
def test_impossible_roles(ranks: int, cpus: float, gpus: float) -> None:
    with pytest.raises(ValueError, match="role 'x'"):
        RoleSpec("x", ranks, cpus, gpus)


def test_fractions_fill_two_cores_exactly() -> None:
    tenths = [RoleSpec(f"r{i}", 1, cpus=0.1) for i in range(20)]
    assert check_fits(tenths, [NodeResources("laptop", 2)])["r19"] == ["laptop"]
    with pytest.raises(DoesNotFit, match=r"2\.1 CPUs are asked and 2 there"):
        check_fits([*tenths, RoleSpec("more", 1, cpus=0.1)], [NodeResources("laptop", 2)])


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("PACK", {"a": 2, "b": 0}),
        ("STRICT_PACK", {"a": 2, "b": 0}),
        ("SPREAD", {"a": 1, "b": 1}),
        ("STRICT_SPREAD", {"a": 1, "b": 1}),
    ],
)
def test_strategies_lay_ranks(strategy: str, expected: dict[str, int]) -> None:
    where = check_fits([RoleSpec("policy", 2, 1, strategy=strategy)], [NodeResources("a", 2), NodeResources("b", 2)])
    assert {node: where["policy"].count(node) for node in ("a", "b")} == expected


def test_bundles_without_gpus_spare_gpu_nodes() -> None:
    where = check_fits([RoleSpec("reward:x", 2, cpus=16), RoleSpec("policy", 8, cpus=4, gpus=1)], TWO_GPU_NODES)
    assert where["reward:x"] == ["c", "c"]
    assert sorted(where["policy"]) == ["a"] * 4 + ["b"] * 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (RoleSpec("policy", 9, 1, gpus=1), "9 GPUs are asked and 8 there"),
        (RoleSpec("policy", 5, 1, gpus=1, strategy="STRICT_PACK"), "STRICT_PACK wants one node for policy"),
        (RoleSpec("policy", 3, 1, gpus=1, strategy="STRICT_SPREAD"), "STRICT_SPREAD wants 3 nodes for policy"),
        (RoleSpec("rollout", 1, 1, gpus=8), "no node has 1 CPU 8 GPU left for a bundle of rollout"),
        (RoleSpec("policy", 65, 1), "65 CPUs are asked and 64 there"),
    ],
)
def test_what_does_not_fit_says_what_to_change(spec: RoleSpec, message: str) -> None:
    with pytest.raises(DoesNotFit) as caught:
        check_fits([spec], TWO_GPU_NODES)
    said = str(caught.value)
    assert message in said
    assert f"asked {spec.name} {spec.ranks} x" in said
    assert "nodes there: 2 x 16 CPU 4 GPU; 1 x 32 CPU" in said


def test_no_nodes() -> None:
    with pytest.raises(DoesNotFit, match="nodes there: none"):
        check_fits([RoleSpec("policy", 1, 1)], [])


roles = st.builds(
    RoleSpec,
    name=st.uuids().map(str),
    ranks=st.integers(1, 4),
    cpus=st.integers(1, 40).map(lambda tenths: tenths / 10),
    gpus=st.sampled_from([0, 0.25, 0.5, 1, 2]),
    strategy=st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
)


@given(st.lists(roles, min_size=1, max_size=5), st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), max_size=4))
def test_a_packing_never_overfills_a_node(specs: list[RoleSpec], sizes: list[tuple[int, int]]) -> None:
    nodes = [NodeResources(str(i), cpus, gpus) for i, (cpus, gpus) in enumerate(sizes)]
    try:
        where = check_fits(specs, nodes)
    except DoesNotFit:
        return
    for node in nodes:
        assert sum(s.cpus * where[s.name].count(node.name) for s in specs) <= node.cpus + 1e-9
        assert sum(s.gpus * where[s.name].count(node.name) for s in specs) <= node.gpus + 1e-9
    for spec in specs:
        different = len(set(where[spec.name]))
        assert len(where[spec.name]) == spec.ranks
        assert spec.strategy != "STRICT_PACK" or different == 1
        assert spec.strategy != "STRICT_SPREAD" or different == spec.ranks


def test_this_machine_follows_quota_and_visible_devices(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("100000 100000\n")
    for device in range(4):
        (tmp_path / f"proc/driver/nvidia/gpus/{device}").mkdir(parents=True)
    assert this_machine({}, tmp_path) == NodeResources("this machine", 1.0, 4.0)
    assert this_machine({"CUDA_VISIBLE_DEVICES": "0,2"}, tmp_path).gpus == 2
    assert this_machine({"CUDA_VISIBLE_DEVICES": ""}, tmp_path).gpus == 0
    assert this_machine({}, tmp_path / "nothing").gpus == 0
