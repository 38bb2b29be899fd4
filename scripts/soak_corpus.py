"""Kill a corpus run's workers and driver with SIGKILL at random moments of every stage, and compare its end.

    .venv/bin/python scripts/soak_corpus.py --tries 10 --seed 0

Each try kills one worker, or the driver, of one stage at a moment of it that the seed draws, then runs the same command
to the stage's end; every second try kills a worker. All stages run on a corpus of the project's own texts, with a model
over HTTP. The published shards and counts must be those of an unbroken run, byte for byte. Exit code 1 where any
differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from corpus_cases import (
    STAGES,
    kill_a_worker,
    kill_driver,
    model_endpoint,
    published,
    start,
    wait_for_stage,
    write_config,
    write_corpus,
)


def main() -> int:
    """Runs the tries; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tries", type=int, default=10, help="of each stage")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=300, help="of the corpus")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="rayrl-soak-") as folder, model_endpoint() as endpoint:
        root = Path(folder)
        write_corpus(root / "input", args.texts)
        write_config(root / "config.yaml", root / "input", root / "whole", endpoint, root / "cache.sqlite")
        lengths = _unbroken(root / "config.yaml", root / "whole")
        print("unbroken:", ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in lengths.items()), flush=True)
        failed = done = 0
        for stage in args.stages:
            for number in range(args.tries):
                what = None
                while what is None:  # nobody died: the stage was over, or no worker was there
                    same, what = _try(root, stage, number, rng.uniform(0.0, lengths[stage]), rng)
                done, failed = done + 1, failed + (not same)
                print(f"{stage} {number}: {what}: {'the same' if same else 'DIFFERENT'}", flush=True)
    print(f"{done - failed} of {done} the same")
    return 1 if failed else 0


def _run(config: Path, *more: str) -> float:
    began = time.monotonic()
    process = start(config, {}, *more)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said)
    return time.monotonic() - began


def _unbroken(config: Path, output: Path) -> dict[str, float]:
    """Runs all stages; the seconds that each took."""
    process = start(config, {})
    began = []
    for stage in STAGES:
        wait_for_stage(process, output / stage)
        began.append(time.monotonic())
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said)
    return {
        stage: end - start for stage, (start, end) in zip(STAGES, pairwise([*began, time.monotonic()]), strict=True)
    }


def _try(root: Path, stage: str, number: int, delay_s: float, rng: random.Random) -> tuple[bool, str | None]:
    """One death in a stage (None where nobody died), and whether the stage ends as it would have."""
    output = root / "killed"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(root / "whole", output)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(output / later)
    more = (f"output_dir={output}", "--only", stage)
    process = start(root / "config.yaml", {}, *more)
    wait_for_stage(process, output / stage)
    began = time.monotonic()
    time.sleep(delay_s)
    if number % 2:
        name = None
        while name is None and process.poll() is None:
            name = kill_a_worker(process.pid, rng)
        what = None if name is None else f"{name} killed after {time.monotonic() - began:.2f} s"
        process.communicate()
    else:
        open_still = process.poll() is None
        kill_driver(process)
        what = f"driver killed after {time.monotonic() - began:.2f} s" if open_still else None
    if not (output / stage / "manifest.json").exists():
        _run(root / "config.yaml", *more)
    wanted = {key: value for key, value in published(root / "whole").items() if key.split("/")[0] == stage}
    found = {key: value for key, value in published(output).items() if key.split("/")[0] == stage}
    return wanted == found, what


if __name__ == "__main__":
    sys.exit(main())
