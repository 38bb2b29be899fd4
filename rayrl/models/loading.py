"""Loading models: the one way a policy, reference, reward model or critic comes into memory.

What a checkpoint may bring along is decided in rayrl/config/trust.py. Leaves out tokenizers (rayrl/data/chat.py), what
is trained (partition.py) and built-in models (builtin.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from rayrl.config.parts import TrainableConfig
from rayrl.config.trust import code_options, refusal, weight_options
from rayrl.errors import UserError
from rayrl.models.attention import use_short_attention

DType = Literal["auto", "bf16", "fp32"]


def resolve_dtype(dtype: DType) -> torch.dtype:
    """`auto`: bf16 where the hardware is fast at it (GPUs; CPUs with AMX or AVX512-BF16), else fp32."""
    if dtype == "fp32":
        return torch.float32
    fast = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if dtype == "bf16" or fast else torch.float32


def dtype_name(dtype: DType) -> str:
    """What `dtype` means in this process: "bfloat16" or "float32"."""
    return str(resolve_dtype(dtype)).removeprefix("torch.")


def device() -> torch.device:
    """The device Ray gave this process, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    """What isn't allowed to load comes out of the block as UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        if refused := refusal(path, error):
            raise refused from error
        raise


def load_causal_lm(path: str, dtype: DType) -> PreTrainedModel:
    """A causal language model in evaluation mode on the CPU; DeepSpeed or the caller moves it."""
    with _refusals(path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=resolve_dtype(dtype), **weight_options())
    return use_short_attention(model).eval()


def load_scorer(path: str, dtype: DType, new_head: bool = False) -> PreTrainedModel:
    """A sequence-classification model with one output: a reward model or a critic.

    `new_head`: `path` is a language model without a score head; the head starts at zero, so every value is 0.
    Otherwise a checkpoint without a trained head is refused.
    """
    with _refusals(path):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, dtype=resolve_dtype(dtype), output_loading_info=True, **weight_options()
        )
    head = score_head(model)
    missing = [key for key in info["missing_keys"] if key.endswith(("score.weight", "classifier.weight"))]
    if new_head:
        nn.init.zeros_(head.weight)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    elif missing:
        raise UserError(
            f"{path} has no trained score head ({missing[0]} is missing): give a sequence-classification checkpoint "
            "with one label, as reward-model training saves it"
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = model.config.eos_token_id
    return use_short_attention(model).eval()


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer with one output on top of a sequence-classification model."""
    for name in ("score", "classifier"):
        head = model._modules.get(name)
        if isinstance(head, nn.Linear) and head.out_features == 1:
            return head
    raise UserError(
        f"{type(model).__name__} has no linear head with one output named score or classifier: rayrl reads reward "
        "models of the AutoModelForSequenceClassification form with num_labels=1"
    )


def model_config(path: str) -> PretrainedConfig:
    """A checkpoint's config; a folder or name without one is a clear error."""
    try:
        with _refusals(path):
            return AutoConfig.from_pretrained(path, **code_options())
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"no model at {path!r}: {first_line}") from error


def check_same_shape(policy: str, other: str, role: str) -> None:
    """Stops if `other` (the reference) isn't the policy's architecture and size."""
    a, b = model_config(policy), model_config(other)
    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        left, right = getattr(a, key), getattr(b, key)  # by attribute: some configs store them under other names
        if left != right:
            raise UserError(
                f"policy and {role} differ in {key}: {left} in {policy}, {right} in {other}; they must share a shape"
            )


def check_same_vocabulary(policy_tokenizer: str, other_tokenizer: str, name: str) -> None:
    """Stops if `other_tokenizer` maps tokens to other ids than the policy's: ids would mean other words."""
    ours, theirs = _vocabulary(policy_tokenizer), _vocabulary(other_tokenizer)
    if ours != theirs:
        differing = sum(1 for token, index in ours.items() if theirs.get(token) != index)
        raise UserError(
            f"{name} and the policy have different vocabularies ({len(theirs)} and {len(ours)} tokens, "
            f"{differing} of the policy's with another id): a model reward reads the policy's tokens, so both need "
            "the same tokenizer"
        )


def _vocabulary(path: str) -> dict[str, int]:
    from transformers import AutoTokenizer

    try:
        with _refusals(path):
            vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(path, **code_options()).get_vocab()
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} has no tokenizer to compare with the policy's ({first_line}): "
            "save the one it was trained with there"
        ) from error
    return vocabulary


def check_blocks(path: str, config: TrainableConfig, key: str) -> None:
    """Stops if `last_n` asks for as many blocks as the model has. `key`: the config's section, for the error."""
    total = model_config(path).get_text_config().num_hidden_layers
    if config.mode == "last_n" and config.num_layers >= total:
        raise UserError(f"{key}.num_layers is {config.num_layers}, but {path} has {total} blocks: use {key}.mode=full")


def check_window(path: str, max_prompt_tokens: int, max_new_tokens: int) -> None:
    """Stops if a prompt and its answer may be longer than the model has positions."""
    shape = model_config(path).get_text_config()
    window = max_prompt_tokens + max_new_tokens
    # Models with relative positions (ALiBi) have no limit of their own.
    if hasattr(shape, "max_position_embeddings") and window > shape.max_position_embeddings:
        raise UserError(
            f"rollout.max_prompt_tokens + rollout.max_new_tokens is {window}, more than the "
            f"{shape.max_position_embeddings} positions of {path}: lower one of them"
        )


def check_score_head(path: str, name: str) -> None:
    """Stops, before anything is loaded, if a checkpoint folder has no score head with one output.

    Reads the names and shapes in its safetensors files; hub names and other formats are checked as they are loaded.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    heads: dict[str, list[int]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            found = [key for key in tensors.keys() if key.startswith(("score.", "classifier."))]  # noqa: SIM118
            heads |= {key: tensors.get_slice(key).get_shape() for key in found}
    shapes = [shape for key, shape in heads.items() if key.endswith(".weight")]
    if files and (not shapes or shapes[0][0] != 1):
        problem = f"its score head has {shapes[0][0]} outputs" if shapes else "it has no score head"
        raise UserError(
            f"{name}: {path} can't score, {problem}: give a sequence-classification checkpoint with one label, as "
            "reward-model training saves it"
        )


def weights_hash(folder: str | Path) -> str:
    """SHA-256 over a checkpoint's weight files, for comparing a reference with the policy's start."""
    digest = hashlib.sha256()
    for file in sorted([*Path(folder).glob("*.safetensors"), *Path(folder).glob("*.bin")]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
