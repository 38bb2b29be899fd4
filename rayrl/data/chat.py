"""Conversations to tokens through the model's own chat template: the one place where text becomes tokens.

A prompt is tokenised once, here; answers stay the engine's tokens from then on. Prompts that don't fit are rejected,
never cut, since cutting drops either the system prompt or what the patient said last. Text that spells a special token
(`<|im_end|>`) is rejected too: it would close the patient's turn and open another. Not here: packing and loss masks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from rayrl.config.trust import code_options, refusal
from rayrl.data.prompts import ReadResult, Rejected
from rayrl.errors import UserError
from rayrl.types import Message, Prompt, PromptRow

_PROBE = "Zq7"  # stands for an answer where a template is asked what it puts around one


def load_tokenizer(
    path: str,
    chat_template: str | None = None,
    *,
    section: str = "policy",
    needs_template: bool = True,
    add_pad_token: bool = False,
) -> Any:
    """The tokenizer of a checkpoint, padding on the left, with `chat_template` in place of its own where given.

    `section`: of the configuration, for errors. `needs_template`: False for plain text. `add_pad_token`: where it has
    none, the end token stands for it (what is padded is masked by length).
    Raises UserError where there is none, where it lacks a chat template, an end token or a pad token, and where the
    template fails on a conversation of a user and an assistant.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **code_options())
    except (OSError, ValueError) as error:
        if refused := refusal(path, error):
            raise refused from error
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"No tokenizer could be loaded from {path}: {reason}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if needs_template and not tokenizer.chat_template:
        raise UserError(f"The tokenizer of {path} has no chat template: set {section}.chat_template.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {path} has no end token: set eos_token in its tokenizer_config.json.")
    if tokenizer.pad_token_id is None and add_pad_token:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"The tokenizer of {path} has no pad token: set pad_token in its tokenizer_config.json "
            f"(its end token {tokenizer.eos_token!r} will do, padding is masked by length)."
        )
    if needs_template:
        _check_template(tokenizer, path, section)
    return tokenizer


def encode_prompt(
    tokenizer: Any, row: PromptRow, max_prompt_tokens: int, system_prompt: str | None = None
) -> Prompt | str:
    """The row in tokens (int64, [P]), up to where the assistant's answer begins; or the reason why it can't be used.

    `system_prompt` goes before conversations that start without a system message.
    """
    messages = with_system(row, system_prompt)
    for number, turn in enumerate(row.messages, start=1):
        found = next((token for token in special_tokens(tokenizer) if token in turn["content"]), None)
        if found is not None:
            return f"message {number} spells the special token {found!r}"
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as error:  # some templates insist on alternating turns or know no system role
        return f"the chat template refuses the conversation: {error}"
    if len(ids) > max_prompt_tokens:
        return f"the prompt has {len(ids)} tokens, more than rollout.max_prompt_tokens={max_prompt_tokens}"
    return Prompt(row, np.asarray(ids, dtype=np.int64))


def with_system(row: PromptRow, system_prompt: str | None) -> list[Message]:
    """The row's conversation, `system_prompt` before it where it has no system message of its own."""
    if system_prompt is None or row.messages[0]["role"] == "system":
        return list(row.messages)
    return [Message(role="system", content=system_prompt), *row.messages]


def encode_prompts(
    tokenizer: Any, read: ReadResult, max_prompt_tokens: int, system_prompt: str | None = None
) -> tuple[list[Prompt], ReadResult]:
    """Every row that can be used, in tokens; and `read` with the others moved to its rejected rows, in line order."""
    prompts: list[Prompt] = []
    refused: list[Rejected] = []
    for row in read.rows:
        encoded = encode_prompt(tokenizer, row, max_prompt_tokens, system_prompt)
        if isinstance(encoded, Prompt):
            prompts.append(encoded)
        else:
            refused.append(Rejected(*read.places[row.id], encoded))
    rejected = sorted(read.rejected + refused, key=lambda bad: (bad.file, bad.line))
    return prompts, replace(read, rows=[prompt.row for prompt in prompts], rejected=rejected)


def end_token_ids(tokenizer: Any, generation_config: Any | None = None) -> tuple[int, ...]:
    """Tokens that end an answer, sorted: the tokenizer's end token, those of the model's generation config, and the
    special token with which the chat template closes the assistant's turn.
    """
    ends = {tokenizer.eos_token_id}
    configured = None if generation_config is None else generation_config.eos_token_id
    if configured is not None:
        ends.update([configured] if isinstance(configured, int) else configured)
    ends.update(_closing(tokenizer)[:1])
    return tuple(sorted(ends))


def turn_end(tokenizer: Any) -> str:
    """The special token with which the chat template closes the assistant's turn; a line break where it has none."""
    closing = _closing(tokenizer)
    return str(tokenizer.convert_ids_to_tokens(closing[0])) if closing else "\n"


def _closing(tokenizer: Any) -> list[int]:
    """Special tokens behind the assistant's answer."""
    tail = _render(tokenizer, answered=True).rpartition(_PROBE)[2]
    special = set(tokenizer.convert_tokens_to_ids(special_tokens(tokenizer)))
    return [token for token in tokenizer.encode(tail, add_special_tokens=False) if token in special]


def checkpoint_end_token_ids(tokenizer: Any, path: str) -> tuple[int, ...]:
    """As `end_token_ids`, with the generation config of the checkpoint folder `path`, where it has one."""
    from transformers import GenerationConfig

    has_one = (Path(path) / "generation_config.json").exists()
    return end_token_ids(tokenizer, GenerationConfig.from_pretrained(path) if has_one else None)


def _render(tokenizer: Any, *, answered: bool) -> str:
    messages = [Message(role="user", content=_PROBE)]
    if answered:
        messages.append(Message(role="assistant", content=_PROBE))
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=not answered, tokenize=False))


def _check_template(tokenizer: Any, path: str, section: str) -> None:
    try:
        question, answered = _render(tokenizer, answered=False), _render(tokenizer, answered=True)
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(f"The chat template of {path} fails on a conversation of two turns: {error}") from error
    if question.count(_PROBE) != 1 or answered.count(_PROBE) != 2:
        raise UserError(f"The chat template of {path} leaves out what was said: correct {section}.chat_template.")


def special_tokens(tokenizer: Any) -> list[str]:
    """Texts that the tokenizer turns into single special tokens."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added} - {""})
