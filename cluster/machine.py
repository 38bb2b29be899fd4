"""What this machine has, counted without starting Ray: for plans of local runs.

The count follows Ray's own: the cores, or less where a container's quota (cgroup v2) says so; GPUs as the NVIDIA driver
lists them, unless CUDA_VISIBLE_DEVICES narrows that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cluster.specs import NodeResources


def this_machine(environ: Mapping[str, str], root: Path = Path("/")) -> NodeResources:
    """CPUs and GPUs here; `root` is where /sys and /proc are looked for."""
    cpus = float(os.cpu_count() or 1)
    quota_file = root / "sys/fs/cgroup/cpu.max"
    if quota_file.is_file():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1.0, int(quota) / int(period)))
    listed = root / "proc/driver/nvidia/gpus"
    gpus = len(list(listed.iterdir())) if listed.is_dir() else 0
    if "CUDA_VISIBLE_DEVICES" in environ:
        visible = [device for device in environ["CUDA_VISIBLE_DEVICES"].split(",") if device.strip() not in ("", "-1")]
        gpus = min(gpus, len(visible))
    return NodeResources("this machine", cpus, float(gpus))
