"""The policy's end of vLLM's own weight-transfer sessions (nccl and ipc), for GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.policy import free_address
from cluster.health import wait_for
from rayrl.learners.policy import PolicyLearner
from rayrl.models.partition import merged_parameters


class _Source(WeightSource):
    """The trained parameters under their checkpoint names, LoRA merged in."""

    def __init__(self, learner: PolicyLearner) -> None:
        self._learner = learner
        self._metadata: list[ParamMeta] | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        with self._learner.train.gathered(list(self._learner.parts.model.parameters())):
            yield from merged_parameters(self._learner.parts, only_trained=True)

    def metadata(self) -> list[ParamMeta]:
        """Shapes never change, so they are gathered once."""
        if self._metadata is None:
            self._metadata = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]
        return self._metadata


class _Engines:
    """vLLM's four-method client over rollout actors, with limits that name the actor."""

    def __init__(self, engines: Sequence[Any], names: Sequence[str], timeout_s: float) -> None:
        self._engines, self._names, self._timeout_s = engines, names, timeout_s
        self.version = 0

    def _on_all(self, method: str, *args: Any) -> None:
        refs = [engine.transfer.remote(method, *args) for engine in self._engines]
        wait_for(refs, self._timeout_s, f"weight version {self.version}, {method}", self._names)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._on_all("init_weight_transfer_engine", {"init_info": init_info})

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
        engines: Sequence[Any],
        names: Sequence[str],
        world: int,
        timeout_s: float,
    ) -> None:
        """`world`: workers of all engines together."""
        self._client = _Engines(engines, names, timeout_s)
        if backend == "nccl":
            address, port = free_address()
            info: Any = NCCLTrainerInitInfo(rank=rank, master_address=address, master_port=port, world_size=world + 1)
        else:
            info = IPCTrainerInitInfo(rank=rank, packed=True)
        self._source = _Source(learner)
        self._session = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=self._source)

    def send(self, version: int) -> int:
        """Sends the weights as `version`; bytes sent by this rank."""
        self._client.version = version
        self._session.send_weights()
        if not self._session.is_sender:
            return 0
        return sum(meta.dtype.itemsize * _numel(meta.shape) for meta in self._source.metadata())


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
