"""What devices have and do: memory, arithmetic, bandwidth. Peak rates from their makers; shares of them as measured.

GPUs: NVIDIA's data sheets and architecture whitepapers (H100 and H200 SXM, A100 SXM, L40S, Ada, V100 SXM2), dense rates
without sparsity, accumulated in float32; memory is what CUDA reports of it, a little less than the name says. CPUs:
products of large matrices measured on a Xeon with AMX (one core of 2 GHz), for want of a common figure.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from rayrl.errors import UserError

GIB = 2**30

TRAIN_SHARE = 0.4
"""Share of a GPU's peak (model FLOPs utilisation) in forward and backward passes of padded batches; long sequences in
large batches reach 0.4 to 0.55 (Korthikanti et al., arXiv 2205.05198, table 5), short ones less."""
PREFILL_SHARE = 0.5
"""Of the peak, where an engine reads prompts or a frozen model scores."""
DECODE_SHARE = 0.6
"""Of the memory bandwidth, where an engine writes one token a sequence at a time."""
CPU_SHARE = 0.35
"""In place of all three on a CPU, whose rates below are measured and not peaks."""

NETWORK_BYTES_S = 25e9
"""Between nodes, each GPU: a link of 200 Gbit/s."""
HOST_LINK_BYTES_S = 25e9
"""Between a GPU and host memory: PCIe 4.0 x16 as it is reached."""
NETWORK_CPU_BYTES_S = 1e9
"""Between processes on CPUs, through the object store and gloo."""


@dataclass(frozen=True)
class Device:
    """One GPU, or one CPU core where `gpu` is false."""

    name: str
    memory: int
    """Bytes that CUDA reports; of a core, what a machine has for each (a described one's default)."""
    bf16_flops: float
    """Per second, dense."""
    fp32_flops: float
    bandwidth: float
    """Bytes a second, of its own memory."""
    link: float
    """Bytes a second to a neighbour in the node, one way."""
    gpu: bool = True
    auto: Literal["bf16", "fp32"] = "bf16"
    """What `dtype: auto` means on it (models/loading.py: bf16 on every GPU)."""
    step_s: float = 0.004
    """Of an engine's step, besides its traffic: launches, sampling, bookkeeping."""

    def flops(self, dtype: str) -> float:
        """Per second, of "bf16" or "fp32"."""
        return self.bf16_flops if dtype == "bf16" else self.fp32_flops

    def share(self, of_peak: float) -> float:
        """The share of its rates that counts on: `of_peak` for a GPU."""
        return of_peak if self.gpu else CPU_SHARE


def _gpu(name: str, gib: float, bf16: float, fp32: float, gigabytes_s: float, link: float) -> Device:
    return Device(name, int(gib * GIB), bf16 * 1e12, fp32 * 1e12, gigabytes_s * 1e9, link * 1e9)


GPUS = {
    device.name: device
    for device in (
        # name, GiB, TFLOP/s in bf16 and fp32 (no TF32: torch's default), GB/s of memory, GB/s to a neighbour
        _gpu("H200", 139.8, 989, 67, 4800, 450),
        _gpu("H100", 79.1, 989, 67, 3350, 450),
        _gpu("A100-80", 79.1, 312, 19.5, 2039, 300),
        _gpu("A100-40", 39.4, 312, 19.5, 1555, 300),
        _gpu("L40S", 44.4, 362, 91.6, 864, 32),
        _gpu("RTX4090", 23.6, 165, 82.6, 1008, 32),
        _gpu("V100-32", 31.7, 15.7, 15.7, 900, 150),  # no bf16 units: torch computes it at fp32's rate
        _gpu("V100-16", 15.8, 15.7, 15.7, 900, 150),
    )
}
CPU = Device("CPU", 4 * GIB, 1.0e12, 0.145e12, 8e9, NETWORK_CPU_BYTES_S, gpu=False, step_s=0.05)
"""A core with AMX: 2 TFLOP/s in bf16 and 0.29 in fp32 were measured on two."""
PLAIN_CPU = Device("plain CPU", 4 * GIB, 0.07e12, 0.145e12, 8e9, NETWORK_CPU_BYTES_S, False, "fp32", 0.05)
"""A core without AMX or AVX512-BF16: bf16 is slower than fp32 there."""
ALIASES = {"A100": "A100-80", "V100": "V100-32", "4090": "RTX4090", "H100-80": "H100"}

HOST_BYTES_PER_GPU = 128 * GIB
"""Host memory of a described GPU node, for each GPU, unless it says otherwise."""
CORES_PER_GPU = 16
"""CPUs of a described GPU node, for each GPU, unless it says otherwise."""


def find_gpu(name: str) -> Device:
    """The GPU of a name such as H100, A100-80GB or rtx-4090. UserError with the nearest name."""
    plain = _plain(name)
    by_plain = {_plain(known): device for known, device in GPUS.items()}
    by_plain |= {_plain(alias): GPUS[known] for alias, known in ALIASES.items()}
    if plain in by_plain:
        return by_plain[plain]
    near = difflib.get_close_matches(plain, by_plain, n=1, cutoff=0.5)
    hint = f"did you mean {by_plain[near[0]].name!r}?" if near else f"known: {', '.join([*GPUS, CPU.name])}"
    raise UserError(f"no device is called {name!r}; {hint}")


def gpu_of_model(model: str) -> Device | None:
    """The GPU that a driver calls "NVIDIA A100-SXM4-40GB" or Ray "A100"; None where it isn't known.

    Of several sizes it is the one that the model names, or else the smallest.
    """
    words = re.sub(r"[^a-z0-9]", "", model.lower())
    matching = [device for name, device in GPUS.items() if name.split("-")[0].lower() in words]
    sized = [device for device in matching if re.search(rf"{device.name.partition('-')[2] or 'no size'}gb?$", words)]
    return min(sized or matching, key=lambda device: device.memory, default=None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower().removesuffix("gb") if letter.isalnum())
