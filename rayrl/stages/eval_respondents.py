"""Who answers in `rayrl eval`: a checkpoint on engines in a pool, or a model behind an endpoint.

Both say what made their answers (`settings`, which keys the store), answer a list of requests, and hold consultations
with a simulated patient. Answers are handed to `keep` as they come, so that a run that is cut loses only what was in
flight. A request that can never be answered (too long for the window) is kept as such; one that failed isn't, and is
made again by the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rayrl.config.eval import EvalConfig, EvalModelConfig, PatientConfig
from rayrl.config.judge import EndpointConfig
from rayrl.config.parts import RolloutConfig
from rayrl.data.chat import checkpoint_end_token_ids, encode_prompt, load_tokenizer
from rayrl.data.stage_folder import fingerprint
from rayrl.errors import RunError
from rayrl.evaluation.answers import Answer, question_key
from rayrl.evaluation.consultations.cases import Case
from rayrl.evaluation.consultations.dialogue import Dialogue
from rayrl.judge.budget import BudgetExceeded
from rayrl.judge.parse import CUT, without_thoughts
from rayrl.judge.service import ModelService
from rayrl.models.builtin import resolve_model
from rayrl.models.engine import check_backend
from rayrl.models.loading import check_window, model_config
from rayrl.stages.eval_consultations import consult_by_endpoint, consult_in_pool
from rayrl.stages.sample_engines import EngineSettings, Shard, answer_shards, shard_seed
from rayrl.types import Message, PromptRow

Keep = Callable[[list[Answer]], None]
_DECODING = (
    "backend", "dtype", "max_prompt_tokens", "max_new_tokens", "min_new_tokens", "temperature", "top_p",
    "repetition_penalty",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is asked. `key`: of the messages."""

    key: str
    messages: list[Message]

    @classmethod
    def of(cls, messages: Sequence[Message], system_prompt: str | None) -> Request:
        """The messages, `system_prompt` before them where they have no system message."""
        asked = list(messages)
        if system_prompt and asked[0]["role"] != "system":
            asked = [Message(role="system", content=system_prompt), *asked]
        return cls(question_key(asked), asked)


class Respondent(Protocol):
    """What answers."""

    settings: dict[str, Any]
    """What made its answers: together with a request, all that they depend on."""

    def answer(self, requests: Sequence[Request], wanted: set[str], keep: Keep) -> None:
        """Answers those of the requests whose keys are wanted."""
        ...

    def consult(
        self, cases: Sequence[Case], patient: PatientConfig, rounds: int, system: str | None
    ) -> Iterator[list[Dialogue]]:
        """Dialogues as they end."""
        ...


class Endpoint:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(self, config: EndpointConfig, shard_size: int) -> None:
        self._config, self._shard_size = config, shard_size
        keys = ("endpoint", "model", "temperature", "max_tokens")
        self.settings = {key: getattr(config, key) for key in keys}

    def answer(self, requests: Sequence[Request], wanted: set[str], keep: Keep) -> None:
        """See Respondent. Raises RunError where the budget is spent."""
        service = ModelService(self._config)
        todo = [request for request in requests if request.key in wanted]
        for start in range(0, len(todo), self._shard_size):
            part = todo[start : start + self._shard_size]
            try:
                replies = service.ask_batch([request.messages for request in part])
            except BudgetExceeded as error:
                raise RunError(f"{error}; raise the budget, and the same command goes on") from error
            if all(reply is None for reply in replies):
                raise RunError(
                    f"{self._config.endpoint}: none of {len(part)} requests was answered; does it run, and is the "
                    "address right? Then the same command goes on"
                )
            keep([_of_reply(one.key, reply) for one, reply in zip(part, replies, strict=True) if reply is not None])

    def consult(
        self, cases: Sequence[Case], patient: PatientConfig, rounds: int, system: str | None
    ) -> Iterator[list[Dialogue]]:
        """See Respondent."""
        return consult_by_endpoint(cases, self._config, patient, rounds, system, self._shard_size)


class Checkpoint:
    """A checkpoint on engines in a pool of Ray actors. Ray must be connected when it answers."""

    def __init__(self, config: EvalConfig, model: EvalModelConfig, writes: bool) -> None:
        """`writes`: whether it will be asked for texts; log-probabilities need neither engine nor chat template.

        Raises UserError where the model, its tokenizer or the engine isn't there.
        """
        assert model.model is not None
        rollout = config.rollout_of(model)
        path = resolve_model(model.model)
        model_config(path)  # tells what is no checkpoint
        if writes:
            check_backend(rollout)
            check_window(path, rollout.max_prompt_tokens, rollout.max_new_tokens)
            self._tokenizer = load_tokenizer(path, model.chat_template, section="models")
            ends = checkpoint_end_token_ids(self._tokenizer, path)
            self._engines = EngineSettings(path, rollout, ends, int(self._tokenizer.pad_token_id))
        self._chat_template = model.chat_template
        self._seed, self._shard_size, self._start_timeout_s = config.seed, config.shard_size, config.ray.start_timeout_s
        self.settings = {"model": fingerprint(path), "chat_template": model.chat_template, **decoding(rollout)}
        if rollout.temperature:
            self.settings["seed"] = config.seed

    def answer(self, requests: Sequence[Request], wanted: set[str], keep: Keep) -> None:
        """See Respondent. Shards are cut from all requests, so that a cut run's samples are an uncut one's."""
        size, shards = self._shard_size, []
        keys: dict[int, list[str]] = {}
        for number, start in enumerate(range(0, len(requests), size)):
            prompts = []
            for request in requests[start : start + size]:
                if request.key not in wanted:
                    continue
                row = PromptRow("question", request.messages)
                encoded = encode_prompt(self._tokenizer, row, self._engines.rollout.max_prompt_tokens)
                if isinstance(encoded, str):
                    keep([Answer(request.key, None, reason=encoded)])
                else:
                    prompts.append(encoded.token_ids_P)
                    keys.setdefault(number, []).append(request.key)
            if prompts:
                shards.append(Shard(number, shard_seed(self._seed, number), prompts))
        if not shards:
            return
        for shard in answer_shards(shards, self._engines, 1, self._start_timeout_s):
            keep(
                [
                    self._of_tokens(key, ids, ended)
                    for key, (ids,), (ended,) in zip(keys[shard.number], shard.token_ids, shard.ended, strict=True)
                ]
            )

    def consult(
        self, cases: Sequence[Case], patient: PatientConfig, rounds: int, system: str | None
    ) -> Iterator[list[Dialogue]]:
        """See Respondent."""
        return consult_in_pool(
            cases, self._engines, self._chat_template, patient, rounds, system,
            self._seed, self._shard_size, self._start_timeout_s,
        )  # fmt: skip

    def _of_tokens(self, key: str, ids: list[int], ended: bool) -> Answer:
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return Answer(key, without_thoughts(text) or "", len(ids), ended)


def decoding(rollout: RolloutConfig) -> dict[str, Any]:
    """The settings of generation that an answer depends on."""
    return {key: getattr(rollout, key) for key in _DECODING}


def make_respondent(config: EvalConfig, model: EvalModelConfig) -> Respondent:
    """Who answers for a model that isn't published answers alone."""
    if model.endpoint is not None:
        return Endpoint(model.endpoint, config.shard_size)
    written = [exam for exam in config.exams if exam.mode == "answer"]
    return Checkpoint(config, model, bool(config.questions or written or config.consultations or config.safety))


def _of_reply(key: str, reply: str) -> Answer:
    ended = not reply.endswith(CUT)
    return Answer(key, without_thoughts(reply.removesuffix(CUT)) or "", ended=ended)
