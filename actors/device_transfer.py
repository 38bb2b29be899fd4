"""The policy's end of vLLM's own weight-transfer sessions (nccl and ipc), for GPUs."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from cluster.health import wait_for
from rayrl.learners.policy import PolicyLearner
from rayrl.models.partition import merged_parameters


class _Source(WeightSource):
    """The trained parameters under their checkpoint names, LoRA merged in."""

    def __init__(self, learner: PolicyLearner) -> None:
        self._learner = learner
        self._metadata: list[ParamMeta] | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from merged_parameters(self._learner.parts, only_trained=True, gathered=self._learner.train.gathered)

    def metadata(self) -> list[ParamMeta]:
        """Shapes never change, so they are gathered once."""
        if self._metadata is None:
            self._metadata = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]
        return self._metadata


class EngineClient:
    """vLLM's four-method client over rollout actors, with limits that name the actor."""

    def __init__(self, engines: Sequence[Any], names: Sequence[str], workers_per_engine: int, timeout_s: float) -> None:
        self._engines, self._names = engines, names
        self._workers_per_engine, self._timeout_s = workers_per_engine, timeout_s
        self.begin(0)

    @property
    def num_workers(self) -> int:
        """Of all engines together."""
        return len(self._engines) * self._workers_per_engine

    def begin(self, version: int) -> None:
        """From here on errors name `version`, and all answers until the next call share one limit."""
        self.version, self._deadline = version, time.monotonic() + self._timeout_s

    def _on_all(self, method: str, *args: Any) -> None:
        self._on_each(method, [args] * len(self._engines))

    def _on_each(self, method: str, arguments: Sequence[Sequence[Any]]) -> None:
        refs = [engine.transfer.remote(method, *own) for engine, own in zip(self._engines, arguments, strict=True)]
        left_s = max(0.0, self._deadline - time.monotonic())
        wait_for(refs, left_s, f"weight version {self.version}, {method}", self._names)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """vLLM counts the workers of one engine; here each engine's come after those of the engines before it."""
        infos = [dict(init_info) for _ in self._engines]
        if "rank_offset" in init_info:
            for i, info in enumerate(infos):
                info["rank_offset"] += i * self._workers_per_engine
        self._on_each("init_weight_transfer_engine", [({"init_info": info},) for info in infos])

    def start_weight_update(self) -> None:
        self._on_all("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._on_all("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._on_all("finish_weight_update", str(self.version))


class DeviceTransfer:
    """An open session of one policy rank; rank 0 sends, the others take part in gathering."""

    def __init__(
        self,
        backend: str,
        learner: PolicyLearner,
        rank: int,
        client: EngineClient,
        buffer_bytes: int,
    ) -> None:
        """A collective. `buffer_bytes`: size of one transfer, raised to the largest tensor's where that is larger."""
        self._client, self._source = client, _Source(learner)
        sizes = [meta.dtype.itemsize * math.prod(meta.shape) for meta in self._source.metadata()]
        self._num_bytes, buffer_bytes = sum(sizes), max(buffer_bytes, *sizes)
        if backend == "nccl":
            with socket.socket() as probe:
                probe.bind(("", 0))
                port: int = probe.getsockname()[1]
            info: Any = NCCLTrainerInitInfo(
                rank=rank,
                master_address=ray.util.get_node_ip_address(),
                master_port=port,
                world_size=1 + client.num_workers,
                packed_buffer_size_bytes=buffer_bytes,
            )
        else:
            info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=buffer_bytes)
        client.begin(0)  # gathering the metadata isn't the engines' time
        self._session = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=self._source)

    def send(self, version: int) -> int:
        """Sends the weights as `version`; bytes sent by this rank."""
        self._client.begin(version)
        self._session.send_weights()
        return self._num_bytes if self._session.is_sender else 0
