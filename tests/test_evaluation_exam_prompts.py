"""Questions as text, hand-checked: wording, examples, combinations; and where tokens are split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayrl.data.chat import load_tokenizer
from rayrl.evaluation.exams.prompts import ChoiceText, chat_choice, choose, encode, free_answer, plain_choice
from rayrl.models.builtin import resolve_model
from rayrl.types import ExamItem

FEVER = ExamItem("1", "Which drug lowers fever?", {"A": "Paracetamol", "B": "Insulin"}, "A", language="en")
COUGH = ExamItem("2", "咳嗽首选的检查是", {"A": "胸片", "B": "肝功能 ", "C": "血糖"}, "A")
SIGNS = ExamItem(
    "3", " 属于感冒症状的有", {"A": "发热", "B": "流涕", "C": "骨折"}, "AB", multiple=True, type="multiple"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve_model("tiny-random"))


def test_free_answers_say_what_kind_of_question_it_is() -> None:
    assert free_answer(COUGH) == [
        {
            "role": "user",
            "content": "请回答下面的选择题，并写明正确选项的字母。\n\n"
            "【单选题，只有一个选项正确】咳嗽首选的检查是\nA. 胸片\nB. 肝功能\nC. 血糖",
        }
    ]
    assert [turn["role"] for turn in free_answer(SIGNS, [COUGH])] == ["user", "assistant", "user"]
    example, answer, question = (turn["content"] for turn in free_answer(SIGNS, [COUGH]))
    assert example == free_answer(COUGH)[0]["content"]
    assert answer == "答案：A"
    assert question == (
        "请回答下面的选择题，并写明所有正确选项的字母。\n\n"
        "【多选题，正确选项可能不止一个】属于感冒症状的有\nA. 发热\nB. 流涕\nC. 骨折"
    )
    english, answered, _ = (turn["content"] for turn in free_answer(FEVER, [FEVER]))
    assert english == (
        "Please answer this multiple-choice question and say the letter of the right option.\n\n"
        "[Single choice, exactly one option is right] Which drug lowers fever?\nA. Paracetamol\nB. Insulin"
    )
    assert answered == "Answer: A"


def test_plain_text_as_mmlu_has_it() -> None:
    text = plain_choice(FEVER)
    assert text.context == "Which drug lowers fever?\nA. Paracetamol\nB. Insulin\nAnswer:"
    assert (text.space, text.texts, text.answers, text.special_tokens) == (" ", ("A", "B"), ("A", "B"), True)
    text = plain_choice(COUGH, [SIGNS])
    assert text.context == (
        "属于感冒症状的有\nA. 发热\nB. 流涕\nC. 骨折\n答案：AB\n\n咳嗽首选的检查是\nA. 胸片\nB. 肝功能\nC. 血糖\n答案："
    )
    assert (text.space, text.texts) == ("", ("A", "B", "C"))
    assert plain_choice(FEVER, [FEVER]).context.count("Answer: A\n\nWhich drug") == 1


def test_texts_continue_a_question_without_options() -> None:
    text = plain_choice(FEVER, [FEVER], "texts")
    assert text.context == (
        "Question: Which drug lowers fever?\nAnswer: Paracetamol\n\nQuestion: Which drug lowers fever?\nAnswer:"
    )
    assert (text.space, text.texts, text.answers) == (" ", ("Paracetamol", "Insulin"), ("A", "B"))
    assert text.lengths("characters").tolist() == [11, 7]
    text = plain_choice(COUGH, mode="texts")
    assert text.context == "题目：咳嗽首选的检查是\n答案："
    assert text.texts == ("胸片", "肝功能", "血糖")
    assert text.lengths("characters").tolist() == [2, 3, 2]
    assert text.lengths("bytes").tolist() == [6, 9, 6]


def test_every_combination_where_several_may_be_right() -> None:
    text = plain_choice(SIGNS)
    assert text.answers == ("A", "B", "C", "AB", "AC", "BC", "ABC")
    assert text.texts == tuple(f"{letters}\n" for letters in text.answers)  # "A" alone begins "AB" too
    assert plain_choice(SIGNS, mode="texts").texts[3:5] == ("发热；流涕\n", "发热；骨折\n")
    five = ExamItem("4", "?", dict.fromkeys("ABCDE", "x"), "AE", multiple=True)
    assert len(plain_choice(five).texts) == 31


def test_in_chat_a_combination_ends_with_the_end_of_the_turn(tokenizer: Any) -> None:
    text = chat_choice(SIGNS, tokenizer)
    assert text.texts == tuple(f"{letters}<|im_end|>" for letters in text.answers)
    question = encode(tokenizer, text)
    (end,) = {int(ids[-1]) for ids in question.continuations}
    assert tokenizer.convert_ids_to_tokens(end) == "<|im_end|>"


def test_chat_puts_the_question_into_the_template(tokenizer: Any) -> None:
    text = chat_choice(COUGH, tokenizer, [FEVER], system_prompt="Be brief.")
    assert text.context == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhich drug lowers fever?\nA. Paracetamol\nB. Insulin\n\n"
        "Write the letter of the right option and nothing else.<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\n咳嗽首选的检查是\nA. 胸片\nB. 肝功能\nC. 血糖\n\n请只写正确选项的字母。<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert (text.space, text.texts, text.special_tokens) == ("", ("A", "B", "C"), False)
    assert "例如“ACD”" in chat_choice(SIGNS, tokenizer).context
    texts = chat_choice(COUGH, tokenizer, [FEVER], "texts")
    assert texts.context == (
        "<|im_start|>user\nWhich drug lowers fever?<|im_end|>\n<|im_start|>assistant\nParacetamol<|im_end|>\n"
        "<|im_start|>user\n咳嗽首选的检查是<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_space_belongs_to_the_continuation(tokenizer: Any) -> None:
    question = encode(tokenizer, plain_choice(FEVER))
    assert tokenizer.decode(question.prompt_ids_P) == plain_choice(FEVER).context
    assert [tokenizer.decode(ids) for ids in question.continuations] == [" A", " B"]
    assert question.counts.tolist() == [len(tokenizer.encode(" A")), len(tokenizer.encode(" B"))]
    question = encode(tokenizer, plain_choice(COUGH, mode="texts"))
    assert [tokenizer.decode(ids) for ids in question.continuations] == ["胸片", "肝功能", "血糖"]


def test_white_space_at_the_end_of_the_context_too(tokenizer: Any) -> None:
    text = chat_choice(COUGH, tokenizer)
    question = encode(tokenizer, text)
    assert tokenizer.decode(question.prompt_ids_P) == text.context.removesuffix("\n")
    assert [tokenizer.decode(ids) for ids in question.continuations] == ["\nA", "\nB", "\nC"]
    for ids, one in zip(question.continuations, text.texts, strict=True):
        assert [*question.prompt_ids_P, *ids] == tokenizer.encode(text.context + one)


class Merging:
    """A tokenizer of words that reads "a b" as one token."""

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        begin = [1] if add_special_tokens else []
        return {"input_ids": [begin + [len(word) for word in text.replace("a b", "ab").split()] for text in texts]}


def test_special_tokens_and_a_continuation_that_merges() -> None:
    question = encode(Merging(), ChoiceText("see a", " ", ("cd", "eee"), ("A", "B"), True))
    assert question.prompt_ids_P.tolist() == [1, 3, 1]
    assert [ids.tolist() for ids in question.continuations] == [[2], [3]]
    assert encode(Merging(), ChoiceText("see a", " ", ("cd",), ("A",), False)).prompt_ids_P.tolist() == [3, 1]
    with pytest.raises(ValueError, match="no token of 'b' is left after 'see a'"):
        encode(Merging(), ChoiceText("see a", " ", ("c", "b"), ("A", "B"), True))


def test_choosing() -> None:
    sums, counts = np.array([-4.0, -6.0, -4.0]), np.array([1, 3, 1])
    assert choose(sums, counts, normalise=False) == 0
    assert choose(sums, counts, normalise=True) == 1
