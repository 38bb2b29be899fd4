"""Which tokens of a conversation or document the loss counts, decoded and read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayrl.data.chat import load_tokenizer
from rayrl.data.chat_masks import ConversationEncoder, DocumentEncoder, Encoded
from rayrl.errors import UserError
from rayrl.models.builtin import resolve_model
from rayrl.types import Message

TURNS = [
    Message(role="user", content="My head hurts."),
    Message(role="assistant", content="How long?"),
    Message(role="user", content="我头痛三天了。"),
    Message(role="assistant", content="See a doctor today.\n\nRest."),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve_model("tiny-random"))


def counted(tokenizer: Any, encoded: Encoded | str) -> list[str]:
    """Texts of the runs of counted tokens."""
    assert isinstance(encoded, Encoded), encoded
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.mask.astype(int), [0]])))
    return [tokenizer.decode(encoded.ids[a:b]) for a, b in edges.reshape(-1, 2)]


def test_the_assistants_turns_count_with_their_end_tokens(tokenizer: Any) -> None:
    encoded = ConversationEncoder(tokenizer, 512).encode(TURNS)
    assert counted(tokenizer, encoded) == ["How long?<|im_end|>", "See a doctor today.\n\nRest.<|im_end|>"]
    assert isinstance(encoded, Encoded)
    whole = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in TURNS).removesuffix("\n")
    assert tokenizer.decode(encoded.ids) == whole
    assert not encoded.mask[0]


def test_tokens_before_an_answer_are_those_that_an_engine_gets(tokenizer: Any) -> None:
    encoded = ConversationEncoder(tokenizer, 512).encode(TURNS[:2])
    prompt = tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
    assert isinstance(encoded, Encoded)
    assert encoded.ids[: np.flatnonzero(encoded.mask)[0]].tolist() == prompt


def test_a_system_prompt_goes_first_unless_there_is_one(tokenizer: Any) -> None:
    encoder = ConversationEncoder(tokenizer, 512, system_prompt="Be kind.")
    for turns, said in ((TURNS[:2], "Be kind."), ([Message(role="system", content="Own."), *TURNS[:2]], "Own.")):
        encoded = encoder.encode(turns)
        assert isinstance(encoded, Encoded)
        assert tokenizer.decode(encoded.ids).startswith(f"<|im_start|>system\n{said}<|im_end|>")
        assert counted(tokenizer, encoded) == ["How long?<|im_end|>"]


def test_a_long_conversation_loses_whole_turns(tokenizer: Any) -> None:
    whole = ConversationEncoder(tokenizer, 512).encode(TURNS)
    short = ConversationEncoder(tokenizer, 512).encode(TURNS[:2])
    assert isinstance(whole, Encoded) and isinstance(short, Encoded)
    cut = ConversationEncoder(tokenizer, len(whole.ids) - 1).encode(TURNS)
    assert isinstance(cut, Encoded)
    assert cut.turns_cut == 1 and whole.turns_cut == 0
    assert cut.ids.tolist() == short.ids.tolist()
    assert isinstance(ConversationEncoder(tokenizer, len(whole.ids)).encode(TURNS), Encoded)
    limit = len(short.ids) - 1
    reason = ConversationEncoder(tokenizer, limit).encode(TURNS)
    assert (
        reason == f"up to its first answer the conversation has {limit + 1} tokens, more than data.max_tokens={limit}"
    )
    reason = ConversationEncoder(tokenizer, len(whole.ids) - 1, long="reject").encode(TURNS)
    assert reason == f"the conversation has {len(whole.ids)} tokens, more than data.max_tokens={len(whole.ids) - 1}"


def test_text_that_spells_a_special_token_is_refused(tokenizer: Any) -> None:
    turns = [TURNS[0], Message(role="assistant", content="Rest.<|im_end|>")]
    assert ConversationEncoder(tokenizer, 512).encode(turns) == "message 2 spells the special token '<|im_end|>'"
    assert DocumentEncoder(tokenizer, 512).encode("a <|pad|> b") == "the text spells the special token '<|pad|>'"


def with_template(template: str) -> Any:
    return load_tokenizer(resolve_model("tiny-random"), template)


def test_a_template_without_special_tokens_inside() -> None:
    """HuatuoGPT's form: only the doctor's turn is closed by the end token."""
    tokenizer = with_template(
        "{% for m in messages %}{{ ('<病人>：' if m.role == 'user' else '<HuatuoGPT>：') + m.content }}"
        "{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<HuatuoGPT>：' }}{% endif %}"
    )
    encoded = ConversationEncoder(tokenizer, 512).encode(TURNS)
    assert counted(tokenizer, encoded) == ["How long?<|im_end|>", "See a doctor today.\n\nRest.<|im_end|>"]


def test_a_template_that_writes_thoughts_only_in_the_last_answer() -> None:
    tokenizer = with_template(
        "{% for m in messages %}{{ m.role + '\n' }}"
        "{{ '<think></think>' if loop.last and m.role == 'assistant' else '' }}"
        "{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    )
    encoded = ConversationEncoder(tokenizer, 512).encode(TURNS)
    answers = ["How long?<|im_end|>", "<think></think>See a doctor today.\n\nRest.<|im_end|>"]
    assert counted(tokenizer, encoded) == answers


def test_a_template_that_rewrites_what_was_asked_is_refused() -> None:
    tokenizer = with_template(
        "{% for m in messages %}{{ m.role + ': ' + m.content + (' (' ~ messages | length ~ ')') + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(UserError, match="what comes before answer 1 in another way later"):
        ConversationEncoder(tokenizer, 512)


def test_a_template_that_never_ends_a_turn_is_refused() -> None:
    tokenizer = with_template(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(UserError, match="doesn't close the assistant's turn with an end token"):
        ConversationEncoder(tokenizer, 512)


def test_a_template_that_closes_the_last_answer_only_is_refused() -> None:
    """HuatuoGPT-II's form: the loss would count the patient's next question."""
    tokenizer = with_template(
        "{% for m in messages %}{{ ('<问>：' if m.role == 'user' else '<答>：') + m.content }}"
        "{{ eos_token if loop.last and m.role == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<答>：' }}{% endif %}"
    )
    with pytest.raises(UserError, match="closes the last of several answers only"):
        ConversationEncoder(tokenizer, 512)


def test_a_document_ends_with_the_end_token_and_is_cut_into_parts(tokenizer: Any) -> None:
    text = "Rest, drink enough water, and take the tablets twice a day with food."
    ids = tokenizer(text)["input_ids"]
    whole = DocumentEncoder(tokenizer, 512).encode(text)
    assert not isinstance(whole, str) and len(whole) == 1
    assert whole[0].ids.tolist() == [*ids, tokenizer.eos_token_id]
    assert whole[0].mask.tolist() == [False] + [True] * len(ids)
    parts = DocumentEncoder(tokenizer, 7).encode(text)
    assert not isinstance(parts, str)
    assert (
        np.concatenate([part.ids for part in parts]).tolist()
        == [*ids, tokenizer.eos_token_id][: sum(len(p.ids) for p in parts)]
    )
    assert all(len(part.ids) <= 7 and not part.mask[0] and part.mask[1:].all() for part in parts)
    assert len(ids) + 1 - sum(len(part.ids) for part in parts) in (
        0,
        1,
    )  # a last part of one token has nothing to predict
