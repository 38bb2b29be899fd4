"""`rayrl plan`: places, sums over devices, changes that help, and what bad input says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.specs import NodeResources
from rayrl import cli
from rayrl.config.load import load, presets
from rayrl.config.ppo import PPOConfig
from rayrl.errors import UserError
from rayrl.planning import machines
from rayrl.planning.changes import Change, changed, smallest_change
from rayrl.planning.demands import GPU_CONTEXT, find_shapes
from rayrl.planning.devices import CPU, GIB, GPUS, PLAIN_CPU
from rayrl.planning.plan import Plan, make_plan
from rayrl.planning.step import step_time
from rayrl.planning.table import ranges

SEVEN = "llama-2-7b"


def config(**sections: Any) -> PPOConfig:
    """A run on GPUs; roles of their own unless `sections` says otherwise."""
    role = {"dtype": "bf16", "cpus_per_rank": 1, "gpus_per_rank": 1, "micro_batch_size": 1}
    raw: dict[str, Any] = {
        "prompts_per_step": 32,
        "policy": {"model": SEVEN, "train": {"mode": "lora"}, **role},
        "critic": {"train": {"mode": "lora"}, **role},
        "rollout": {"gpus_per_engine": 1, "gpu_memory_utilization": 0.9, "max_num_seqs": 64},
        "data": {"prompts": "p"},
        "rewards": [{"name": "length", "kind": "rule", "rule": "length_window"}],
    }
    for name, section in sections.items():
        raw[name] = {**raw[name], **section} if isinstance(section, dict) and name in raw else section
    return PPOConfig.model_validate(raw)


def plan(cfg: PPOConfig, spec: str, **shapes: str) -> Plan:
    return make_plan(cfg, find_shapes(cfg, shapes), machines.described(spec))


def gpu_of(made: Plan) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for actor in made.actors:
        found.setdefault(actor.role, []).append((actor.node, actor.gpus))
    return found


def test_every_rank_gets_a_node_and_whole_devices() -> None:
    made = plan(
        config(policy={"ranks": 2}, critic={"ranks": 2}, rollout={"engines": 2, "tensor_parallel": 2}), "2x4xH100"
    )
    places = gpu_of(made)
    assert made.fits
    assert (
        len({(node, gpu) for role in ("policy", "critic", "rollout") for node, gpus in places[role] for gpu in gpus})
        == 8
    )
    assert all(len(gpus) == 2 for _, gpus in places["rollout"])
    assert places["reward:length"] == [(places["reward:length"][0][0], ())]


def test_colocated_ranks_share_a_device_and_its_memory_is_added() -> None:
    both = {"ranks": 2, "gpus_per_rank": 0.5}
    made = plan(config(policy=both, critic=both, cluster={"colocate": [["policy", "critic"]]}), "1x3xH100")
    places = gpu_of(made)
    assert places["policy"] == places["critic"] == [("node-1", (0,)), ("node-1", (1,))]
    load = next(load for load in made.loads if load.gpu == 0)
    policy, critic = (next(a.memory for a in made.actors if a.role == role) for role in ("policy", "critic"))
    assert load.phase == "update" and load.needed == policy.peak + critic.peak
    assert load.room == int(GPUS["H100"].memory * 0.95)


def test_fractions_without_colocation_are_packed_together() -> None:
    half = {"gpus_per_rank": 0.5}
    places = gpu_of(plan(config(policy=half, critic=half), "1x2xH100"))
    assert places["policy"] == places["critic"] and places["rollout"] != places["policy"]


def test_an_engine_beside_its_trainer_rests_where_it_may_sleep() -> None:
    shared = {"gpus_per_rank": 0.4}
    sections: dict[str, Any] = {
        "policy": shared, "critic": {**shared, "ranks": 1}, "cluster": {"colocate": [["policy", "critic", "rollout"]]},
    }  # fmt: skip
    engine = {"gpus_per_engine": 0.2, "gpu_memory_utilization": 0.5}
    awake = plan(config(**sections, rollout=engine), "1x1xH100")
    asleep = plan(config(**sections, rollout={**engine, "sleep_between_phases": True}), "1x1xH100")
    first, second = (next(load for load in made.loads if load.gpu == 0) for made in (awake, asleep))
    assert first.by_role["rollout"] == int(0.5 * GPUS["H100"].memory)
    assert first.needed > second.needed
    # Asleep, the engine's context stays and its weights go to host memory.
    memory = next(actor.memory for actor in asleep.actors if actor.role == "rollout")
    assert (memory.idle, memory.host) == (GPU_CONTEXT, memory.weights)


def test_cpu_roles_add_up_in_their_nodes_memory() -> None:
    cfg = load(PPOConfig, "tiny", [])
    made = plan(cfg, "1x0xCPU:2:16")
    [load_] = made.loads
    assert load_.gpu is None and set(load_.by_role) == {*{actor.role for actor in made.actors}, "Ray and driver"}
    assert load_.room == int(16 * 10**9 * 0.95)
    assert not plan(cfg, "1x0xCPU:2:3").fits


@pytest.mark.parametrize(
    ("sections", "spec", "change"),
    [
        # 7B in full at stage 0 keeps 12 bytes of optimizer state a parameter; eight ranks share it.
        (
            {
                "policy": {"ranks": 8, "train": {"mode": "full"}},
                "critic": {"ranks": 8},
                "reference": {"gpus_per_worker": 1},
            },
            "3x8xH100",
            "policy.zero_stage=2",
        ),
        (
            {"policy": {"micro_batch_size": 32}, "rollout": {"max_new_tokens": 512}},
            "1x3xH100",
            "policy.micro_batch_size=8",
        ),
        ({"rollout": {"gpu_memory_utilization": 0.15}}, "1x3xH100", "rollout.gpu_memory_utilization=0.2"),
        ({"policy": {"ranks": 8}, "critic": {"ranks": 8}}, "1x8xH100", "2 more nodes"),
        ({"rollout": {"tensor_parallel": 3}}, "1x8xH100", None),
        ({"policy": {"cpus_per_rank": 4}}, "1x3xH100:4", "policy.cpus_per_rank=0.5"),
        (
            {"policy": {"cpus_per_rank": 1}, "critic": {"cpus_per_rank": 1}, "rollout": {"cpus_per_engine": 1}},
            "1x3xH100:2",
            "policy.cpus_per_rank=0.5 critic.cpus_per_rank=0.5 rollout.cpus_per_engine=0.5",
        ),
        (  # no critic runs
            {
                "algorithm": {"estimator": "grpo"},
                "samples_per_prompt": 2,
                "policy": {"cpus_per_rank": 1},
                "critic": {"cpus_per_rank": 1},
                "rollout": {"cpus_per_engine": 1},
            },
            "1x3xH100:1",
            "policy.cpus_per_rank=0.25 rollout.cpus_per_engine=0.25",
        ),
    ],
)
def test_the_smallest_change_makes_it_fit(sections: dict[str, Any], spec: str, change: str | None) -> None:
    made = plan(config(**sections), spec)
    assert not made.fits
    found = smallest_change(made)
    assert (None if found is None else found.text) == change
    if found is not None:
        wider = made.machines.with_more(found.nodes) if found.nodes else made.machines
        assert make_plan(changed(made.config, found), made.shapes, wider).fits


def test_pairs_where_no_single_change_is_enough() -> None:
    sections = {"policy": {"ranks": 8, "zero_stage": 0, "train": {"mode": "full"}, "micro_batch_size": 32},
                "critic": {"ranks": 8}, "reference": {"gpus_per_worker": 1}, "prompts_per_step": 256,
                "rollout": {"max_new_tokens": 512}}  # fmt: skip
    found = smallest_change(plan(config(**sections), "3x8xA100-80"))
    assert found is not None
    assert {key for key, _ in found.overrides} == {"policy.zero_stage", "policy.micro_batch_size"}


def test_a_change_is_written_as_the_command_line_takes_it() -> None:
    change = Change((("policy.gradient_checkpointing", True), ("rewards.length.workers", 2)), 1)
    assert change.text == "policy.gradient_checkpointing=true rewards.length.workers=2 1 more node"
    cfg = changed(config(), change)
    assert cfg.policy.gradient_checkpointing and cfg.rewards[0].workers == 2


def test_pinned_roles_find_their_nodes_in_a_description() -> None:
    assert plan(config(cluster={"pin": {"rollout": "spot"}}), "1x3xH100").fits


def test_shapes_of_roles() -> None:
    rewards = [{"name": "rm", "kind": "model", "model": "path/to/theirs", "gpus_per_worker": 1}]
    cfg = config(rewards=rewards, critic={"model": "reward:rm"})
    with pytest.raises(UserError, match=r"path/to/theirs is neither a folder here"):
        find_shapes(cfg, {})
    shapes = find_shapes(cfg, {"reward:rm": "13b"})
    assert (shapes.policy.name, shapes.critic.name, shapes.rewards["rm"].name) == (SEVEN, "llama-2-13b", "llama-2-13b")
    assert find_shapes(cfg, {"": "8b", "critic": "7b"}).critic.name == SEVEN
    with pytest.raises(UserError, match=r"--shape rm=\.\.\.: no model of this run is called so \(there are: policy,"):
        find_shapes(cfg, {"rm": "13b"})


def test_a_steps_time_follows_the_lengths_and_who_shares_a_device() -> None:
    apart = plan(config(), "1x4xH100")
    long, short = step_time(apart), step_time(apart, (100, 50))
    assert long.total > short.total > 0 and set(long.phases) == {"generate", "score", "update", "sync"}
    assert (long.prompt_tokens, long.answer_tokens, short.answer_tokens_per_step) == (512, 256, 32 * 50)
    half = {"gpus_per_rank": 0.5}
    shared = step_time(plan(config(policy=half, critic=half, cluster={"colocate": [["policy", "critic"]]}), "1x4xH100"))
    assert shared.phases["update"] == pytest.approx(
        sum(shared.by_role[f"{role}, update"] for role in ("policy", "critic"))
    )
    assert long.phases["update"] == pytest.approx(max(long.by_role[f"{role}, update"] for role in ("policy", "critic")))


@pytest.mark.parametrize(
    ("preset", "spec"),
    [("huatuogpt", "1x8xA100-80"), ("huatuogpt", "1x8xH100"), ("zhongjing", "1x4xA100-80"), ("llama-70b", "16x8xH100"),
     ("tiny", "1x0xCPU:2:16"), ("quickstart", "1x0xCPU:2:16")],
)  # fmt: skip
def test_presets_fit_the_hardware_that_they_name(preset: str, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", preset, "--cluster", spec]) == 0
    out = capsys.readouterr().out
    assert "everything fits" in out and "a step of " in out
    for role in ("policy", "rollout"):
        assert re.search(rf"^{role} ", out, re.MULTILINE)


def test_a_preset_is_planned_without_what_it_leaves_to_the_user() -> None:
    assert {"huatuogpt", "zhongjing", "llama-70b"} <= set(presets())
    shapes = find_shapes(load(PPOConfig, "huatuogpt", []), {})
    assert shapes.policy.name == shapes.rewards["reward_model"].name == "ziya-llama-13b"


def test_a_plan_that_does_not_fit_ends_with_3_and_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "huatuogpt", "--cluster", "1x8xA100-80", "policy.micro_batch_size=8", "critic.micro_batch_size=8"]
    assert cli.main(argv) == 3
    out = capsys.readouterr().out
    assert re.search(
        r"doesn't fit: GPU 0 of node-1 needs 8\d\.\d GiB of the 75\.1 that can be used \(phase update:", out
    )
    assert "smallest change that would: policy.micro_batch_size=4 critic.micro_batch_size=4" in out
    assert "a step of" not in out
    assert cli.main([*argv[:-2], "policy.micro_batch_size=4", "critic.micro_batch_size=4"]) == 0


def test_gpus_that_nobody_asks_for_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "tiny", "--cluster", "1x8xH100"]) == 0
    assert "no role asks for a GPU: policy.gpus_per_rank" in capsys.readouterr().out
    assert cli.main(["plan", "tiny", "--cluster", "1x8xH100", "policy.gpus_per_rank=1"]) == 0
    assert "no role asks for a GPU" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["plan"])
    assert "required: SOURCE\n" in capsys.readouterr().err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "llama-70b", "--cluster", "2x8xH100", "--json"]) == 3
    data = json.loads(capsys.readouterr().out)
    assert data["fits"] is False and data["change"] == {"overrides": {}, "nodes": 14}
    assert data["actors"] == [] and data["step"] is None
    assert cli.main(["plan", "tiny", "--cluster", "1x0xCPU:2:16", "--json", "--tokens", "60:20"]) == 0
    data = json.loads(capsys.readouterr().out)
    policy = next(actor for actor in data["actors"] if actor["role"] == "policy")
    assert policy["node"] == "node-1" and policy["memory"]["peak"] > policy["memory"]["weights"] > 0
    assert data["step"]["total"] == pytest.approx(sum(data["step"]["phases"].values()))
    assert data["models"]["policy"]["hidden"] == 64


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["tiny", "--cluster", "4x8"], "--cluster 4x8: '4x8' isn't of the form NODESxGPUSxDEVICE[:CPUS[:GB]], as in "),
        (["tiny", "--cluster", "0x8xH100"], "--cluster 0x8xH100: '0x8xH100' has no nodes"),
        (["tiny", "--cluster", "4x8xH10"], "no device is called 'H10'; did you mean 'H100'?"),
        (["tiny", "--cluster", "1x0xH100"], "'1x0xH100': a node without GPUs is written 1x0xCPU:64"),
        (["tiny", "--cluster", "1x8xCPU:64"], "'1x8xCPU:64': CPU nodes have 0 GPUs"),
        (["tiny", "--cluster", "1x0xCPU"], "doesn't say how many CPUs: write 1x0xCPU:64, say"),
        (
            ["tiny", "--tokens", "300:25"],
            "--tokens 300:25: a mean of 25 is more than the longest, rollout.max_new_tokens (24)",
        ),
        (["doctorglm"], "no file and no preset is called 'doctorglm'; it is a preset of `rayrl pipeline`; presets: "),
        (["tiny", "--shape", "critic="], "--shape critic=: write a shape, as in --shape 13b, or ROLE=SHAPE"),
        (["tiny", "--shape", "13x"], "no folder and no known shape is called '13x'"),
        (["tiny", "--tokens", "300"], "--tokens 300: write the mean lengths of a prompt and an answer"),
        (["tiny", "policy.model=/nowhere/model"], "no checkpoint at /nowhere/model: the folder doesn't exist"),
        (["tiny", "policy.zero=2"], "unknown key 'policy.zero'"),
        (["tinny"], "no file and no preset is called 'tinny'; did you mean the preset 'tiny'?"),
        (["quickstart", "critic.train.num_layers=30"], ""),
    ],
)
def test_bad_input_is_one_sentence(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["plan", *argv])
    captured = capsys.readouterr()
    if not said:  # not bad input: a plan that says why it can't be
        assert code == 3 and "critic.train.num_layers is 30, but smollm2-135m has 30 blocks" in captured.out
        return
    assert code == 2 and captured.out == ""
    assert said in captured.err and len(captured.err.splitlines()) == 1


def test_descriptions() -> None:
    made = machines.described("2x8xA100-80:96:2000+1x0xCPU:64:256")
    assert [node.name for node in made.nodes] == ["node-1", "node-2", "node-3"]
    first, last = made.nodes[0], made.nodes[-1]
    assert (first.resources, first.gpu, first.host_bytes) == (
        NodeResources("node-1", 96.0, 8.0), GPUS["A100-80"], 2000 * 10**9,
    )  # fmt: skip
    assert (last.resources, last.gpu, last.cpu, last.host_bytes) == (
        NodeResources("node-3", 64.0, 0.0), None, CPU, 256 * 10**9,
    )  # fmt: skip
    plain = machines.described("1x4xL40S").nodes[0]
    assert (plain.resources.cpus, plain.host_bytes) == (64.0, 512 * GIB)
    assert [node.name for node in made.with_more(2).nodes] == [f"node-{n}" for n in range(1, 6)]
    assert made.with_more(1).nodes[-1].gpu == GPUS["A100-80"]


def test_this_machine(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia/gpus/0000:01").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/gpus/0000:01/information").write_text("Model: \t NVIDIA L40S\nIRQ: 1\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1048576 kB\nMemFree: 3 kB\n")
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\nflags\t\t: fpu sse amx_tile\n")
    [node] = machines.here({}, tmp_path).nodes
    assert (node.gpus, node.gpu, node.cpu, node.host_bytes) == (1, GPUS["L40S"], CPU, 2**30)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000\n")
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu\n")
    [node] = machines.here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path).nodes
    assert (node.gpus, node.gpu, node.cpu, node.host_bytes) == (0, None, PLAIN_CPU, 1000)
    (tmp_path / "proc/driver/nvidia/gpus/0000:01/information").write_text("Model: Tesla T4\n")
    with pytest.raises(UserError, match=r"this machine's GPUs \(Tesla T4\) aren't known; describe it: --cluster"):
        machines.here({}, tmp_path)


def test_a_joined_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.session import connect

    with connect("local", num_cpus=4, object_store_mb=100):
        joined = machines.joined("auto")
        assert cli.main(["plan", "tiny", "cluster.address=auto"]) == 0
    [node] = joined.nodes
    assert node.resources.cpus == 4 and node.gpu is None and node.host_bytes > 2**30
    assert "plan for the Ray cluster at 127.0.0.1:" in capsys.readouterr().out


def test_nodes_that_ray_describes() -> None:
    resources = NodeResources("10.0.0.1/abc", 8.0, 4.0)
    totals = {"CPU": 8.0, "GPU": 4.0, "memory": 1e9, "object_store_memory": 5e8, "accelerator_type:A100-80G": 1.0,
              "accelerator_type:A100": 1.0}  # fmt: skip
    node = machines._joined_node(resources, totals)
    assert (node.gpu, node.host_bytes) == (GPUS["A100-80"], 1_500_000_000)
    with pytest.raises(UserError, match=r"node 10.0.0.1/abc has GPUs T4; known are H200, "):
        machines._joined_node(resources, {"accelerator_type:T4": 1.0})


def test_outputs_in_the_documentation_are_real(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "docs/plan.md").read_text(encoding="utf-8")
    shown = re.findall(r"```\n\$ rayrl (plan [^\n]*)\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 3
    for command, output in shown:
        cli.main(command.split())
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in output.splitlines() if line not in ("", "...") and line not in printed] == []


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""
