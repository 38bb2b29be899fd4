"""vLLM's side of a weight sync on CPUs: a registered weight-transfer engine and the worker extension.

vLLM's workers import this module through `worker_extension_cls`, which registers the backend "shared_memory" before the
worker makes its transfer engine. A bucket lies in a file on shared memory; each worker maps it and loads its part
through vLLM's layer-wise reload. On GPUs vLLM's own nccl and ipc backends do the same work, and nothing here is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rayrl.models.weights import Entry, views

BACKEND = "shared_memory"


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One bucket: the file it lies in, its size in bytes and its table (tuples of Entry's fields)."""

    path: str
    num_bytes: int
    entries: list[tuple[str, str, tuple[int, ...], int]]


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Loads buckets from shared memory; layers that no bucket names keep their weights."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """No rendezvous."""

    def start_weight_update(self) -> None:
        """Opens vLLM's layer-wise reload: once a sync, however many buckets."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Loads one bucket."""
        buffer = torch.from_file(update_info.path, shared=False, size=update_info.num_bytes, dtype=torch.uint8)
        entries = [Entry(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in update_info.entries]
        # The layer-wise loader holds on to what it is given until a layer is complete, maybe in the next bucket,
        # so the weights must outlive the mapping.
        self.model.load_weights((name, tensor.clone()) for name, tensor in views(entries, buffer))

    def finish_weight_update(self) -> None:
        """Closes the reload. A tied output projection is packed apart from the embedding: it is packed again."""
        finalize_layerwise_reload(self.model, self.model_config)
        tied = getattr(self.model_config.hf_config, "tie_word_embeddings", False)
        head = self.model._modules.get("lm_head")  # some tied models (Gemma) have none: they use the embedding itself
        if tied and head is not None and self.device.type == "cpu":
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)

    def shutdown(self) -> None:
        """Holds no resources between syncs."""


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryEngine)


class WorkerExtension:
    """Methods that vLLM adds to its workers, called through `collective_rpc`."""

    def seed_sampler(self, seed: int) -> None:
        """Sets the random state that sampling draws from."""
        torch.manual_seed(seed)
