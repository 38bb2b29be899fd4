"""Kill a run's driver with SIGKILL at random moments, start it again, and compare its end with an unbroken run's.

    .venv/bin/python scripts/soak_kill.py --moments 5 --seed 0

Runs the `tiny` preset (fp32, two policy and two critic ranks, a vLLM engine) on this machine's CPUs. The first five
moments lie in generation, update, sync, checkpoint and scoring, in that order and at a random step each; later ones
anywhere. Each moment is logged with the phase and the delay into it. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rayrl.tracking.rows import is_timing, read_rows

PHASES = ("generate", "update", "sync", "checkpoint", "score")
STEPS = 6
SETTINGS = (f"steps={STEPS}", "checkpoint.every=2", "evaluation.num_prompts=8", "logging.samples_per_step=2")


@dataclass(frozen=True)
class Moment:
    """When to kill: `delay_s` after the `step`-th time (from 1) that `phase` begins."""

    phase: str
    step: int
    delay_s: float


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "rayrl.cli", "ppo", "tiny", f"output_dir={folder}", *SETTINGS, *more]


def run_to_the_end(folder: Path, *more: str) -> None:
    """Start (or resume) the run in `folder`; raises where it fails."""
    done = subprocess.run(command(folder, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"the run in {folder} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def run_and_kill(folder: Path, moment: Moment, *more: str) -> str:
    """Start the run, kill its driver at the moment; the last line that it printed."""
    process = subprocess.Popen(command(folder, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    seen, last = 0, ""
    for line in process.stdout:
        last = line.strip()
        # The first sync comes before step 1 and checkpoints come every second step: count beginnings, not step numbers.
        if last.endswith(f"  {moment.phase} ..."):
            seen += 1
            if seen == moment.step:
                break
    else:
        raise RuntimeError(f"the run in {folder} ended before {moment}: {last}")
    time.sleep(moment.delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    wait_for_ray_to_end(process.pid)
    return last


def wait_for_ray_to_end(driver: int, timeout_s: float = 60.0) -> None:
    """The killed driver's cluster dies with it; a new one must not meet its remains."""
    import psutil

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        if not any(f"_{driver}/" in line for line in commands):  # Ray's session folders end with the driver's pid
            return
        time.sleep(0.2)
    raise RuntimeError(f"Ray processes of driver {driver} live on after {timeout_s:g} s")


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two finished runs: metrics (timings aside), samples, evaluations, weights."""
    found = []
    rows = [
        [{k: v for k, v in row.items() if not is_timing(k)} for row in read_rows(run / "metrics.jsonl")]
        for run in (a, b)
    ]
    if rows[0] != rows[1]:
        steps = [[row["step"] for row in side] for side in rows]
        found.append(f"metrics.jsonl (steps {steps[0]} and {steps[1]})")
        for left, right in zip(*rows, strict=False):
            changed = [key for key, value in left.items() if key not in right or right[key] != value]
            found += [f"  step {left['step']} {key}: {left[key]!r}" for key in changed]
    files = ["samples.jsonl", *(str(p.relative_to(a)) for p in sorted(a.glob("evaluation/*.jsonl")))]
    last = f"checkpoints/{max(path.name for path in a.glob('checkpoints/step-*'))}"
    for model in ("policy", "critic"):
        files += [str(p.relative_to(a)) for p in sorted((a / last / model).glob("*.safetensors"))]
    found += [name for name in files if not (b / name).exists() or (a / name).read_bytes() != (b / name).read_bytes()]
    return found


def moments(count: int, seed: int) -> list[Moment]:
    """Random by seed; the first five cover the five phases."""
    generator = random.Random(seed)
    drawn = []
    for i in range(count):
        phase = PHASES[i] if i < len(PHASES) else generator.choice(PHASES)
        step = generator.randint(1, 2) if phase == "checkpoint" else generator.randint(2, STEPS)
        drawn.append(Moment(phase, step, generator.uniform(0.0, 0.1 if phase in ("sync", "checkpoint") else 0.4)))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak-kill"))
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    whole = args.folder / "unbroken"
    run_to_the_end(whole)
    print(f"unbroken: {len(read_rows(whole / 'metrics.jsonl'))} rows", flush=True)
    failed = 0
    for number, moment in enumerate(moments(args.moments, args.seed)):
        folder = args.folder / f"killed-{number}"
        last = run_and_kill(folder, moment)
        rows = len(read_rows(folder / "metrics.jsonl"))
        run_to_the_end(folder)
        found = differences(whole, folder)
        failed += bool(found)
        where = f"{moment.delay_s:.2f} s into {last.removesuffix(' ...')!r}"
        print(f"killed {where} with {rows} rows: {found or 'same bits'}", flush=True)
        print(json.dumps({"phase": moment.phase, "same": not found}), flush=True)
    print(f"{args.moments - failed} of {args.moments} the same")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
