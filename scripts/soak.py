"""Kill parts of a run, again and again, and compare its end with an unbroken run's.

    bash scripts/soak.sh                                       20 kills of each kind and 4 hangs, a long run each
    bash scripts/soak.sh --kinds policy rollout --kills 5      only these
    bash scripts/soak.sh --together --kills 2 --hangs 1        all in one run, as the tests do

Three Ray nodes on this machine run the `tiny` preset (fp32, two policy and two critic ranks, two vLLM engines). Kinds:
an actor of each role (SIGKILL of a rank drawn by seed), a worker node with all that is on it (another comes after some
seconds), the driver and the head (the same command is started again). Kills fall on steps drawn by seed, in turn while
the run generates, updates, syncs, checkpoints and scores, some hundredths of a second into the phase.

An actor that hangs is one that is stopped (SIGSTOP). Each must be found within the time that the configuration states,
counted from when it is next awaited, and leave a stack.

What must hold: the run ends; metrics (timings aside), samples, evaluations and weights are those of the unbroken run,
bit for bit; every sample id is in experience.jsonl exactly once, every step too. Exit code 1 where anything doesn't.
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
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from local_cluster import LocalCluster, kill

from rayrl.tracking.recoveries import read_recoveries
from rayrl.tracking.rows import is_timing, read_rows

ACTORS = {
    "policy": "ray::PolicyActor",
    "critic": "ray::CriticActor",
    "reference": "ray::ReferenceActor",
    "reward": "ray::RewardActor",
    "rollout": "ray::RolloutActor",
}
KINDS = (*ACTORS, "node", "driver", "head")
PHASES = ("generate", "update", "sync", "checkpoint", "score")
NODES = ("a", "b", "c")
NODE_GONE_S = 3.0
STEPS_A_KILL = 3
HANG_S = 10.0
HANG_FOUND_S = 2 * HANG_S
"""The limit, a look every quarter of it, and some seconds until the actor is next awaited."""
SETTINGS = (
    "checkpoint.every=2", "evaluation.num_prompts=8", "evaluation.every=10", "logging.samples_per_step=2",
    "logging.loggers=[]", "rollout.engines=2", "cluster.strategy=SPREAD", f"recovery.no_progress_s={HANG_S}",
    "cluster.start_timeout_s=180", "recovery.max_per_step=10",
)  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """When what is killed: `delay_s` after `phase` begins in the first step from `step` on in which it does."""

    kind: str
    stop: bool
    """Whether it is stopped, so that it hangs."""
    phase: str
    step: int
    delay_s: float


def plan(kinds: Sequence[str], kills: int, hangs: int, seed: int) -> list[Kill]:
    """`kills` of each kind and `hangs` of each actor, in a drawn order, some steps apart, their phases in turn."""
    generator = random.Random(seed)
    order = [(kind, False) for kind in kinds for _ in range(kills)]
    order += [(kind, True) for kind in kinds if kind in ACTORS for _ in range(hangs)]
    generator.shuffle(order)
    return [
        Kill(
            kind,
            stop,
            PHASES[i % len(PHASES)],
            2 + STEPS_A_KILL * i + generator.randrange(STEPS_A_KILL - 1),
            generator.uniform(0.0, 0.15),
        )
        for i, (kind, stop) in enumerate(order)
    ]


class Soak:
    """One run in a cluster, with kills."""

    def __init__(self, cluster: LocalCluster, folder: Path, steps: int, seed: int) -> None:
        self._cluster, self.folder, self._steps = cluster, folder, steps
        self.stopped: list[tuple[float, str]] = []
        """When which kind of actor was stopped."""
        self._random = random.Random(seed)
        self._driver: subprocess.Popen[str] | None = None

    def run(self, kills: Sequence[Kill]) -> None:
        """To the end, with each kill at its moment. Raises RuntimeError where the run fails by itself."""
        todo = list(kills)
        while True:
            lines: list[str] = []
            restart = self._follow(todo, lines)
            assert self._driver is not None
            code = self._driver.wait()
            if not restart and code == 0:
                break
            if not restart:
                raise RuntimeError(f"the run in {self.folder} ended with {code}:\n{''.join(lines[-40:])}")
        if todo:
            raise RuntimeError(f"the run in {self.folder} ended before {todo[0]}")

    def _follow(self, todo: list[Kill], lines: list[str]) -> bool:
        """Starts the driver and reads what it prints until it ends; whether it was killed and has to start again."""
        self._driver = subprocess.Popen(
            [
                sys.executable, "-m", "rayrl.cli", "ppo", "tiny", f"output_dir={self.folder}", f"steps={self._steps}",
                f"cluster.address={self._cluster.address}", *SETTINGS,
            ],
            env=self._cluster.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        assert self._driver.stdout is not None
        killed = False
        for line in self._driver.stdout:
            lines.append(line)
            where = _phase(line)
            if not todo or where is None or where[0] < todo[0].step or where[1] != todo[0].phase:
                continue
            time.sleep(todo[0].delay_s)
            killed = self._kill(todo.pop(0), line.strip()) or killed
        return killed

    def _kill(self, one: Kill, line: str) -> bool:
        """Whether the driver can't outlive it."""
        cluster, fatal = self._cluster, one.kind in ("driver", "head")
        assert self._driver is not None
        if one.kind == "driver":
            victim = f"driver {self._driver.pid}"
            self._driver.kill()
        elif one.kind == "head":
            victim = "head"
            cluster.restart_head()
        elif one.kind == "node":
            victim = self._random.choice(cluster.node_names)
            cluster.kill_node(victim)
            threading.Thread(target=_bring_back, args=(cluster, victim)).start()
        else:
            actors = cluster.workers(ACTORS[one.kind])
            if one.stop:  # one that hangs while it loads is found after cluster.start_timeout_s
                actors = [actor for actor in actors if _has_loaded(actor)]
            victim = "none there"
            if actors:
                victim = str(self._random.choice(actors).pid)
                if one.stop:
                    os.kill(int(victim), signal.SIGSTOP)
                    self.stopped.append((time.time(), one.kind))
                else:
                    kill(int(victim))
        print(
            f"  {'stopped' if one.stop else 'killed'} {one.kind} ({victim}) {one.delay_s:.2f} s into {line}",
            flush=True,
        )
        return fatal


