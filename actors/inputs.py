"""A PPO run's inputs, read and checked in the driver before anything starts: models, tokenizer, prompts, rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from actors.reward import rule_or_function
from rayrl.config.ppo import PPOConfig
from rayrl.data.chat import checkpoint_end_token_ids, encode_prompts, load_tokenizer, with_system
from rayrl.data.prompts import ReadResult, check_rejected, read_prompts, write_rejected
from rayrl.data.split import check_disjoint, choose, conversation_key, split_heldout
from rayrl.errors import UserError
from rayrl.models.builtin import resolve_model
from rayrl.models.engine import check_backend
from rayrl.models.loading import (
    check_blocks,
    check_same_shape,
    check_same_vocabulary,
    check_score_head,
    check_window,
    model_config,
    weights_hash,
)
from rayrl.rewards.mixture import Mixture
from rayrl.types import Prompt, PromptRow, Rollout


@dataclass(frozen=True)
class Inputs:
    """What the actors are started with."""

    policy_model: str
    tokenizer_path: str
    critic_model: str
    critic_new_head: bool
    reward_models: Mapping[str, str | None]
    end_token_ids: tuple[int, ...]
    pad_id: int
    train: list[Prompt]
    heldout: list[Prompt]
    ptx_rows: list[Rollout]
    rejected: ReadResult

    def write_rejected(self, folder: Path) -> None:
        """rejected.jsonl, where rows were refused."""
        if self.rejected.rejected:
            write_rejected(folder / "rejected.jsonl", self.rejected.rejected)


def read_inputs(config: PPOConfig) -> Inputs:
    """Raises UserError with one sentence for whatever can't be used."""
    _check_packages(config)
    policy = resolve_model(config.policy.model)
    check_window(policy, config.rollout.max_prompt_tokens, config.rollout.max_new_tokens)
    check_blocks(policy, config.policy.train, "policy.train")
    _check_reference(config, policy)
    tokenizer = load_tokenizer(policy, config.policy.chat_template)
    rewards = _rewards(config, policy)
    critic, new_head = _critic(config, policy, rewards)
    train, heldout, held_rows, read = _prompts(config, tokenizer)
    _check_rules(config, [prompt.row for prompt in (*train, *heldout)])
    ends = checkpoint_end_token_ids(tokenizer, policy)
    return Inputs(
        policy_model=policy,
        tokenizer_path=policy,
        critic_model=critic,
        critic_new_head=new_head,
        reward_models=rewards,
        end_token_ids=ends,
        pad_id=int(tokenizer.pad_token_id),
        train=train,
        heldout=heldout,
        ptx_rows=_ptx_rows(config, tokenizer, ends, held_rows),
        rejected=read,
    )


def _check_packages(config: PPOConfig) -> None:
    """Optional packages that the config asks for. Found, not imported: that takes seconds and is for the actors."""
    check_backend(config.rollout)
    for name in config.logging.loggers:
        package = "tensorboardX" if name == "tensorboard" else name
        if find_spec(package) is None:
            raise UserError(
                f"logging.loggers names {name}, but {package} isn't installed: install it, or take {name} off the list"
            )


def _check_reference(config: PPOConfig, policy: str) -> None:
    if config.reference.model is None:
        return
    reference = resolve_model(config.reference.model)
    if reference == policy:
        return
    check_same_shape(policy, reference, "reference")
    if not (Path(policy).is_dir() and Path(reference).is_dir()):
        raise UserError(
            f"reference.model {reference} and policy.model {policy} can be compared only as folders: "
            "leave reference.model out, and the policy's start is the reference"
        )
    if weights_hash(policy) != weights_hash(reference):
        raise UserError(
            f"reference.model {reference} holds other weights than policy.model {policy}: the KL penalty is measured "
            "from the policy's own start (merge an SFT adapter first), so give both the same checkpoint"
        )


def _rewards(config: PPOConfig, policy: str) -> dict[str, str | None]:
    """Resolved paths of reward models by source; every source is tried as far as it can be without loading a model."""
    paths: dict[str, str | None] = {}
    for entry in config.rewards:
        paths[entry.name] = None
        if entry.kind in ("rule", "function"):
            rule_or_function(entry)
        if entry.model is None:
            continue
        paths[entry.name] = path = resolve_model(entry.model)
        model_config(path)
        check_score_head(path, f"reward {entry.name!r}")
        check_same_vocabulary(policy, path, f"reward {entry.name!r}")
    try:
        Mixture(config.rewards, config.mixture)
    except ValueError as error:
        raise UserError(str(error)) from error
    return paths


