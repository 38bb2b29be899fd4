"""The question rule: what counts as a question to the patient, and the tricks that must not pay."""

from __future__ import annotations

import pytest

from rayrl.rewards.questions import asks_question, clarifying_question, items_asked, questions_to_patient
from rayrl.types import PromptRow

REAL = [
    "How long have you had the headache?",
    "I see. When did it start?",
    "Do you have a fever, and are you taking any medicines?",
    "Any fever or vomiting?",
    "Could you tell me more about the pain?",
    "May I ask how old your son is?",
    "How bad is the pain on a scale from 1 to 10?",
    "Is the rash itchy?",
    "Have you taken anything (e.g. aspirin) for it?",
    "1. **How long** has this been going on?",
    "Doctor: When did it begin?",
    "Is there anything else I should know about your health?",
    "Does lying down make it better?",
    "Has he had a fever?",
    "What set it off?",
    "Why don't you tell me what your symptoms are?",
    "Do you smoke, and are you pregnant?",
    "Would you say the pain is sharp or dull?",
    "您头痛多久了？",
    "请问您有没有发烧？",
    "孩子几岁了？体温多少？",
    "有没有对什么药物过敏？",
    "您现在吃什么药吗",
    "可以告诉我您哪里疼吗？",
]
NOT_REAL = [
    "",
    "?",
    "???",
    "Rest well. ?",
    "You you you?",
    "Fever?",
    "What is asthma?",
    "What are the symptoms of migraine?",
    "What causes headaches?",
    "Why does this happen?",
    "How to treat a cold?",
    "How can I help you today?",
    "Can you help me?",
    "What should I do?",
    "Is my heart all right?",
    "Do you have any other questions?",
    "Would you like to know more?",
    "What can you do to prevent it?",
    "When should you see a doctor?",
    "Did you know that water helps?",
    "Have you considered seeing a doctor?",
    "You have a headache, right?",
    "Does that make sense?",
    "Look after your health, don't you know?",
    "That is reassuring for you, isn't it?",
    "So, what do you say?",
    "Is there anything else I can help you with?",
    'The leaflet asks "How long have you had it?" and more.',
    "> How long have you had it?",
    "Patient: How long have you had it?",
    "Tell me how long you have had it.",
    " ".join(["do you have a"] * 20) + "?",
    "？？？",
    "我能帮您什么？",
    "什么是高血压？",
    "我该怎么办？",
    "还有什么问题吗？",
    "您需要帮助吗？",
    "如何预防感冒？",
]


def row(missing: object, *patient: str) -> PromptRow:
    turns = patient or ("My head hurts.",)
    return PromptRow("p", [{"role": "user", "content": text} for text in turns], None, {"missing_info": missing})


@pytest.mark.parametrize("text", REAL)
def test_a_real_question_counts(text: str) -> None:
    assert asks_question(text)


@pytest.mark.parametrize("text", NOT_REAL)
def test_a_trick_does_not_count(text: str) -> None:
    assert not asks_question(text)
    assert clarifying_question(row(["duration"]), text) == 0.0


def test_grades_where_something_is_missing() -> None:
    prompt = row(["duration", "medication"])
    assert clarifying_question(prompt, "Drink water and rest.") == 0.0
    assert clarifying_question(prompt, "I see. Could you describe the pain?") == 0.65
    assert clarifying_question(prompt, "I see. Could you describe the pain?", any_question=0.5) == 0.5
    assert clarifying_question(prompt, "I see. How long have you had it?") == 1.0
    assert clarifying_question(prompt, "Which tablets are you taking?") == 1.0
    assert clarifying_question(row(["持续时间", "duration"], "我头疼。"), "您头疼多久了？") == 1.0
    assert clarifying_question(row(["allergies"], "我头疼。"), "您头疼多久了？") == 0.65


def test_pays_nothing_for_questions_where_nothing_is_missing() -> None:
    prompt = row([])
    assert clarifying_question(prompt, "Drink water and rest.") == 1.0
    assert clarifying_question(prompt, "Drink water. How long have you had it?") == 0.0
    assert clarifying_question(prompt, "多喝水。您头疼多久了？") == 0.0
    assert clarifying_question(prompt, "How can I help you today?") == 1.0  # no question about the case, on either side


@pytest.mark.parametrize("missing", [[], ["duration"]])
@pytest.mark.parametrize("response", ["", "   \n", "?!...", "。。。"])
def test_an_answer_without_words_scores_nothing(missing: list[str], response: str) -> None:
    assert clarifying_question(row(missing), response) == 0.0


def test_a_dozen_questions_do_not_pay() -> None:
    asked = "How long have you had it? Do you have a fever? Do you smoke?"
    assert clarifying_question(row(["duration"]), asked) == 1.0
    assert clarifying_question(row(["duration"]), asked + " Do you drink alcohol?") == 0.0
    assert clarifying_question(row(["duration"]), asked + " Do you drink alcohol?", max_questions=4) == 1.0
    assert clarifying_question(row(["duration"]), "How long have you had it???!!") == 1.0
    assert clarifying_question(row(["duration"]), "How long have you had it? " + "no? " * 12) == 0.0


def test_handing_back_the_patients_words_does_not_pay() -> None:
    patient = "My knee hurts. Do you have any idea what it is?"
    echo = "You wrote: Do you have any idea what it is?"
    assert clarifying_question(row(["duration"], patient), echo) == 0.0
    assert not asks_question(echo, patient)
    assert clarifying_question(row(["duration"], patient), "How long has your knee hurt?") == 1.0
    earlier_turn = row(["duration"], patient, "It is the left one.")
    assert clarifying_question(earlier_turn, echo) == 0.0


def test_items_are_known_by_their_words() -> None:
    asked = questions_to_patient("Thank you. How old are you? Do you take any tablets? Rest.")
    assert asked == ["How old are you?", "Do you take any tablets?"]
    assert items_asked(asked, ["age", "medication", "allergies"]) == {"age", "medication"}
    assert items_asked(["Is your knee swollen?"], ["knee swelling", "hip"]) == {"knee swelling"}  # not in the table
    assert items_asked(["您口腔有异味吗？"], ["口腔异味", "视力"]) == {"口腔异味"}
    assert items_asked(["When was your last period?"], ["Menstruation"]) == {"Menstruation"}


@pytest.mark.parametrize("missing", [None, "duration", [1]])
def test_a_row_that_does_not_say_what_is_missing_is_an_error(missing: object) -> None:
    with pytest.raises(ValueError, match=r"prompt 'p'.*missing_info"):
        clarifying_question(row(missing), "Rest.")
    with pytest.raises(ValueError, match="missing_info"):
        clarifying_question(PromptRow("p", [{"role": "user", "content": "Hi"}]), "Rest.")


def test_a_needless_question_may_cost_more_than_silence() -> None:
    asks = "I see. Could you describe the pain?"
    assert clarifying_question(row([]), asks, needless=-1.0) == -1.0
    assert clarifying_question(row([]), "Rest.", needless=-1.0) == 1.0
    assert clarifying_question(row(["duration"]), asks, needless=-1.0) == 0.65
    assert clarifying_question(row(["duration"]), "Rest.", needless=-1.0) == 0.0


@pytest.mark.parametrize(
    "options", [{"max_questions": 0}, {"any_question": 1.5}, {"any_question": -0.1}, {"needless": 0.1}]
)
def test_options_out_of_range_are_an_error(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="clarifying_question"):
        clarifying_question(row([]), "Rest.", **options)  # type: ignore[arg-type]
