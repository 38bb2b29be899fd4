"""Consultations of a doctor's model with a simulated patient, many at one time.

The doctor is an endpoint's model, asked from here, or an engine in a pool's worker, which asks the patient's endpoint
itself: a whole consultation is one task, so that whichever worker dies, only its consultations are held again, and what
the patient has said then comes from the cache. The loop is evaluation/consultations/dialogue.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from rayrl.config.eval import PatientConfig
from rayrl.config.judge import EndpointConfig
from rayrl.data.chat import encode_prompt, load_tokenizer
from rayrl.errors import RunError
from rayrl.evaluation.consultations.cases import Case
from rayrl.evaluation.consultations.dialogue import Dialogue, consult
from rayrl.judge.budget import BudgetExceeded
from rayrl.judge.parse import CUT, without_thoughts
from rayrl.judge.service import ModelService
from rayrl.models.engine import load_engine
from rayrl.stages.pool import answers
from rayrl.stages.sample_engines import EngineSettings, engine_pool, shard_seed
from rayrl.types import Message, PromptRow

_TASK = pa.schema([("number", pa.int64()), ("seed", pa.int64()), ("cases", pa.string())])


@dataclass(frozen=True)
class Speaker:
    """A model behind an endpoint, as a consultation's doctor or patient."""

    service: ModelService

    def __call__(self, talks: list[list[Message]]) -> list[str | None]:
        """What it says next in each of the talks. Raises RunError where the budget is spent."""
        try:
            replies = self.service.ask_batch(talks)
        except BudgetExceeded as error:
            raise RunError(f"{error}; raise the budget, and the same command goes on") from error
        return [None if reply is None else without_thoughts(reply.removesuffix(CUT)) or "" for reply in replies]


def consult_by_endpoint(
    cases: Sequence[Case],
    doctor: EndpointConfig,
    patient: PatientConfig,
    rounds: int,
    system: str | None,
    batch_size: int,
) -> Iterator[list[Dialogue]]:
    """Dialogues of the cases, a batch of consultations after the other."""
    speakers = Speaker(ModelService(doctor)), Speaker(ModelService(patient))
    for start in range(0, len(cases), batch_size):
        yield consult(cases[start : start + batch_size], *speakers, rounds, doctor_prompt=system)


def consult_in_pool(
    cases: Sequence[Case],
    engines: EngineSettings,
    chat_template: str | None,
    patient: PatientConfig,
    rounds: int,
    system: str | None,
    seed: int,
    batch_size: int,
    start_timeout_s: float,
) -> Iterator[list[Dialogue]]:
    """Dialogues of the cases with a checkpoint, as its workers end them. Ray must be connected."""
    ModelService(patient)  # the cache's actor lives as long as whoever asked first: this process, not a worker
    tasks = {}
    for number, start in enumerate(range(0, len(cases), batch_size)):
        part = json.dumps([asdict(case) for case in cases[start : start + batch_size]])
        row = {"number": number, "seed": shard_seed(seed, number), "cases": part}
        tasks[number] = pa.Table.from_pylist([row], schema=_TASK)
    pool = engine_pool(engines.rollout, start_timeout_s)
    arguments = (engines, chat_template, patient, rounds, system)
    for answer in answers(tasks, ConsultationWorker, arguments, pool):
        yield [Dialogue(**one) for one in json.loads(answer["dialogues"])]


class ConsultationWorker:
    """An engine that is the doctor: what Ray Data calls with a batch of cases in its actor."""

    def __init__(
        self,
        engines: EngineSettings,
        chat_template: str | None,
        patient: PatientConfig,
        rounds: int,
        system: str | None,
    ) -> None:
        self._engine = load_engine(engines.model, engines.rollout, engines.end_token_ids, engines.pad_id)
        self._tokenizer = load_tokenizer(engines.model, chat_template, section="models")
        self._longest = engines.rollout.max_prompt_tokens
        self._patient = Speaker(ModelService(patient))
        self._rounds, self._system, self._seed, self._round = rounds, system, 0, 0

    def __call__(self, table: pa.Table) -> pa.Table:
        """Holds one batch of consultations."""
        (row,) = table.to_pylist()
        self._seed, self._round = row["seed"], 0
        cases = [Case(**case) for case in json.loads(row["cases"])]
        found = consult(cases, self._doctor, self._patient, self._rounds, doctor_prompt=self._system)
        texts = json.dumps([asdict(dialogue) for dialogue in found])
        return pa.table({"number": [row["number"]], "dialogues": [texts]})

    def _doctor(self, talks: Sequence[Sequence[Message]]) -> list[str | None]:
        replies: list[str | None] = [None] * len(talks)
        prompts: dict[int, Any] = {}
        for i, talk in enumerate(talks):
            encoded = encode_prompt(self._tokenizer, PromptRow("talk", list(talk)), self._longest)
            if not isinstance(encoded, str):
                prompts[i] = encoded.token_ids_P
        if prompts:
            seed = shard_seed(self._seed, self._round)
            self._round += 1
            completions = self._engine.generate(list(prompts.values()), 1, seed)
            for i, (one,) in zip(prompts, completions, strict=True):
                text = str(self._tokenizer.decode(one.token_ids_T, skip_special_tokens=True)).strip()
                replies[i] = without_thoughts(text) or ""
        return replies