def _critic(config: PPOConfig, policy: str, rewards: Mapping[str, str | None]) -> tuple[str, bool]:
    name = config.critic.model
    if not config.uses_critic:
        return policy, True
    if name == "policy":
        check_blocks(policy, config.critic.train, "critic.train")
        return policy, True
    if name.startswith("reward:"):
        path = rewards[name.removeprefix("reward:")]
        assert path is not None  # the config model has checked that it is a model reward
    else:
        path = resolve_model(name)
        model_config(path)
        check_score_head(path, "critic.model")
        check_same_vocabulary(policy, path, "critic.model")
    check_blocks(path, config.critic.train, "critic.train")
    return path, False


def _prompts(config: PPOConfig, tokenizer: Any) -> tuple[list[Prompt], list[Prompt], Sequence[PromptRow], ReadResult]:
    """To train on, to evaluate on, all rows that are held out, and what was read."""
    data, limit = config.data, config.rollout.max_prompt_tokens
    prompts, read = encode_prompts(tokenizer, read_prompts(data.prompts), limit, data.system_prompt)
    check_rejected(read, data.max_rejected_fraction)
    rows = [prompt.row for prompt in prompts]
    if data.heldout is None:
        train_rows, heldout_rows = split_heldout(rows, data.heldout_fraction)
        by_id = {prompt.row.id: prompt for prompt in prompts}
        train = [by_id[row.id] for row in train_rows]
        heldout = [by_id[row.id] for row in choose(heldout_rows, config.evaluation.num_prompts)]
    else:
        train = prompts
        apart, held = encode_prompts(tokenizer, read_prompts(data.heldout), limit, data.system_prompt)
        check_rejected(held, data.max_rejected_fraction)
        check_disjoint(rows, held.rows)
        heldout_rows = held.rows
        chosen = {row.id for row in choose(held.rows, config.evaluation.num_prompts)}
        heldout = [prompt for prompt in apart if prompt.row.id in chosen]
    if not train or not heldout:
        raise UserError(
            f"{data.prompts} has {len(rows)} usable prompts, {len(train)} to train on and {len(heldout)} held out: "
            "both need at least one"
        )
    return train, heldout, heldout_rows, read


def _check_rules(config: PPOConfig, rows: Sequence[PromptRow]) -> None:
    """Rules whose failure stops the run are tried on every row: one that lacks what a rule needs is found here."""
    for entry in config.rewards:
        if entry.kind != "rule" or entry.on_failure != "stop":
            continue
        rule = rule_or_function(entry)
        errors: list[Exception] = []
        for row in rows:
            try:
                rule(row, "Thank you.")
            except (ValueError, TypeError) as error:  # what a row lacks, or has in another form
                errors.append(error)
        if errors:
            raise UserError(
                f"reward {entry.name!r} can't score {len(errors)} of {len(rows)} prompts, so the run would stop: "
                f"{errors[0]}"
            ) from errors[0]


def _ptx_rows(config: PPOConfig, tokenizer: Any, ends: tuple[int, ...], held: Sequence[PromptRow]) -> list[Rollout]:
    """Prompt and reference answer in tokens, for the supervised term; conversations that are held out are left out."""
    if config.algorithm.ptx is None:
        return []
    source = config.algorithm.ptx.data
    prompts, read = encode_prompts(
        tokenizer, read_prompts(source), config.rollout.max_prompt_tokens, config.data.system_prompt
    )
    check_rejected(read, config.data.max_rejected_fraction)
    apart = {conversation_key(row) for row in held}
    rows = [
        _answered(tokenizer, prompt, prompt.row.reference, ends, config)
        for prompt in prompts
        if prompt.row.reference is not None and conversation_key(prompt.row) not in apart
    ]
    if not rows:
        raise UserError(f"algorithm.ptx.data {source}: no row that isn't held out has a reference answer")
    return rows


def _answered(tokenizer: Any, prompt: Prompt, answer: str, ends: tuple[int, ...], config: PPOConfig) -> Rollout:
    """The reference as the chat template writes an answer, to its end token; a longer one is cut and doesn't end."""
    turn = tokenizer.apply_chat_template(
        [*with_system(prompt.row, config.data.system_prompt), {"role": "assistant", "content": answer}],
        tokenize=True,
        return_dict=False,
    )
    start, ids = turn[: len(prompt.token_ids_P)], turn[len(prompt.token_ids_P) :]
    if start != prompt.token_ids_P.tolist() or not ids:
        raise UserError(
            f"algorithm.ptx: row {prompt.row.id!r} with its answer doesn't come out of the chat template as the prompt "
            "and some tokens after it: give a policy.chat_template that writes an answered conversation as the prompt "
            "continued"
        )
    closing = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    kept = np.array(ids[: min(closing + 1, config.rollout.max_new_tokens)], dtype=np.int64)
    ended = bool(kept[-1] in ends)
    return Rollout(prompt, 0, kept, np.zeros(len(kept), np.float32), answer, ended, 0)
