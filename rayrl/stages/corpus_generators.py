"""Who words questions and answers for `unify` and `check`: an endpoint's model, or an engine in the worker itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrl.config.corpus import UnifyConfig, UnifyEngineConfig
from rayrl.config.judge import EndpointConfig
from rayrl.corpus.unify import Generator
from rayrl.data.chat import checkpoint_end_token_ids, load_tokenizer
from rayrl.errors import RunError
from rayrl.judge.budget import BudgetExceeded
from rayrl.judge.parse import CUT, without_thoughts
from rayrl.judge.service import ModelService
from rayrl.types import Message

_MOST_UNANSWERED = 4
"""So many requests of a batch may fail whatever their share."""


def make_generator(config: UnifyConfig, seed: int) -> Generator:
    """The one that is configured. Needs a connection to Ray for an endpoint; `seed`: of an engine's sampling."""
    if config.endpoint is not None:
        return EndpointGenerator(config.endpoint)
    assert config.engine is not None
    return _EngineGenerator(config.engine, seed)


class EndpointGenerator:
    """An endpoint's model. Raises RunError where the budget is spent, or most requests aren't answered."""

    def __init__(self, config: EndpointConfig) -> None:
        self._service, self._address = ModelService(config), config.endpoint

    def __call__(self, requests: Sequence[list[Message]], attempt: int) -> list[str | None]:
        """See unify.Generator."""
        try:
            replies = self._service.ask_batch(requests)
        except BudgetExceeded as error:
            raise RunError(f"{error}; raise the budget, and the same command goes on") from error
        unanswered = replies.count(None)
        if unanswered > _MOST_UNANSWERED and 2 * unanswered > len(requests):
            raise RunError(
                f"{self._address}: {unanswered} of {len(requests)} requests weren't answered; does it run, and is the "
                "address right? Then the command goes on (without --from)"
            )
        return [None if reply is None or reply.endswith(CUT) else without_thoughts(reply) for reply in replies]


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
                if one.ended:
                    text = str(self._tokenizer.decode(one.token_ids_T, skip_special_tokens=True))
                    replies[i] = without_thoughts(text)
        return replies
