"""What of a model is trained, and what runs frozen below and beside it.

Three ways: everything; a LoRA adapter (PEFT); or the last N blocks with the final norm, and the output projection where
it isn't tied (HuatuoGPT's PPO trains two blocks; trlx calls it num_layers_unfrozen and, unlike the "hydra" there, N
counts blocks from the top for every N). With the last N, the frozen lower blocks are the trunk: its output for a
sequence never changes, so it is computed once a rollout and kept for all epochs.

`trunk` and `top` are views: new containers around the same blocks, run by the model's own code. Architectures whose
code does more around its blocks than a view can see are found by `check_views`, which compares with the whole model.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayrl.config.parts import TrainableConfig
from rayrl.errors import UserError
from rayrl.heartbeat import beat


@dataclass
class Partition:
    """A model split into what is frozen below (`trunk`, may be None) and what is trained or ends it (`top`).

    `trunk(input_ids=ids_BL)` and `top(inputs_embeds=hidden_BLD)`, or `top(input_ids=ids_BL)` where there is no trunk,
    return objects with `last_hidden_state`.
    """

    model: PreTrainedModel
    """The whole model with standard parameter names, for export; under LoRA the PEFT model's inner one."""
    trunk: nn.Module | None
    top: nn.Module
    adapter: nn.Module | None = None
    """The PEFT model, under LoRA."""

    def trunk_output(self, ids_BL: Tensor, **layout: Any) -> Tensor:
        """What `top` takes: kept activations [B, L, D], or the ids themselves where nothing is frozen below.

        `layout`: keywords for the trunk's forward pass (packed rows: supervised.py).
        """
        if self.trunk is None:
            return ids_BL
        beat()
        with torch.no_grad():
            return self.trunk(input_ids=ids_BL, use_cache=False, **layout).last_hidden_state

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The model as it was before LoRA."""
        if self.adapter is None:
            raise RuntimeError("without_adapter needs a LoRA partition")
        with self.adapter.disable_adapter():  # type: ignore[operator]
            yield


def run(module: nn.Module, below: Tensor) -> Tensor:
    """Final hidden states [B, L, D] of a top (or whole base model) for ids [B, L] or trunk activations [B, L, D]."""
    key = "inputs_embeds" if below.is_floating_point() else "input_ids"
    beat()
    return module(**{key: below}, use_cache=False).last_hidden_state


def _view(base: Any, first: int, last: int, norm: nn.Module) -> Any:
    view = copy.copy(base)
    # Hooks, parameters and children lie in dicts, which a copy would share: what DeepSpeed hangs on one view must not
    # run in the other, or in the model.
    view.__dict__.update({key: copy.copy(value) for key, value in base.__dict__.items() if isinstance(value, dict)})
    for name, child in base.named_children():
        if next(child.parameters(), None) is None:  # rotary embedding: it takes hooks too
            view._modules[name] = copy.deepcopy(child)
    view.layers = nn.ModuleList(list(base.layers)[first:last])
    view.norm = norm
    view.config = copy.deepcopy(base.config)
    view.config.num_hidden_layers = last - first
    if "layer_types" in view.config.to_dict() and view.config.layer_types is not None:
        view.config.layer_types = view.config.layer_types[first:last]
    return view


def partition(model: PreTrainedModel, config: TrainableConfig) -> Partition:
    """Freezes what isn't trained and returns the parts. Call it before DeepSpeed takes the model."""
    if config.mode == "full":
        model.requires_grad_(True)
        return Partition(model, None, model.base_model)
    if config.mode == "lora":
        from peft import LoraConfig, get_peft_model

        targets: list[str] | str = "all-linear" if config.lora_targets == ["all-linear"] else config.lora_targets
        adapter = get_peft_model(
            model,
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=targets,
                exclude_modules=["lm_head", "score", "classifier"],
            ),
        )
        return Partition(model, None, model.base_model, adapter)
    return _last_n(model, config.num_layers)


