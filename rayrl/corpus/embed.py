"""Texts to vectors of length 1, by the encoder that is configured.

The built-in one hashes character sequences (shingles.py) into signed counts: the cosine of two such vectors estimates
|A & B| / sqrt(|A| |B|) with a standard deviation of 1 / sqrt(dimensions). It needs no model and knows no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rayrl.config.corpus import EncoderConfig
from rayrl.config.trust import code_options, refusal, vllm_options, weight_options
from rayrl.corpus.shingles import shingles
from rayrl.errors import UserError


class Encoder(Protocol):
    """Makes vectors."""

    def __call__(self, texts: Sequence[str], languages: Sequence[str]) -> np.ndarray:
        """float32 [N, D], rows of length 1, or of zeros for a text without letters."""


def make_encoder(config: EncoderConfig) -> Encoder:
    """Raises UserError where the encoder's package isn't installed, or its model isn't there."""
    if config.kind == "ngrams":
        return NGrams(config.dimensions)
    assert config.model is not None
    return _SentenceTransformers(config.model) if config.kind == "sentence_transformers" else _VLLM(config.model)


class NGrams:
    """The built-in one."""

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions

    def __call__(self, texts: Sequence[str], languages: Sequence[str]) -> np.ndarray:
        """See Encoder."""
        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        for row, (text, language) in enumerate(zip(texts, languages, strict=True)):
            hashes = shingles(text, language)
            places = (hashes % np.uint64(self._dimensions)).astype(np.int64)
            signs = np.where(hashes >> np.uint64(63), 1.0, -1.0)
            vectors[row] = np.bincount(places, signs, minlength=self._dimensions)
        return unit_length(vectors)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their length; zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)


class _SentenceTransformers:
    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError("encoder: `pip install sentence-transformers`, or use kind: ngrams") from error
        try:
            weights = {"use_safetensors": weight_options()["use_safetensors"]}
            self._model = SentenceTransformer(model, model_kwargs=weights, **code_options())
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise refusal(model, error) or UserError(f"encoder: {model} can't be loaded: {reason}") from error

    def __call__(self, texts: Sequence[str], languages: Sequence[str]) -> np.ndarray:
        return unit_length(np.asarray(self._model.encode(list(texts), show_progress_bar=False), dtype=np.float32))


class _VLLM:
    def __init__(self, model: str) -> None:
        from rayrl.models.engine import prepare_vllm
        from rayrl.models.loading import device

        on_gpu = device().type == "cuda"
        prepare_vllm(compiles=False)
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError("encoder: vLLM isn't installed; use kind: ngrams") from error
        options = {} if on_gpu else {"kv_cache_memory_bytes": 1 << 30}
        try:
            self._model: Any = LLM(
                model, runner="pooling", enforce_eager=True, disable_log_stats=True, **options, **vllm_options()
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise refusal(model, error) or UserError(f"encoder: {model} can't be loaded: {reason}") from error
        self._longest = int(self._model.model_config.max_model_len)

    def __call__(self, texts: Sequence[str], languages: Sequence[str]) -> np.ndarray:
        tokens = {"truncate_prompt_tokens": self._longest}
        outputs = self._model.embed(list(texts), use_tqdm=False, tokenization_kwargs=tokens)
        return unit_length(np.array([one.outputs.embedding for one in outputs], dtype=np.float32))
