"""Building, stepping, saving and loading a DeepSpeed engine: the one way an optimizer comes to a model.

DeepSpeed does the work. This file holds its configuration and the facts that cost days: on CPUs its shared-memory
collective compiles at start unless marked incompatible first, and an optimizer named in its config compiles for over a
minute, so it gets a torch AdamW.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayrl.config.parts import OptimizerConfig, TrainerConfig
from rayrl.errors import RunError
from rayrl.heartbeat import beat
from rayrl.models.loading import device, resolve_dtype
from rayrl.models.rendezvous import init_process_group


def init_distributed(rank: int, world_size: int, address: str, port: int, timeout_s: float) -> None:
    """Joins this process to its role's group: NCCL on GPUs, gloo on CPUs; every collective fails after `timeout_s`."""
    os.environ.update(
        MASTER_ADDR=address, MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0"
    )
    init_process_group(collective_backend(), rank, world_size, address, port, timedelta(seconds=timeout_s))
    adopt_process_group(timeout_s)


def collective_backend() -> str:
    """torch's name for what carries this process's collectives."""
    return "nccl" if device().type == "cuda" else "gloo"


def adopt_process_group(timeout_s: float) -> None:
    """Gives DeepSpeed the process group that there is."""
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=collective_backend(),
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
        auto_mpi_discovery=False,
    )
    # The engine's collectives go through a group of DeepSpeed's own, which it would make with torch's default timeout.
    from deepspeed.utils import groups

    ranks = list(range(torch.distributed.get_world_size()))
    groups._WORLD_GROUP = torch.distributed.new_group(ranks, timeout=timedelta(seconds=timeout_s))


