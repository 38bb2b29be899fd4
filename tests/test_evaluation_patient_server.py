"""The patient of rules: over real HTTP, asked by the client that asks every model."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from judge_cases import judge_config

from rayrl.config.judge import JudgeConfig
from rayrl.evaluation.consultations.cases import Case, case_sentences, read_cases
from rayrl.evaluation.consultations.dialogue import consult, patient_messages, says_goodbye
from rayrl.evaluation.consultations.patient_server import patient_reply, served_patient
from rayrl.judge.cache import Store
from rayrl.judge.client import CallFailed, JudgeClient
from rayrl.types import Message

QUESTIONS = {
    "en": ["How long have you had this?", "Do you have a fever?", "Does anything make it worse?"],
    "zh": ["这种情况持续多久了？", "您有没有发烧？", "什么情况下会加重？"],
}
ADVICE = {"en": "Please rest and drink enough.", "zh": "请注意休息，多喝水。"}


def ask(config: JudgeConfig, batch: list[list[Message]]) -> list[str | None]:
    """What the endpoint answers to each of the requests, asked at one time."""

    async def run() -> list[str | None]:
        store = Store(config.cache)
        client = JudgeClient(config, store)
        try:
            return list(await asyncio.gather(*map(client.ask, batch)))
        finally:
            await client.close()
            store.close()

    return asyncio.run(run())


def doctor_of(language: str) -> list[str]:
    return [*QUESTIONS[language], ADVICE[language], ADVICE[language]]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_whole_consultations_end_with_a_goodbye(language: str, tmp_path: Path) -> None:
    cases = read_cases(f"cases-{language}").cases

    def doctor(batch: list[list[Message]]) -> list[str | None]:
        turns = [sum(message["role"] == "assistant" for message in talk) for talk in batch]
        return [doctor_of(language)[min(turn, 4)] for turn in turns]

    with served_patient() as url:
        config = judge_config(url, tmp_path, concurrency=24)
        found = consult(cases, doctor, lambda batch: ask(config, batch), rounds=9)
    assert {dialogue.ended for dialogue in found} == {"goodbye"}
    for case, dialogue in zip(cases, found, strict=True):
        said = [message["content"] for message in dialogue.messages if message["role"] == "user"]
        sentences = case_sentences(case.case)
        told = [text for text in said if text in sentences]
        assert said[0] == sentences[0] and len(told) == len(set(told)), "no fact is told twice"
        assert len(dialogue.messages) == 11 and says_goodbye(said[-1])
    asked_how_long = [dialogue.messages[2]["content"] for dialogue in found]
    assert sum(text in case.case for text, case in zip(asked_how_long, cases, strict=True)) >= 22


def reply(case: Case, *texts: str) -> str:
    """The patient's answer after these turns, the first its own."""
    talk = [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]
    return patient_reply(patient_messages(case, talk, case.language))


def test_answers_are_the_facts_asked_for() -> None:
    case = Case("k", "My knee hurts. It began on Monday. I am allergic to penicillin. I am 44.", None, "", "en")
    first = "My knee hurts."
    assert reply(case) == first
    assert reply(case, first, "Do you have any allergies?") == "I am allergic to penicillin."
    assert reply(case, first, "How old are you?") == "I am 44."
    assert reply(case, first, "When did your knee begin to hurt?") == "It began on Monday."
    assert "don't know" in reply(case, first, "Do you sleep well at night?")
    assert not says_goodbye(reply(case, first, "Rest your leg."))
    assert says_goodbye(reply(case, first, "Rest your leg.", "What should I do now?", "Rest it."))
    assert says_goodbye(reply(Case("o", "My knee hurts.", None, "", "en"), first, "How old are you?"))


def test_a_form_is_told_sentence_by_sentence() -> None:
    case = Case("f", "疾病：\n膝盖疼\n病情描述：\n疼了三天。\n过敏史：\n无（2020-03-26填写）", "滑膜炎", "骨科", "zh")
    assert reply(case) == "膝盖疼"
    assert reply(case, "膝盖疼", "您对什么药物过敏吗？") == "过敏史：无"
    assert reply(case, "膝盖疼", "疼了多久了？") == "疼了三天。"


def test_a_request_without_a_case_is_refused(tmp_path: Path) -> None:
    with served_patient() as url:
        with pytest.raises(CallFailed, match="400"):
            ask(judge_config(url, tmp_path), [[Message(role="user", content="Hello")]])
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(urllib.request.Request(url + "/models", data=b"{}"))
