"""Time rayrl's PPO by phase: one JSON line at the end.

    .venv/bin/python scripts/bench_ppo.py --train full            # everything trains
    .venv/bin/python scripts/bench_ppo.py --train last2           # last two blocks and final norm
    .venv/bin/python scripts/bench_ppo.py --train last2 --prompts 64
    .venv/bin/python scripts/bench_ppo.py --train last2 --against-trl --rounds 2

The work: SmolLM2-135M-Instruct in bf16 as policy, reference and start of the critic; the first `--prompts` rows of
`consultations-en`; exactly 64 new tokens each at temperature 1; a rule that costs nothing; 4 PPO epochs of 1 minibatch.
`last2` trains the last two blocks and the final norm of policy and critic, and the critic's head. An iteration runs
from the end of one to the end of the next, generation and weight sync included; the first, which warms up, isn't in the
medians. `--against-trl` runs scripts/bench_peer_trl.py in turn with this (other, this, other, this ...) and prints the
ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
NEW_TOKENS = 64
PHASES = ("generate", "score", "update", "sync", "coordinator", "nothing_running")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", choices=("full", "last2"), default="full")
    parser.add_argument("--prompts", type=int, default=16, help="prompts an iteration")
    parser.add_argument("--iterations", type=int, default=4, help="the first isn't in the medians")
    parser.add_argument("--threads", type=int, default=2, help="of TRL and of every role, which take turns")
    parser.add_argument("--micro-batch", type=int, help="sequences a training pass; default: 16, of `full` 8")
    parser.add_argument("--against-trl", action="store_true", help="also run TRL, in turn, and print the ratio")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, with --against-trl")
    args = parser.parse_args()
    args.micro_batch = args.micro_batch or (8 if args.train == "full" else 16)
    if not args.against_trl:
        print(json.dumps(time_rayrl(args)))
        return
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(args.rounds):
        peer = time_trl(args)
        print(json.dumps(peer), flush=True)
        own = time_rayrl(args)
        print(json.dumps(own), flush=True)
        theirs += peer["seconds"][1:]
        ours += own["seconds"][1:]
    a, b = statistics.median(theirs), statistics.median(ours)
    result = {"train": args.train, "prompts": args.prompts, "trl_median_s": round(a, 2), "rayrl_median_s": round(b, 2)}
    print(json.dumps({**result, "rayrl_times_as_fast": round(a / b, 2)}))


def time_trl(args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, ROOT / "scripts" / "bench_peer_trl.py", "--train", args.train]
    command += ["--prompts", str(args.prompts), "--iterations", str(args.iterations), "--threads", str(args.threads)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    line: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return line


def time_rayrl(args: argparse.Namespace) -> dict[str, Any]:
    """One run of `rayrl ppo` in a temporary folder; seconds from its metrics."""
    with tempfile.TemporaryDirectory(prefix="rayrl-bench-") as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(yaml.safe_dump(make_config(args, Path(folder))))
        subprocess.run([sys.executable, "-m", "rayrl.cli", "ppo", path], check=True, stdout=sys.stderr)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        record = json.loads((Path(folder) / "run" / "run.json").read_text())
    # The last iteration also evaluates and each may write a checkpoint: neither is part of TRL's iteration.
    seconds = [sum(row[f"time/{phase}"] for phase in PHASES[:5]) for row in rows]
    counted = rows[1:] or rows
    actors = record["actors"]
    median = statistics.median(seconds[1:] or seconds)
    return {
        "system": "rayrl ppo",
        "versions": record["versions"],
        "train": args.train,
        "dtype": actors["policy[0]"]["dtype"],
        "threads": {name: actor["threads"] for name, actor in actors.items()},
        "prompts": args.prompts,
        "new_tokens": int(rows[-1]["tokens/response"]),
        "ppo_epochs": 4,
        "minibatches": 1,
        "micro_batch": args.micro_batch,
        "trainable_policy": actors["policy[0]"]["trainable_parameters"],
        "trainable_value": actors["critic[0]"]["trainable_parameters"],
        "seconds": [round(value, 3) for value in seconds],
        "phases": {phase: round(statistics.median(row[f"time/{phase}"] for row in counted), 3) for phase in PHASES},
        "tokens_per_s": {
            "generate": round(statistics.median(r["tokens/response"] / r["time/generate"] for r in counted), 1),
            "update": round(statistics.median(4 * r["tokens/response"] / r["time/update"] for r in counted), 1),
        },
        "median_s": round(median, 3),
        "samples_per_s": round(args.prompts / median, 4),
    }


def make_config(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from rayrl.data.prompts import read_prompts

    rows = read_prompts("consultations-en").rows
    for name, part in (("train", rows[: args.prompts]), ("heldout", rows[-2:])):
        lines = [json.dumps({"id": r.id, "messages": r.messages, "reference": r.reference}) for r in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    train = {"mode": "full"} if args.train == "full" else {"mode": "last_n", "num_layers": 2}
    role = {
        "train": train,
        "dtype": "bf16",
        "micro_batch_size": args.micro_batch,
        "cpus_per_rank": 0.5,
        "threads": args.threads,
        "optimizer": {"lr": 1.0e-6},
    }
    return {
        "output_dir": str(folder / "run"),
        "steps": args.iterations,
        "prompts_per_step": args.prompts,
        "policy": {"model": "smollm2-135m-instruct", **role},
        "critic": role,
        "reference": {"threads": args.threads},
        "rollout": {
            "dtype": "bf16",
            "max_new_tokens": NEW_TOKENS,
            "min_new_tokens": NEW_TOKENS,
            "threads": args.threads,
        },
        "data": {"prompts": str(folder / "train.jsonl"), "heldout": str(folder / "heldout.jsonl"), "shuffle": False},
        "rewards": [{"name": "length", "kind": "rule", "rule": "length_window"}],
        "algorithm": {"epochs": 4, "minibatches": 1},
        "evaluation": {"num_prompts": 2, "samples_per_prompt": 1},
        "checkpoint": {"every": 1000},
        "logging": {"samples_per_step": 1, "loggers": []},
        "cluster": {"take_turns": True},
    }


if __name__ == "__main__":
    main()
