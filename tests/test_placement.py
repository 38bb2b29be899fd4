from typing import Any

import pytest

from cluster.specs import RoleSpec
from rayrl.config.load import ConfigError
from rayrl.config.ppo import PPOConfig
from rayrl.placement import plan_table, role_specs


def config(**sections: Any) -> PPOConfig:
    rewards = [
        {"name": "questions", "kind": "rule", "rule": "clarifying_question", "workers": 2, "cpus_per_worker": 0.1},
        {
            "name": "judge",
            "kind": "model",
            "model": "rm",
            "cpus_per_worker": 0.25,
            "gpus_per_worker": 0.5,
            "threads": 3,
        },
    ]
    policy = {"model": "m"} | sections.pop("policy", {})
    return PPOConfig.model_validate({"policy": policy, "data": {"prompts": "p"}, "rewards": rewards} | sections)


def by_name(cfg: PPOConfig) -> dict[str, RoleSpec]:
    return {spec.name: spec for spec in role_specs(cfg)}


def test_all_roles_with_everything_trained() -> None:
    specs = by_name(config(policy={"ranks": 2, "cpus_per_rank": 0.5}, critic={"ranks": 2}, rollout={"engines": 3}))
    assert list(specs) == ["policy", "critic", "reference", "reward:questions", "reward:judge", "rollout"]
    assert (specs["policy"].ranks, specs["policy"].cpus, specs["policy"].gpus) == (2, 0.5, 0.0)
    assert (specs["reward:questions"].ranks, specs["reward:questions"].cpus) == (2, 0.1)
    assert (specs["reward:judge"].cpus, specs["reward:judge"].gpus) == (0.25, 0.5)
    assert specs["rollout"].ranks == 3
    assert all(spec.colocate_with is None for spec in specs.values())


@pytest.mark.parametrize("mode", ["lora", "last_n"])
def test_reference_inside_the_policy_needs_no_actor(mode: str) -> None:
    cfg = config(policy={"train": {"mode": mode}})
    assert "reference" not in by_name(cfg)
    row = next(row for row in plan_table(cfg) if row.role == "reference")
    assert (row.ranks, row.shares_with) == (0, "inside the policy's ranks")


def test_no_critic_without_gae() -> None:
    assert "critic" not in by_name(config(algorithm={"estimator": "reinforce_pp"}))


def test_threads_are_whole_cpus_at_least_one() -> None:
    specs = by_name(config(policy={"cpus_per_rank": 4.5}, critic={"cpus_per_rank": 0.5}))
    assert specs["policy"].env == {"OMP_NUM_THREADS": "4", "GOMP_SPINCOUNT": "20000"}
    assert specs["critic"].env == {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "20000"}
    assert specs["reward:judge"].env == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "20000"}


def test_a_group_follows_its_first_role_and_skips_absent_ones() -> None:
    cluster = {"colocate": [["reference", "policy", "reward"]], "strategy": "SPREAD"}
    specs = by_name(config(policy={"train": {"mode": "lora"}}, cluster=cluster))
    leaders = {name: spec.colocate_with for name, spec in specs.items()}
    assert leaders == {
        "policy": None, "critic": None, "reward:questions": "policy", "reward:judge": "policy", "rollout": None,
    }  # fmt: skip
    assert {spec.strategy for spec in specs.values()} == {"SPREAD"}


def test_tensor_parallel_takes_whole_devices() -> None:
    assert by_name(config(rollout={"tensor_parallel": 4, "gpus_per_engine": 1}))["rollout"].gpus == 4
    assert by_name(config(rollout={"tensor_parallel": 2}))["rollout"].gpus == 0, "on CPUs"
    with pytest.raises(ConfigError, match=r"rollout.gpus_per_engine must be 1 with tensor_parallel 2"):
        role_specs(config(rollout={"tensor_parallel": 2, "gpus_per_engine": 0.5}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"cluster": {"colocate": [["policy", "critic"], ["critic", "rollout"]]}}, "critic stands there twice"),
        ({"cluster": {"colocate": [["policy", "policy"]]}}, "policy stands there twice"),
        ({"policy": {"cpus_per_rank": 0}}, "role 'policy': a rank needs a positive share"),
        ({"policy": {"gpus_per_rank": 1.5}}, "role 'policy': more than one GPU a rank must be a whole number"),
        (
            {
                "policy": {"gpus_per_rank": 0.7},
                "critic": {"gpus_per_rank": 0.4},
                "cluster": {"colocate": [["policy", "critic"]]},
            },
            r"claim 1 of it at the most together, got 0.7 \(policy\) \+ 0.4 \(critic\)",
        ),
    ],
)
def test_impossible_placements_are_config_errors(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        role_specs(config(**sections))


def test_plan_says_what_each_role_runs() -> None:
    cfg = config(policy={"train": {"mode": "last_n", "num_layers": 2}}, cluster={"colocate": [["policy", "critic"]]})
    rows = {row.role: row for row in plan_table(cfg)}
    assert rows["policy"].model == "m (last 2 blocks)"
    assert rows["critic"].shares_with == "policy's bundles"
    assert rows["reward:judge"].model == "model: rm"
    assert rows["rollout"].model == "vllm: m"
