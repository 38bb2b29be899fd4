"""What the driver of a supervised stage sees of its ranks, and which it refuses to start."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DoesNotFit
from cluster.session import connect
from rayrl.config.parts import RayConfig, TrainerConfig
from rayrl.stages.train_workers import check_fits_here, run_workers, watch
from rayrl.tracking.rows import append_rows, open_rows, replace_rows


def wait_for(seen: list[int], count: int) -> None:
    deadline = time.monotonic() + 10
    while len(seen) < count and time.monotonic() < deadline:
        time.sleep(0.05)


def test_rows_are_shown_as_they_come(tmp_path: Path) -> None:
    path, seen = tmp_path / "metrics.jsonl", []

    def show(row: dict[str, Any]) -> None:
        seen.append(row["step"])

    with watch(path, show):
        replace_rows(path, [])
        with open_rows(path, "a") as file:
            append_rows(file, [{"step": 0}])
            wait_for(seen, 1)
            file.write(json.dumps({"step": 1})[:5])  # half a row isn't shown
            file.flush()
            time.sleep(0.7)
            assert seen == [0]
            file.write(json.dumps({"step": 1})[5:] + "\n")
    assert seen == [0, 1]  # also what came last


def test_a_resumed_run_shows_only_its_own_rows(tmp_path: Path) -> None:
    path, seen = tmp_path / "metrics.jsonl", []
    replace_rows(path, [{"step": i} for i in range(5)])
    with watch(path, lambda row: seen.append(row["step"])):
        replace_rows(path, [{"step": i} for i in range(3)])
        time.sleep(3)  # until the fewer rows have been seen
        with open_rows(path, "a") as file:
            append_rows(file, [{"step": 3}])
    assert seen == [3]


def test_ranks_that_dont_fit_are_refused_before_ray_starts() -> None:
    with pytest.raises(DoesNotFit, match="reward"):
        check_fits_here(TrainerConfig(ranks=4096, cpus_per_rank=4), RayConfig(), "reward")
    check_fits_here(TrainerConfig(), RayConfig(), "reward")


def test_ranks_that_dont_fit_are_refused_where_ray_runs_already() -> None:
    """In a pipeline, say. Ray Train would wait for them without end."""
    with connect(num_cpus=1, object_store_mb=100), pytest.raises(DoesNotFit, match="ranks"):
        run_workers(print, {}, TrainerConfig(cpus_per_rank=2), RayConfig(), collective_timeout_s=10)