def _last_n(model: PreTrainedModel, num_layers: int) -> Partition:
    base = model.base_model
    if not {"layers", "norm", "embed_tokens"} <= set(base._modules):
        raise UserError(
            f"train.mode last_n doesn't know {type(model).__name__} (it looks for embed_tokens, layers and norm): "
            "use full or lora"
        )
    total = len(base.layers)
    if num_layers >= total:
        raise UserError(f"train.num_layers is {num_layers}, but the model has {total} blocks: use train.mode full")
    model.requires_grad_(False)
    top = _view(base, total - num_layers, total, base.norm)
    top._modules.pop("embed_tokens")  # frozen and below: not part of what DeepSpeed holds
    top.layers.requires_grad_(True)
    top.norm.requires_grad_(True)
    head = model.get_output_embeddings()
    if head is not None and head.weight is not base.embed_tokens.weight:
        head.requires_grad_(True)
    trunk = _view(base, 0, total - num_layers, nn.Identity())
    return Partition(model, trunk, top)


def frozen_copy(module: nn.Module) -> nn.Module:
    """A deep copy, never trained: the reference over a shared trunk. What isn't trained at all is its own copy."""
    if not any(param.requires_grad for param in module.parameters()):
        return module
    return copy.deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def check_views(parts: Partition, device: torch.device) -> None:
    """Stops if trunk and top together don't give what the whole model gives (an unknown architecture)."""
    if parts.trunk is None:
        return
    ids = torch.arange(7, 19, device=device)[None] % parts.model.config.vocab_size
    whole = run(parts.model.base_model, ids).float()
    split = run(parts.top, parts.trunk_output(ids)).float()
    gap = (whole - split).abs().max().item()
    if not gap <= 1e-3 * max(1.0, whole.abs().max().item()):
        raise UserError(
            f"train.mode last_n doesn't fit {type(parts.model).__name__}: its blocks run apart differ from the whole "
            f"by {gap:.3g}; use full or lora"
        )


def trainable_names(parts: Partition) -> list[str]:
    """Names, in the whole model, of the parameters that training changes (base weights that LoRA adapts included)."""
    if parts.adapter is None:
        return [name for name, param in parts.model.named_parameters() if param.requires_grad]
    return [name for name, _ in _adapted_layers(parts)]


def _adapted_layers(parts: Partition) -> Iterator[tuple[str, nn.Module]]:
    from peft.tuners.lora import LoraLayer

    for name, module in parts.model.named_modules():
        if isinstance(module, LoraLayer):
            yield f"{name}.weight", module


Gathered = Callable[[Iterable[Tensor]], contextlib.AbstractContextManager[None]]
"""What makes parameters whole inside a block: `TrainEngine.gathered`, a collective under ZeRO-3."""


def merged_parameters(
    parts: Partition, only_trained: bool, gathered: Gathered = lambda params: contextlib.nullcontext()
) -> Iterator[tuple[str, Tensor]]:
    """(name in the base checkpoint, tensor) of all or of the trained parameters, LoRA merged in.

    Never a copy of the whole model: a merged tensor is made when its turn comes, and under ZeRO-3 `gathered` makes its
    parts whole then (every rank must iterate) unless the caller has gathered all.
    With the trained ones under LoRA goes all that lies in the same attention or MLP: vLLM fuses q, k and v (gate and
    up) into one layer, and its reload makes a layer anew, so one that got a part would hold garbage in the rest.
    """
    if parts.adapter is None:
        for name, param in parts.model.named_parameters():
            if param.requires_grad or not only_trained:
                with gathered([param]):
                    yield name, param.detach()
        return
    adapted = dict(_adapted_layers(parts))
    for name, module in adapted.items():
        base = module.get_base_layer()  # type: ignore[operator]
        with gathered(module.parameters()):
            yield name, (base.weight + module.get_delta_weight("default")).to(base.weight.dtype).detach()  # type: ignore[operator]
    touched = tuple({name.rsplit(".", 2)[0] + "." for name in adapted})
    for name, param in parts.model.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if "lora_" in name or plain in adapted:
            continue
        if not only_trained or plain.startswith(touched):
            with gathered([param]):
                yield plain, param.detach()


def whole_weights(parts: Partition, gathered: Gathered, keep: bool) -> dict[str, Tensor]:
    """All weights by their names in a checkpoint, in host memory, LoRA merged in; none unless `keep`.

    Under ZeRO-3 every rank must call it; a device then holds one whole parameter at a time.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in merged_parameters(parts, only_trained=False, gathered=gathered):
        if keep:
            weights[name] = tensor.cpu()
    return weights
