"""Who words questions and answers for `unify` and `check`: an endpoint's model, or an engine in the worker itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrl.config.corpus import UnifyConfig, UnifyEngineConfig
from rayrl.corpus.unify import Generator
from rayrl.data.chat import checkpoint_end_token_ids, load_tokenizer
from rayrl.judge.service import ModelService
from rayrl.types import Message


def make_generator(config: UnifyConfig, seed: int) -> Generator:
    """The one that is configured. Needs a connection to Ray for an endpoint; `seed`: of an engine's sampling."""
    if config.endpoint is not None:
        service = ModelService(config.endpoint)
        return lambda requests, attempt: service.ask_batch(requests)
    assert config.engine is not None
    return _EngineGenerator(config.engine, seed)


class _EngineGenerator:
    """An engine of the project's own; a request that is too long for it has no reply."""

    def __init__(self, config: UnifyEngineConfig, seed: int) -> None:
        from rayrl.models.builtin import resolve_model
        from rayrl.models.engine import load_engine

        model = resolve_model(config.model)
        self._seed = seed
        self._longest = config.rollout.max_prompt_tokens
        self._tokenizer = load_tokenizer(model, config.chat_template)
        ends = checkpoint_end_token_ids(self._tokenizer, model)
        self._engine = load_engine(model, config.rollout, ends, int(self._tokenizer.pad_token_id))

    def __call__(self, requests: Sequence[list[Message]], attempt: int) -> list[str | None]:
        """See unify.Generator."""
        prompts = [
            np.asarray(
                self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
                dtype=np.int64,
            )
            for messages in requests
        ]
        fitting = [i for i, ids_P in enumerate(prompts) if len(ids_P) <= self._longest]
        replies: list[str | None] = [None] * len(requests)
        if fitting:
            seed = int(np.random.SeedSequence([self._seed, attempt]).generate_state(1)[0]) >> 1
            completions = self._engine.generate([prompts[i] for i in fitting], 1, seed)
            for i, (one,) in zip(fitting, completions, strict=True):
                replies[i] = str(self._tokenizer.decode(one.token_ids_T, skip_special_tokens=True)).strip()
        return replies
