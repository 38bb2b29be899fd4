"""Shapes of dense decoder models, from a checkpoint's config.json or by a well-known name. Never from a network.

What memory and time depend on is a dozen integers; weights are not looked at. Left out: mixtures of experts, encoders
and multimodal models, which are refused by a sentence. Known architectures are the figures of the models' public
config.json files on the Hugging Face hub (the repository of each stands beside it).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrl.errors import UserError

BYTES = {"bf16": 2, "fp32": 4}
"""Of one number."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder: attention with `kv_heads` key-value heads, and an MLP of three matrices (`gated`) or two.

    Example: Llama-13B is ModelShape("llama-13b", 5120, 40, 13824, 40, 40, 128, 32000, tied=False).
    """

    name: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Whether the output projection is the embedding."""
    gated: bool = True

    @property
    def query_width(self) -> int:
        """Numbers of all heads' queries for one token."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers of all keys (or all values) for one token in one layer."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of a block's matrices, by the names that Llama and Qwen give them."""
        hidden, inner = self.hidden, self.intermediate
        attention = {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.kv_width),
            "v_proj": (hidden, self.kv_width),
            "o_proj": (self.query_width, hidden),
        }
        mlp = {"up_proj": (hidden, inner), "down_proj": (inner, hidden)}
        return attention | ({"gate_proj": (hidden, inner)} if self.gated else {}) | mlp

    @property
    def block(self) -> int:
        """Parameters of one block: its matrices and two norms (biases, under 0.1%, are left out)."""
        return sum(rows * columns for rows, columns in self.linears.values()) + 2 * self.hidden

    @property
    def embedding(self) -> int:
        """Parameters of the embedding; the output projection has as many."""
        return self.vocab * self.hidden

    @property
    def backbone(self) -> int:
        """Parameters without an output projection of its own: embedding, blocks, final norm."""
        return self.embedding + self.layers * self.block + self.hidden

    @property
    def params(self) -> int:
        """All parameters of the language model."""
        return self.backbone + (0 if self.tied else self.embedding)


def _llama(
    name: str, hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, vocab: int, tied: bool = False
) -> ModelShape:
    return ModelShape(name, hidden, layers, intermediate, heads, kv_heads, hidden // heads, vocab, tied)


KNOWN = {
    shape.name: shape
    for shape in (
        _llama("tiny-random", 64, 2, 128, 2, 1, 512, tied=True),  # built in
        _llama("tiny-random-untied", 64, 2, 128, 2, 1, 512),  # built in
        _llama("smollm2-135m", 576, 30, 1536, 9, 3, 49152, tied=True),  # HuggingFaceTB/SmolLM2-135M; built in
        _llama("smollm2-1.7b", 2048, 24, 8192, 32, 32, 49152, tied=True),  # HuggingFaceTB/SmolLM2-1.7B
        _llama("tinyllama-1.1b", 2048, 22, 5632, 32, 4, 32000),  # TinyLlama/TinyLlama-1.1B-Chat-v1.0
        _llama("llama-7b", 4096, 32, 11008, 32, 32, 32000),  # huggyllama/llama-7b
        _llama("llama-13b", 5120, 40, 13824, 40, 40, 32000),  # huggyllama/llama-13b
        _llama("llama-30b", 6656, 60, 17920, 52, 52, 32000),  # huggyllama/llama-30b
        _llama("llama-65b", 8192, 80, 22016, 64, 64, 32000),  # huggyllama/llama-65b
        _llama("llama-2-7b", 4096, 32, 11008, 32, 32, 32000),  # meta-llama/Llama-2-7b-hf
        _llama("llama-2-13b", 5120, 40, 13824, 40, 40, 32000),  # meta-llama/Llama-2-13b-hf
        _llama("llama-2-70b", 8192, 80, 28672, 64, 8, 32000),  # meta-llama/Llama-2-70b-hf
        _llama("llama-3-8b", 4096, 32, 14336, 32, 8, 128256),  # meta-llama/Meta-Llama-3-8B
        _llama("llama-3.1-8b", 4096, 32, 14336, 32, 8, 128256),  # meta-llama/Llama-3.1-8B
        _llama("llama-3-70b", 8192, 80, 28672, 64, 8, 128256),  # meta-llama/Meta-Llama-3-70B
        _llama("llama-3.1-70b", 8192, 80, 28672, 64, 8, 128256),  # meta-llama/Llama-3.1-70B
        _llama("llama-3.3-70b", 8192, 80, 28672, 64, 8, 128256),  # meta-llama/Llama-3.3-70B-Instruct
        _llama("ziya-llama-13b", 5120, 40, 13824, 40, 40, 39424),  # IDEA-CCNL/Ziya-LLaMA-13B-v1
        _llama("baichuan-7b", 4096, 32, 11008, 32, 32, 64000),  # baichuan-inc/Baichuan-7B
        _llama("baichuan-13b", 5120, 40, 13696, 40, 40, 64000),  # baichuan-inc/Baichuan-13B-Base
        _llama("baichuan2-7b", 4096, 32, 11008, 32, 32, 125696),  # baichuan-inc/Baichuan2-7B-Base
        _llama("baichuan2-13b", 5120, 40, 13696, 40, 40, 125696),  # baichuan-inc/Baichuan2-13B-Base
        _llama("mistral-7b", 4096, 32, 14336, 32, 8, 32000),  # mistralai/Mistral-7B-v0.1
        _llama("qwen2.5-0.5b", 896, 24, 4864, 14, 2, 151936, tied=True),  # Qwen/Qwen2.5-0.5B
        _llama("qwen2.5-1.5b", 1536, 28, 8960, 12, 2, 151936, tied=True),  # Qwen/Qwen2.5-1.5B
        _llama("qwen2.5-7b", 3584, 28, 18944, 28, 4, 152064),  # Qwen/Qwen2.5-7B
        _llama("qwen2.5-14b", 5120, 48, 13824, 40, 8, 152064),  # Qwen/Qwen2.5-14B
        _llama("qwen2.5-32b", 5120, 64, 27648, 40, 8, 152064),  # Qwen/Qwen2.5-32B
        _llama("qwen2.5-72b", 8192, 80, 29568, 64, 8, 152064),  # Qwen/Qwen2.5-72B
    )
}
SIZES = {"7b": "llama-2-7b", "8b": "llama-3.1-8b", "13b": "llama-2-13b", "70b": "llama-3.1-70b"}
"""What a bare size stands for."""

TWO_MATRICES = ("gpt2", "gpt_neox", "gptj", "bloom", "opt", "falcon", "phi", "gpt_bigcode", "starcoder2")
"""Model types whose MLP has no gate."""
_KEYS = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "vocab": ("vocab_size",),
}
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


