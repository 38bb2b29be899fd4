"""How much memory `rayrl corpus` takes: the summed proportional set size of driver and workers, at its highest.

    .venv/bin/python scripts/memory_corpus.py ../shared/data/corpus_raw.jsonl --mb 100 1000

Inputs are made by repetition with variation (corpus_input.py). All stages that need no model run, with an object store
of 1 GB. Ray's own processes (control store, raylet, agents) aren't counted. Printed by stage and phase.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from corpus_input import write

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("read", "extract", "segment", "clean", "dedup", "decontaminate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--mb", type=float, nargs="+", default=[100.0, 1000.0])
    parser.add_argument("--evaluation", type=Path, default=ROOT.parent / "shared" / "data" / "exam_mcq.jsonl")
    args = parser.parse_args()
    for size in args.mb:
        with tempfile.TemporaryDirectory(prefix="rayrl-memory-") as folder:
            root = Path(folder)
            written = write(args.source, root / "input.jsonl", int(size * 1e6))
            print(f"{written / 1e6:.0f} MB of input", flush=True)
            measure(root, args.evaluation)


def measure(root: Path, evaluation: Path) -> None:
    """Runs the command and watches it."""
    config = {
        "output_dir": str(root / "out"),
        "sources": [{"name": "raw", "path": str(root / "input.jsonl"), "encoding": "utf-8"}],
        "extract": {
            "lexicons": [{"path": "medical-zh"}, {"path": "medical-en"}],
            "thresholds": {"en": 0.03, "zh": 0.01},
        },
        "clean": {},
        "dedup": {"semantic": {}},
        "decontaminate": {"sets": [{"name": "exams", "path": str(evaluation)}]},
        "ray": {"object_store_mb": 1024},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("rayrl")), "corpus", str(root / "config.yaml")]
    highest: dict[str, int] = {}
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
        while process.poll() is None:
            at = place(root / "out")
            highest[at] = max(highest.get(at, 0), used(process.pid))
            time.sleep(0.2)
    print((root / "log").read_text())
    if process.returncode:
        raise SystemExit(process.returncode)
    for at, most in highest.items():
        print(f"{at}: {most / 1e9:.2f} GB")
    print(f"highest: {max(highest.values()) / 1e9:.2f} GB", flush=True)


def place(output: Path) -> str:
    """The stage at work, and the newest of its phases' folders: dedup/similar."""
    stage = next((name for name in reversed(STAGES) if (output / name).exists()), "start")
    try:
        phases = [(entry.stat().st_mtime_ns, entry.name) for entry in (output / stage / ".work").iterdir()]
        return f"{stage}/{max(one for one in phases if not one[1].endswith('.json'))[1].removesuffix('-files')}"
    except (OSError, ValueError):  # it has none yet, or no more
        return stage


def used(pid: int) -> int:
    """Bytes of the driver and its workers."""
    total = 0
    try:
        driver = psutil.Process(pid)
        processes = [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            if process.pid == pid or " ".join(process.cmdline()).startswith("ray::"):
                total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    main()
