"""A Ray cluster of several nodes on this machine, each with its own processes and resource, for soaks and tests.

    with LocalCluster(["a", "b"]) as cluster: ... cluster.address ...; cluster.kill_node("b"); cluster.add_node("b")

The head has no CPUs, so that all actors lie on the worker nodes. Everything listens on 127.0.0.1, with a token of its
own, on ports that are free now, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
STORE_MB = 90
"""Object store of a node; Ray wants 75 at least."""


class LocalCluster:
    """Head and worker nodes. A worker called "b" declares the resource "b"."""

    def __init__(self, nodes: Sequence[str], cpus: float = 1.0) -> None:
        self._names, self._cpus = list(nodes), cpus
        self._temp = Path(tempfile.mkdtemp(prefix="rrc", dir="/tmp"))  # short: Unix sockets lie below
        self.env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> LocalCluster:
        self.start_head()
        for name in self._names:
            self.add_node(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._nodes):
            self.kill_node(name)
        shutil.rmtree(self._temp, ignore_errors=True)

    def start_head(self, *options: str, cpus: float = 0.0) -> None:
        """The head alone: control store and driver's node. `options`: more of `ray start`."""
        own = ["--head", f"--port={self.port}", f"--num-cpus={cpus:g}", "--include-dashboard=false"]
        self._start("head", [*own, *options])

    def restart_head(self) -> None:
        """The head is gone, and with it, since there is no Redis, all that the cluster knew: all nodes start anew."""
        for name in [*self.node_names, "head"]:
            self.kill_node(name)
        self.start_head()
        for name in self._names:
            self.add_node(name)

    def add_node(self, name: str) -> None:
        """A worker node; returns when the cluster knows it."""
        resources = json.dumps({name: 1000})
        self._start(name, [f"--address={self.address}", f"--num-cpus={self._cpus:g}", f"--resources={resources}"])

    def _start(self, name: str, options: Sequence[str]) -> None:
        before = set(self._raylets())
        self._nodes[name] = subprocess.Popen(
            [
                RAY, "start", *options, "--block", f"--object-store-memory={STORE_MB << 20}", "--num-gpus=0",
                "--node-ip-address=127.0.0.1", *([f"--temp-dir={self._temp}"] if name == "head" else []),
                "--disable-usage-stats",
            ],
            env=self.env,
            stdout=(self._temp / f"{name}.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not set(self._raylets()) - before:
            if time.monotonic() > deadline or self._nodes[name].poll() is not None:
                raise RuntimeError(f"node {name} didn't start:\n{(self._temp / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.2)
        time.sleep(2.0)  # it registers a moment later

    def kill_node(self, name: str) -> None:
        """The machine is gone: every process of the node at once, by SIGKILL."""
        process = self._nodes.pop(name)
        for one in [*processes_below(process.pid), psutil.Process(process.pid)]:
            kill(one.pid)
        process.wait()

    def workers(self, title: str) -> list[psutil.Process]:
        """Ray's workers on all nodes whose title begins with `title`, as in "ray::PolicyActor"."""
        found = []
        for node in self._nodes.values():
            for one in processes_below(node.pid):
                try:
                    if " ".join(one.cmdline()).startswith(title):
                        found.append(one)
                except psutil.Error:
                    continue
        return sorted(found, key=lambda one: one.pid)

    @property
    def node_names(self) -> list[str]:
        """Of worker nodes that live."""
        return [name for name in self._nodes if name != "head"]

    def _raylets(self) -> Iterator[int]:
        for node in self._nodes.values():
            for one in processes_below(node.pid):
                try:
                    if one.name() == "raylet":
                        yield one.pid
                except psutil.Error:
                    continue


def processes_below(pid: int) -> list[psutil.Process]:
    """All descendants."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(pid: int) -> None:
    """SIGKILL, also where it is gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


_PORTS = iter(random.SystemRandom().sample(range(20_000, 32_000), 12_000))


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free, another one each time.

    Below those that the system gives to connections (32768 and up), so that it stays free until a program is there.
    """
    for port in _PORTS:
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            return port
    raise OSError("no port is free")
