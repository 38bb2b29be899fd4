"""Metrics of a run in Ray's exporter, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from local_cluster import LocalCluster, free_port

from rayrl.tracking.ray_metrics import METRICS
from rayrl.tracking.recoveries import Recovery, RecoveryLog
from rayrl.tracking.rows import read_rows
from rayrl.tracking.storage_wait import Storage

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "rayrl/assets/grafana/rayrl.json"

FUNCTIONS = {"max", "sum", "rate", "time", "histogram_quantile", "label_values", "by"}
Samples = dict[tuple[str, str, str], float]
"""(name, run, the tag of its own or "") -> value."""


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    queries = [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    return queries + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def names(expression: str) -> set[str]:
    """Metrics in a PromQL expression: identifiers outside of braces, brackets and lists of labels."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)|, run\)", "", expression)
    return set(re.findall(r"[a-zA-Z_]\w*", bare)) - FUNCTIONS


def test_every_panel_asks_for_metrics_that_there_are_and_every_metric_is_on_a_panel() -> None:
    exported = {name for metric in METRICS for name in metric.exported}
    asked = set().union(*map(names, expressions()))
    assert asked - exported == set()
    shown = {metric.name for metric in METRICS if asked & set(metric.exported)}
    assert {metric.name for metric in METRICS} - shown == set()
    labels = {label for e in expressions() for group in re.findall(r"by \(([^)]*)\)", e) for label in group.split(", ")}
    assert labels <= {"run", "le", *(tag for metric in METRICS for tag in metric.tags)}


def test_the_dashboard_is_packaged_and_lets_choose_data_source_and_run() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]["rayrl"]
    assert any(DASHBOARD.relative_to(ROOT / "rayrl").match(pattern) for pattern in data)
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource", "run"]
    panels = dashboard["panels"]
    assert {p["datasource"]["uid"] for p in panels} == {"${datasource}"}
    assert all(p["title"] and p["description"] and p["targets"] for p in panels)
    cells = [
        (x, y)
        for p in panels
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23, "panels overlap, or stick out"


def test_the_page_names_every_metric() -> None:
    page = (ROOT / "docs/monitoring.md").read_text("utf-8")
    for metric in METRICS:
        assert f"`{metric.exported[0].removesuffix('_bucket')}" in page, f"monitoring.md leaves out {metric.name}"


def test_without_ray_nothing_is_recorded_and_ray_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rayrl.config.ppo import LoggingConfig\n"
        "from rayrl.tracking.run_log import RunLog\n"
        f"with RunLog(Path({str(tmp_path)!r}), LoggingConfig(loggers=[])) as log:\n"
        "    log.metrics(0, {'score/mixed': 1.0}); log.now({'queue/waiting': 3})\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 0, "score/mixed": 1.0}]


def test_recoveries_are_counted_by_cause(tmp_path: Path) -> None:
    log = RecoveryLog(tmp_path, Storage(1.0))
    for cause in ("died", "joined", "died"):
        log.add(Recovery(cause, 0, "generate", [], "", 1.5))  # type: ignore[arg-type]
    assert log.take_metrics() == {
        "recovery/events": 3.0, "recovery/seconds": 4.5, "recovery/died": 2.0, "recovery/joined": 1.0,
    }  # fmt: skip
    assert log.take_metrics() == {"recovery/events": 0.0, "recovery/seconds": 0.0}


@contextmanager
def head() -> Iterator[tuple[str, str, dict[str, str]]]:
    """A cluster of one node: its address, where its metrics are, and the environment of those who join it."""
    cluster, port = LocalCluster([]), free_port()
    try:
        cluster.start_head(f"--metrics-export-port={port}", cpus=2)
        yield cluster.address, f"http://127.0.0.1:{port}/metrics", cluster.env
    finally:
        cluster.__exit__()


def scraped(url: str) -> Samples:
    found: Samples = {}
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        match = re.fullmatch(r"(ray_rayrl_\w+)\{(.*)\} (\S+)", line)
        if match:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            own = next((labels[tag] for tag in ("role", "phase", "source", "cause", "le") if tag in labels), "")
            found[match[1], labels["run"], own] = float(match[3])
    return found


RUN = """
import sys, time
from pathlib import Path
from actors.simulated_run import Fleet, SimulatedRun
from actors.simulation import Rates
from cluster.session import connect
with connect(sys.argv[1]):
    run = SimulatedRun(Path(sys.argv[2]), Fleet.of(8), Rates(speed=100.0), 2, settings=["checkpoint.every=1"])
    run.run()
    print("done", flush=True)
    sys.stdin.read()  # as long as the driver lives, its metrics are offered
"""


def test_the_metrics_of_a_run_are_in_rays_exporter(tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    with head() as (address, url, env):
        driver = subprocess.Popen(
            [sys.executable, "-c", RUN, address, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env,
        )  # fmt: skip
        try:
            assert driver.stdout is not None and driver.stdout.readline() == "done\n"
            samples, deadline = scraped(url), time.monotonic() + 60
            while samples.get(("ray_rayrl_step", "watched", "")) != 2.0 and time.monotonic() < deadline:
                time.sleep(1)
                samples = scraped(url)
        finally:
            driver.communicate("")
    check(samples, read_rows(folder / "metrics.jsonl"))


def check(samples: Samples, rows: list[dict[str, Any]]) -> None:
    """Gauges are those of the last row, counters the sums of all."""
    last = rows[-1]
    assert {run for _, run, _ in samples} == {"watched"}

    def value(name: str, own: str = "") -> float:
        return samples[f"ray_rayrl_{name}", "watched", own]

    assert value("step") == len(rows) == 2
    gauges = {
        "tokens_per_second": "time/tokens_per_second",
        "kl": "kl/mean_per_sequence",
        "engines_up": "cluster/engines",
    }
    for name, key in gauges.items():
        assert value(name) == pytest.approx(last[key])
    assert value("engines_wanted") == 4
    assert (value("prompts_waiting"), value("prompts_running")) == (0, 0)
    assert value("tokens_total") == sum(row["tokens/response"] for row in rows)
    assert value("sync_bytes_total") == sum(row["weights/bytes"] for row in rows)
    for role in ("policy", "critic", "reference", "reward", "rollout"):
        assert value("busy_share", role) == pytest.approx(last[f"busy/{role}"])
    for phase in ("generate", "score", "update", "sync", "coordinator"):
        assert value("phase_seconds", phase) == pytest.approx(last[f"time/{phase}"])
    assert value("score", "mixed") == pytest.approx(last["score/mixed"])
    assert value("step_seconds_bucket", "+Inf") == value("sync_seconds_count") == 2
    assert abs(time.time() - value("checkpoint_timestamp_seconds")) < 120
    missing = {metric.name for metric in METRICS if not {name for name, _, _ in samples} & set(metric.exported)}
    assert missing <= {"rayrl_recoveries", "rayrl_recovery_seconds"}, "nothing was lost"
