"""The general-ability probe: its questions, what counts as right, and files that can't be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrl.config.load import load, presets
from rayrl.config.sft import ProbeConfig, SFTConfig
from rayrl.data.chat import load_tokenizer
from rayrl.errors import UserError
from rayrl.models.builtin import resolve_model
from rayrl.stages.sft_probe import BUILTIN, Option, Probe, read_questions


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve_model("tiny-random"))


class Likes:
    """Says how likely each option is by a number for its answer's text."""

    def __init__(self, tokenizer: Any, scores: dict[str, float]) -> None:
        self._tokenizer, self._scores = tokenizer, scores

    def sums(self, rows: list[list[Option]], groups: list[list[int]], num_groups: int) -> tuple[np.ndarray, np.ndarray]:
        sums, counts = np.zeros(num_groups), np.zeros(num_groups)
        for row, numbers in zip(rows, groups, strict=True):
            for (ids, mask), number in zip(row, numbers, strict=True):
                counts[number] = mask.sum()
                sums[number] = self._scores[self._tokenizer.decode(ids[mask]).strip()] * mask.sum()
        return sums, counts


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("chat", [True, False])
def test_the_likelier_answer_a_token_counts_and_a_tie_doesnt(tmp_path: Path, tokenizer: Any, chat: bool) -> None:
    path = write(
        tmp_path / "probe.jsonl",
        '{"question": "1?", "right": "Paris", "wrong": ["a long wrong answer", "Rome"]}',
        '{"question": "2?", "right": "Rome", "wrong": ["Paris"]}',
        '{"question": "3?", "right": "Rome", "wrong": ["Oslo"]}',
    )
    probe = Probe.load(ProbeConfig(questions=str(path)), tokenizer, chat)
    assert probe is not None
    scores = {"Paris": -1.0, "a long wrong answer": -1.5, "Rome": -2.0, "Oslo": -2.0}
    assert probe.accuracy(Likes(tokenizer, scores)) == pytest.approx(1 / 3)


def test_the_built_in_questions() -> None:
    questions = read_questions(BUILTIN)
    assert len(questions) == 40
    chinese = [one for one in questions if any("\u4e00" <= character <= "\u9fff" for character in one.question)]
    assert len(chinese) == 20
    assert len({one.question for one in questions}) == 40
    assert all(len({one.right, *one.wrong}) == 4 for one in questions)


def test_no_questions(tokenizer: Any) -> None:
    assert Probe.load(ProbeConfig(questions=None), tokenizer, chat=True) is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "is empty"),
        (['{"question": "1?", "right": "a"}'], "line 1: Field required"),
        (['{"question": "1?", "right": "a", "wrong": []}'], "line 1: List should have at least 1 item"),
        (['{"question": "1?", "right": "a", "wrong": ["b"]}', "{"], "line 2: not JSON"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_questions(write(tmp_path / "probe.jsonl", *lines))
    with pytest.raises(UserError, match="no file"):
        read_questions(tmp_path / "none.jsonl")


def test_presets_say_what_the_papers_say() -> None:
    read = {name: load(SFTConfig, name) for name in presets("sft")}
    assert set(read) >= {"tiny", "huatuogpt", "zhongjing-pretrain", "zhongjing", "doctorglm-lora", "doctorglm-ptuning"}
    lora = read["doctorglm-lora"].model
    assert (lora.train.lora_rank, lora.train.lora_alpha, lora.train.lora_targets) == (8, 16, ["q_proj", "v_proj"])
    assert (lora.optimizer.kind, lora.optimizer.lr, read["doctorglm-lora"].batch_size) == ("lion", 2e-5, 4)
    assert read["doctorglm-ptuning"].model.train.prompt_tokens == 128
    huatuo = read["huatuogpt"]
    assert (huatuo.epochs, huatuo.batch_size, huatuo.data.max_tokens, huatuo.model.optimizer.lr) == (3, 128, 2048, 5e-5)
    before, after = read["zhongjing-pretrain"], read["zhongjing"]
    assert (before.objective, before.epochs, before.model.optimizer.lr) == ("pretrain", 4, 5e-5)
    assert (after.epochs, after.model.train.lora_rank, after.model.optimizer.lr) == (3, 16, 7e-5)
    assert before.data.validation_fraction == after.data.validation_fraction == 0.1


def test_huatuogpts_template_is_its_repositorys(tokenizer: Any) -> None:
    tokenizer = load_tokenizer(resolve_model("tiny-random"), load(SFTConfig, "huatuogpt").model.chat_template)
    turns = [{"role": "user", "content": "头痛"}, {"role": "assistant", "content": "多久了？"}] * 2
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<病人>：头痛 <HuatuoGPT>：多久了？<|im_end|>" * 2
