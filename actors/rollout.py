"""The rollout actor: an engine's lifetime. What an engine is stands in rayrl/models/engine.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.worker import Worker, busy
from rayrl.config.parts import RolloutConfig
from rayrl.config.trust import code_options
from rayrl.models.engine import Completion, load_engine
from rayrl.models.weights import Bucket
from rayrl.types import Prompt, Rollout, RolloutInfo


class RolloutActor(Worker):
    """One engine."""

    @busy
    def setup(
        self,
        model: str,
        tokenizer_path: str,
        config: RolloutConfig,
        end_token_ids: Sequence[int],
        pad_id: int,
        backend: str,
    ) -> dict[str, str]:
        """Loads the engine; returns what it is."""
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, **code_options())
        self.engine = load_engine(model, config, end_token_ids, pad_id, backend)
        return dict(self.engine.describe())

    @busy
    def generate(self, chunks: Sequence[Sequence[Prompt]], num_samples: int, seed: int, num_texts: int) -> list[Any]:
        """rollouts, infos, rollouts, infos ... (call with num_returns = 2 * chunks); the chunks are one batch."""
        prompts = [prompt for chunk in chunks for prompt in chunk]
        completions = iter(self.engine.generate([p.token_ids_P for p in prompts], num_samples, seed))
        out: list[Any] = []
        for chunk in chunks:
            rollouts = [self._rollout(prompt, i, c) for prompt in chunk for i, c in enumerate(next(completions))]
            infos = [
                RolloutInfo(
                    r.prompt.row.id, len(r.response_ids_T), r.ended, r.weight_version, r.text if i < num_texts else None
                )
                for i, r in enumerate(rollouts)
            ]
            out += [rollouts, infos]
        return out

    def _rollout(self, prompt: Prompt, index: int, one: Completion) -> Rollout:
        text = self._tokenizer.decode(one.token_ids_T, skip_special_tokens=True)
        return Rollout(prompt, index, one.token_ids_T, one.logprobs_T, text, one.ended, one.weight_version)

    @busy
    def begin_update(self) -> None:
        """Opens a weight update."""
        self.engine.begin_update()

    @busy
    def load_bucket(self, bucket: Bucket) -> None:
        """Loads one bucket."""
        self.engine.load_bucket(bucket)

    @busy
    def finish_update(self, version: int) -> None:
        """Closes the update."""
        self.engine.finish_update(version)

    @busy
    def sleep(self) -> None:
        """Frees device memory."""
        self.engine.sleep()

    @busy
    def wake(self) -> None:
        """Takes it back."""
        self.engine.wake()

    @busy
    def transfer(self, method: str, *args: Any) -> Any:
        """vLLM's own weight-sync control plane, for its nccl and ipc backends."""
        from rayrl.models.engine import VLLMEngine

        if not isinstance(self.engine, VLLMEngine):
            raise TypeError(f"{method} needs a vLLM engine")
        return getattr(self.engine.llm, method)(*args)