PLACEHOLDER = "path/to/"
"""How presets write a path that is still to be set (config/load.py); what follows may name an architecture."""


def find_shape(model: str, stated: str | None = None) -> ModelShape:
    """The shape of what a configuration calls a model.

    Args:
        model: a checkpoint folder, or a name (a hub's, with or without its owner; a built-in; after a preset's
            placeholder).
        stated: a shape that the user names for it, which is taken instead: a known name, a size such as `13b`, or a
            folder with a config.json.

    Raises:
        UserError: neither says it; the sentence names what would.
    """
    wanted = stated or model
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return from_folder(folder)
    if stated is None and _is_path(model):
        raise UserError(f"no checkpoint at {model}: the folder doesn't exist; to plan without it, write --shape 13b")
    found = known_shape(wanted)
    if found is not None:
        return found
    downloaded = _in_hub_cache(wanted)
    if downloaded is not None:
        return from_folder(downloaded)
    names = [*KNOWN, *SIZES]
    near = difflib.get_close_matches(wanted.lower().rsplit("/", 1)[-1], names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    if stated is not None:
        raise UserError(f"no folder and no known shape is called {stated!r}; {hint}")
    raise UserError(f"{model} is neither a folder here nor a known name: state its shape, as in --shape 13b; {hint}")


def _is_path(name: str) -> bool:
    """As models/builtin.py tells paths from hub names; a placeholder is neither."""
    looks = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or name.endswith("/")
    return looks and not name.startswith(PLACEHOLDER)


def known_shape(name: str) -> ModelShape | None:
    """The known architecture that `name` starts with, whoever owns it and whatever it was tuned for; None without one.

    Example: "meta-llama/Llama-3.1-70B-Instruct" is llama-3.1-70b.
    """
    plain = name.lower().rsplit("/", 1)[-1].removeprefix("meta-").replace("_", "-")
    plain = SIZES.get(plain, plain)
    fitting = [key for key in KNOWN if plain == key or plain.startswith((f"{key}-", f"{key}_"))]
    return KNOWN[max(fitting, key=len)] if fitting else None


def _in_hub_cache(name: str) -> Path | None:
    """The newest snapshot of a hub name that was downloaded before, where huggingface_hub keeps them."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    root = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    found = (root / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json")
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return None if newest is None else newest.parent


def from_folder(folder: Path) -> ModelShape:
    """The shape in a checkpoint's config.json. UserError where it has none, or one that isn't understood."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json, so the shape of its model isn't known")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} isn't valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file} must hold an object, but holds {type(raw).__name__}")
    return from_config(raw, str(file))


def from_config(raw: Mapping[str, Any], source: str) -> ModelShape:
    """The shape in a Hugging Face configuration; `source` names it in errors."""
    text = raw.get("text_config")
    if isinstance(text, Mapping):
        raw = {**text, "tie_word_embeddings": raw.get("tie_word_embeddings", text.get("tie_word_embeddings", True))}
    experts = [key for key in _EXPERTS if raw.get(key)]
    if experts:
        raise UserError(f"{source} is a mixture of experts ({experts[0]} {raw[experts[0]]}): plans know dense decoders")
    found: dict[str, int] = {}
    for field, keys in _KEYS.items():
        value = next((raw[key] for key in keys if raw.get(key) is not None), None)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{source} has no {keys[0]} (a positive integer), so the model's shape isn't known")
        found[field] = value
    kind = str(raw.get("model_type", "llama"))
    gated = kind not in TWO_MATRICES
    inner = next((raw[key] for key in _INNER if raw.get(key)), None)
    if inner is None and gated:
        raise UserError(f"{source} has no {_INNER[0]}, so the model's shape isn't known")
    heads = found["heads"]
    head_dim = raw.get("head_dim") or found["hidden"] // heads
    return ModelShape(
        name=Path(source).parent.name if source.endswith("config.json") else source,
        hidden=found["hidden"],
        layers=found["layers"],
        intermediate=int(inner or 4 * found["hidden"]),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or (1 if raw.get("multi_query") else heads)),
        head_dim=int(head_dim),
        vocab=found["vocab"],
        # transformers' own default, which Llama-like configurations override
        tied=bool(raw.get("tie_word_embeddings", kind in ("gpt2", "bloom", "gemma", "gemma2", "gemma3_text"))),
        gated=gated,
    )