def learning_rate_factor(config: OptimizerConfig, total_steps: int, step: int) -> float:
    """Share of the peak rate at optimizer step `step` (from 0) of `total_steps`: linear warm-up, then decay to 0."""
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(params: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names; its schedule comes on top."""
    if config.kind == "lion":
        from lion_pytorch import Lion

        lion: torch.optim.Optimizer = Lion(params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        return lion
    # Fused: one pass over memory instead of a dozen (0.06 s instead of 0.19 for 135M parameters on two cores).
    return torch.optim.AdamW(
        params, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


@contextlib.contextmanager
def _no_code_from_pickles() -> Iterator[None]:
    """In the block `torch.load` reads tensors, plain values and DeepSpeed's own records, whatever it is told.

    DeepSpeed would unpickle anything that lies in a checkpoint's folder, which may have come from somebody else.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def starts_on_host(config: TrainerConfig) -> bool:
    """Whether the model is loaded into host memory, from which ZeRO-3 takes it apart: it need not fit on one device.

    Not with `last_n`, whose frozen trunk stays whole, outside of what DeepSpeed wraps.
    """
    return config.zero_stage == 3 and config.train.mode != "last_n"


def _spread(module: nn.Module, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Takes the parameters apart one by one; DeepSpeed by itself would first move all of them to the device."""
    import deepspeed

    for param in module.parameters():
        param.data = param.data.to(dtype)  # PEFT's are float32, which DeepSpeed refuses once they are spread
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device())
    deepspeed.zero.Init(module=module, config_dict_or_path=settings)


class TrainEngine:
    """A module under DeepSpeed: micro-batch losses in, one optimizer step every `accumulation` of them."""

    def __init__(self, module: nn.Module, config: TrainerConfig, accumulation: int, total_steps: int) -> None:
        import deepspeed

        optimizer_config = config.optimizer
        self._trained = [param for param in module.parameters() if param.requires_grad]
        self.num_trained = sum(param.numel() for param in self._trained)
        """Parameters that train, over all ranks."""
        optimizer = build_optimizer(self._trained, optimizer_config)
        self._rate_scale = 1.0
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self._rate_scale * learning_rate_factor(optimizer_config, total_steps, step)
        )
        self.accumulation = accumulation
        self._own_norm: float | None = None
        self._zero_3 = config.zero_stage == 3
        self._rounds = 0
        settings = _deepspeed_config(config, accumulation)
        if self._zero_3:
            _spread(module, settings, resolve_dtype(config.dtype))
        self.engine, _, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            lr_scheduler=self._schedule,
            config=settings,
            dist_init_required=False,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's share of the minibatch's loss.

        The shares of all micro-batches and ranks SUM to the loss (they are divided by global counts); DeepSpeed
        averages over both, so the loss is scaled back here. A gradient whose norm isn't finite changes nothing.
        """
        self.engine.backward(loss * (self.engine.world_size * self.accumulation))
        beat()
        if self.engine.is_gradient_accumulation_boundary():
            self._own_norm = self._plain_norm()
            if self._own_norm is not None and not math.isfinite(self._own_norm):
                # As DeepSpeed does it where it keeps the norm: such a gradient changes nothing.
                self.engine.zero_grad()
                self.engine.micro_steps += 1
                return
        self.engine.step()

    def _plain_norm(self) -> float | None:
        """Without ZeRO and bf16 DeepSpeed keeps no norm; gradients are whole and averaged by now."""
        if self.engine.optimizer is not self.engine.basic_optimizer:
            return None
        grads = [param.grad for param in self._trained if param.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    @property
    def grad_norm(self) -> float:
        """Global gradient norm of the last optimizer step, before clipping."""
        norm = self._own_norm if self._own_norm is not None else self.engine.get_global_grad_norm()
        assert norm is not None, "grad_norm comes after the first optimizer step"
        return float(norm)

    @property
    def learning_rate(self) -> float:
        """Rate of the next optimizer step."""
        return float(self.engine.get_lr()[0])

    def scale_rate(self, scale: float) -> None:
        """From the next optimizer step on the rate is `scale` times the schedule's (not kept by `save`)."""
        self._rate_scale = scale
        groups = self.engine.basic_optimizer.param_groups
        for group, base, factor in zip(groups, self._schedule.base_lrs, self._schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(self._schedule.last_epoch)

    @contextlib.contextmanager
    def round(self, number: int) -> Iterator[None]:
        """All optimizer steps of one iteration of an outer loop, each of which is applied once, in rising order from 0.

        The count is saved with the state, so that neither a repeated call nor a wrong checkpoint goes unseen. Raises
        RunError where another number is due.
        """
        self.require_rounds(number)
        yield
        self._rounds += 1

    def require_rounds(self, number: int) -> None:
        """Raises RunError where the model hasn't taken just so many."""
        if number != self._rounds:
            raise RunError(f"a model that has taken {self._rounds} steps was to stand at step {number}")

    @contextlib.contextmanager
    def gathered(self, params: Iterable[Tensor]) -> Iterator[None]:
        """Whole parameters inside the block (ZeRO-3 gathers them: a collective, so every rank must enter)."""
        if not self._zero_3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(params)):
            yield

    def save(self, folder: Path) -> None:
        """Trained parameters, optimizer and schedule of every rank (a collective)."""
        counts = {"rounds": self._rounds}
        self.engine.save_checkpoint(
            str(folder), tag="state", client_state=counts, exclude_frozen_parameters=True, save_latest=False
        )

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote (a collective)."""
        if not (folder / "state").is_dir():  # DeepSpeed would fail on an assertion that names nothing
            raise FileNotFoundError(f"no trainer state under {folder}")
        with _no_code_from_pickles():
            path, counts = self.engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
        if path is None:
            raise FileNotFoundError(f"no trainer state under {folder}")
        self._rounds = counts["rounds"]

    def offload(self) -> None:
        """Moves the optimizer's moments to host memory between phases.

        DeepSpeed's own `offload_states` knows only some of its stages and, under ZeRO-3, only its fused Adam.
        """
        self._move_moments(torch.device("cpu"))
        if device().type == "cuda":
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Brings them back to where the optimizer's parameters are."""
        self._move_moments(None)

    def _move_moments(self, to: torch.device | None) -> None:
        for param, state in self.engine.basic_optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.dim() > 0:  # AdamW keeps its step count on the CPU
                    state[name] = value.to(param.device if to is None else to)


def _deepspeed_config(config: TrainerConfig, accumulation: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage, "contiguous_gradients": device().type == "cuda"}
    if config.offload_optimizer and config.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    in_bf16 = resolve_dtype(config.dtype) is torch.bfloat16
    # Stage 0 accumulates bf16 gradients in bf16: DeepSpeed offers float32 there only with ZeRO.
    accumulate_in = "bf16" if in_bf16 and config.zero_stage == 0 else "fp32"
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "bf16": {"enabled": in_bf16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": accumulate_in},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