def _has_loaded(actor: psutil.Process) -> bool:
    try:
        return ".setup" not in " ".join(actor.cmdline())
    except psutil.NoSuchProcess:
        return False


def _bring_back(cluster: LocalCluster, name: str) -> None:
    time.sleep(NODE_GONE_S)
    cluster.add_node(name)


def _phase(line: str) -> tuple[int, str] | None:
    """(step from 1, phase) of a line such as "[ 3/60]  update ..."."""
    if not (line.startswith("[") and line.rstrip().endswith(" ...")):
        return None
    head, _, rest = line.partition("]")
    return int(head[1:].partition("/")[0]), rest.strip().removesuffix(" ...")


def hangs(folder: Path, stopped: Sequence[tuple[float, str]]) -> Iterator[str]:
    """What isn't as it must be with hangs. Prints how long each took to be found and healed."""
    events = [event for event in read_recoveries(folder) if event.cause == "hung"]
    for at, kind in stopped:
        mine = next((e for e in events if e.time > at and any(name.startswith(kind) for name in e.lost)), None)
        if mine is None:
            yield f"a stopped {kind} was never found"
            continue
        events.remove(mine)
        found = mine.time - at
        print(f"  stopped {kind}: found after {found:.1f} s, healed {mine.seconds:.1f} s later", flush=True)
        if found > HANG_FOUND_S:
            yield f"a stopped {kind} was found after {found:.1f} s only"
        if not any("File " in (folder / path).read_text() for path in mine.stacks):
            yield f"a stopped {kind} left no stack"


def differences(a: Path, b: Path) -> Iterator[str]:
    """What differs between two finished runs, or isn't as it must be in `b`."""
    rows = [
        [{k: v for k, v in row.items() if not is_timing(k)} for row in read_rows(run / "metrics.jsonl")]
        for run in (a, b)
    ]
    for left, right in zip(*rows, strict=False):
        changed = {key: (left.get(key), right.get(key)) for key in {*left, *right} if left.get(key) != right.get(key)}
        if changed:
            yield f"metrics of step {left['step']}: {dict(list(changed.items())[:3])}"
            break
    for run in (a, b):
        experience = read_rows(run / "experience.jsonl")
        if [row["step"] for row in experience] != list(range(len(rows[0]))) or len(rows[0]) != len(rows[1]):
            yield f"{run}: steps aren't there once each"
        seen = Counter(name for row in experience for name in row["samples"])
        twice = [name for name, count in seen.items() if count > 1]
        if twice:
            yield f"{run}: samples {twice[:3]} were trained on twice"
    last = f"checkpoints/{max(path.name for path in a.glob('checkpoints/step-??????'))}"
    files = ["samples.jsonl", "experience.jsonl", *(str(p.relative_to(a)) for p in sorted(a.glob("evaluation/*")))]
    for model in ("policy", "critic"):
        files += [str(p.relative_to(a)) for p in sorted((a / last / model).glob("*.safetensors"))]
    yield from (name for name in files if not (b / name).exists() or (a / name).read_bytes() != (b / name).read_bytes())


def soak(folder: Path, kills: Sequence[Kill], seed: int, whole: Path, steps: int) -> bool:
    """One run; whether it ended as the unbroken one did."""
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    with LocalCluster(NODES) as cluster:
        run = Soak(cluster, folder, steps, seed)
        run.run(kills)
    found = [*differences(whole, folder), *hangs(folder, run.stopped)]
    events = json.dumps(Counter(event.cause for event in read_recoveries(folder)))
    seconds = time.monotonic() - began
    print(f"{folder.name}: {found or 'same bits'}; recoveries {events}; {seconds:.0f} s", flush=True)
    return not found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--hangs", type=int, default=0, help="of each kind of actor")
    parser.add_argument("--together", action="store_true", help="all kinds in one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    args = parser.parse_args()
    groups = [args.kinds] if args.together else [[kind] for kind in args.kinds]
    plans = {"-".join(kinds): plan(kinds, args.kills, args.hangs, args.seed) for kinds in groups}
    steps = 4 + STEPS_A_KILL * max(map(len, plans.values()))
    folder = args.folder.absolute()
    whole = folder / f"unbroken-{steps}"
    if not (whole / "summary.json").exists():
        shutil.rmtree(whole, ignore_errors=True)
        with LocalCluster(NODES) as cluster:
            Soak(cluster, whole, steps, 0).run([])
    results = []
    for name, kills in plans.items():
        print(f"{name}: {len(kills)} losses in {steps} steps", flush=True)
        results.append(soak(folder / name, kills, args.seed, whole, steps))
    print(f"{sum(results)} of {len(results)} runs the same", flush=True)
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
