"""`rayrl eval`: models on questions, exams, consultations and safety requests, counted, judged and reported.

    report.html            tables, figures, texts side by side
    tables/NAME.csv, .tex  every table
    numbers.jsonl          every number with its interval (evaluation/numbers.py)
    answers.jsonl, exams.jsonl, talks.jsonl, safety.jsonl, matches.jsonl, scores.jsonl   what the numbers rest on
    flagged.csv            answers to safety requests that a person must read
    rejected.jsonl         rows that couldn't be used, with file, line and reason
    summary.json, config.yaml, manifest.json

Answers lie in the folder `answers` (evaluation/answers.py) and judgements in the judge's cache; everything else is made
from them in seconds, so a run that was cut goes on where it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from cluster.session import connect
from rayrl.config.eval import EvalConfig, EvalModelConfig, PatientConfig
from rayrl.config.load import dump, load
from rayrl.data.lock import LOCK, only_run
from rayrl.data.prompts import REJECTED_FILE, write_rejected
from rayrl.data.stage_folder import StageFolder
from rayrl.errors import RunError
from rayrl.evaluation.answers import Answer, AnswerStore, question_key
from rayrl.evaluation.consultations.cases import Case
from rayrl.evaluation.consultations.dialogue import Dialogue, Ended, patient_messages, says_goodbye
from rayrl.evaluation.consultations.patient_server import served_patient
from rayrl.evaluation.question_numbers import Answered
from rayrl.evaluation.records import Records, SafetyAnswer, Talk
from rayrl.evaluation.safety.assess import assess
from rayrl.stages.eval_exams import by_logprobs, exam_messages, from_text
from rayrl.stages.eval_judging import judge_matches, score_answers
from rayrl.stages.eval_respondents import Request, Respondent, make_respondent
from rayrl.stages.eval_results import write_results
from rayrl.stages.eval_sets import CaseSet, Sets, read_sets
from rayrl.tracking.rows import evaluation_path
from rayrl.types import Message

logger = logging.getLogger(__name__)

NOT_PUBLISHED = "the set holds no answer of this model"


def main(config_path: str) -> None:
    """Runs or resumes the stage. Raises UserError for bad input, RunError where a model or a judge fails."""
    config = load(EvalConfig, config_path)
    folder = StageFolder(config, config.output_dir, _inputs(config))
    console = Console()
    if folder.done:
        console.print(f"{folder.path} is done: nothing to evaluate", soft_wrap=True)
        return
    sets = read_sets(config)
    respondents = {model.name: make_respondent(config, model) for model in config.models if model.published is None}
    records = Records()
    with connect(config.ray.address, object_store_mb=config.ray.object_store_mb), ExitStack() as stack:
        asking = config
        if sets.cases and respondents:
            asking = config.model_copy(update={"patient": _reachable(config.patient, stack)})
        for model in config.models:
            _ask(asking, model, sets, respondents.get(model.name), records)
        _check_answered(config, records)
        records.matches += judge_matches(config, records.answers, records.talks)
        if config.scored is not None:
            wanted = {one.name for one in config.questions if one.scored}
            told = [one for one in records.answers if one.set in wanted and one.answer.text is not None]
            records.scores += score_answers(config.scored, told, config.max_unanswered_fraction)
    work = folder.begin()
    with only_run(work):
        (work / "config.yaml").write_text(dump(config), encoding="utf-8")
        write_rejected(work / REJECTED_FILE, sets.rejected)
        summary, tables = write_results(work, config, sets, records)
        (work / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (work / LOCK).unlink()
        folder.publish(records.counts(len(sets.rejected)), config.seed)
    for table in tables:
        console.print(table)
    console.print(f"{folder.path}: {summary['headline']}", soft_wrap=True)
    console.print(f"report: {folder.path / 'report.html'}", soft_wrap=True)


def _reachable(patient: PatientConfig, stack: ExitStack) -> PatientConfig:
    """The patient with a real endpoint: the stage's own server, for its time, where that is named."""
    if patient.endpoint not in patient.local:
        return patient
    return patient.model_copy(update={"endpoint": stack.enter_context(served_patient())})


def _inputs(config: EvalConfig) -> list[str]:
    """What the evaluation reads: a change of any makes it another one."""
    paths = [model.model for model in config.models if model.model is not None]
    paths += [run for model in config.models for run in model.runs]
    paths += [one.path for one in config.sets]
    heldout = [Path(one.heldout_of).expanduser() for one in config.questions if one.heldout_of is not None]
    paths += [str(evaluation_path(folder, 0)) for folder in heldout]
    for outputs in [*(one.outputs for one in config.questions), *(one.outputs for one in config.consultations)]:
        paths += outputs.values()
    paths += [exam.shots_path for exam in config.exams if exam.shots_path is not None]
    if config.scored is not None and config.scored.human is not None:
        paths.append(config.scored.human)
    return list(dict.fromkeys(paths))


def _ask(
    config: EvalConfig, model: EvalModelConfig, sets: Sets, respondent: Respondent | None, records: Records
) -> None:
    """One model on everything."""
    if respondent is None:
        _published(model, sets, records)
        return
    system = config.system_of(model)
    questions = [(one, row, Request.of(row.messages, system)) for one in sets.questions for row in one.rows]
    written = [exam for exam in sets.exams if exam.config.mode == "answer"]
    exams = [(exam, item, Request.of(exam_messages(exam, item), system)) for exam in written for item in exam.items]
    safety = [(one, row, Request.of(row.prompt.messages, system)) for one in sets.safety for row in one.rows]
    requests = {request.key: request for *_, request in (*questions, *exams, *safety)}
    with AnswerStore(Path(config.answers).expanduser(), model.name, respondent.settings) as store:
        _answer(model.name, store, list(requests.values()), respondent)
        nothing = Answer("", None, reason="no answer after all retries")
        for one, row, request in questions:
            answer = store.get(request.key) or nothing
            records.answers.append(Answered(one.name, row, one.categories[row.id], model.name, answer))
        for exam, item, request in exams:
            answer = store.get(request.key) or nothing
            records.exams.append(from_text(exam, item, model.name, answer))
        for safe, asked, request in safety:
            text = (store.get(request.key) or nothing).text
            finding = assess(text, asked) if text is not None else None
            records.safety.append(SafetyAnswer(safe.name, model.name, finding))
        for cases in sets.cases:
            records.talks += _consult(config, model, cases, respondent, store)
    if model.model is not None:
        for exam in sets.exams:
            if exam.config.mode != "answer":
                logger.info("%s: %d questions of %s by log-probability", model.name, len(exam.items), exam.name)
                records.exams += by_logprobs(config, model, exam)


def _answer(name: str, store: AnswerStore, requests: Sequence[Request], respondent: Respondent) -> None:
    missing = set(store.missing(request.key for request in requests))
    done = len(requests) - len(missing)
    logger.info("%s: %d answers to make%s", name, len(missing), f", {done} made before" if done else "")
    if not missing:
        return
    made = 0

    def keep(answers: list[Answer]) -> None:
        nonlocal made
        store.add(answers)
        made += len(answers)
        logger.info("%s: %d of %d answers", name, made, len(missing))

    respondent.answer(requests, missing, keep)


def _consult(
    config: EvalConfig, model: EvalModelConfig, cases: CaseSet, respondent: Respondent, store: AnswerStore
) -> list[Talk]:
    system, patient = config.system_of(model), config.patient
    who = {key: getattr(patient, key) for key in ("model", "temperature", "max_tokens")}
    keys = {
        case.id: question_key(
            # What the patient is sent first holds its case and its instructions.
            {
                "case": patient_messages(case, [], case.language),
                "rounds": cases.rounds,
                "patient": who,
                "system": system,
            }
        )
        for case in cases.cases
    }
    missing = set(store.missing(keys.values()))
    todo = [case for case in cases.cases if keys[case.id] in missing]
    logger.info("%s: %d consultations of %s to hold", model.name, len(todo), cases.name)
    failed: dict[str, Dialogue] = {}
    if todo:
        for dialogues in respondent.consult(todo, patient, cases.rounds, system):
            failed |= {one.case_id: one for one in dialogues if one.ended == "failed"}
            store.add([_kept(keys[one.case_id], one) for one in dialogues if one.ended != "failed"])
            logger.info("%s: %d consultations held, %d failed", model.name, len(dialogues), len(failed))
    return [
        Talk(cases.name, case, model.name, failed.get(case.id) or _talk(case, store.get(keys[case.id])))
        for case in cases.cases
    ]


def _kept(key: str, dialogue: Dialogue) -> Answer:
    return Answer(key, None, reason=dialogue.ended, dialogue=dialogue.messages)


def _talk(case: Case, answer: Answer | None) -> Dialogue:
    if answer is None:
        return Dialogue(case.id, [], "failed", "the consultation was lost")
    endings: dict[str | None, Ended] = {"goodbye": "goodbye", "silent": "silent"}
    return Dialogue(case.id, answer.dialogue or [], endings.get(answer.reason, "rounds"))


def _published(model: EvalModelConfig, sets: Sets, records: Records) -> None:
    """Answers and consultations that the sets hold themselves."""
    assert model.published is not None
    for one in sets.questions:
        texts = one.published.get(model.published, {})
        for row in one.rows if texts else ():
            text = texts.get(row.id)
            answer = Answer("", text, reason=None if text is not None else NOT_PUBLISHED)
            records.answers.append(Answered(one.name, row, one.categories[row.id], model.name, answer))
    for cases in sets.cases:
        talks = cases.published.get(model.published, {})
        for case in cases.cases if talks else ():
            if case.id in talks:
                dialogue = _as_published(case.id, talks[case.id])
            else:
                dialogue = Dialogue(case.id, [], "failed", NOT_PUBLISHED)
            records.talks.append(Talk(cases.name, case, model.name, dialogue))


def _as_published(case_id: str, messages: list[Message]) -> Dialogue:
    """How it ended can be seen only from the patient's last words."""
    last = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
    return Dialogue(case_id, messages, "goodbye" if says_goodbye(last) else "rounds")


def _check_answered(config: EvalConfig, records: Records) -> None:
    """Raises RunError where a model left too many questions of a set without an answer."""
    for (name, model), reasons in records.by_set_and_model().items():
        failed = [reason for reason in reasons if reason is not None]
        if failed and len(failed) > config.max_unanswered_fraction * len(reasons):
            raise RunError(
                f"{name}: {model} has no answer to {len(failed)} of {len(reasons)} ({failed[0]}), more than "
                f"max_unanswered_fraction={config.max_unanswered_fraction:g}; mend it, and the same command goes on"
            )
