"""Comparisons on their way to tokens: what is used, grouped, held out and left out."""

from pathlib import Path

import numpy as np
import pytest
from reward_cases import BAD, GOOD, all_texts, pair_rows, read, reward_config, write_jsonl

from rayrl.config.load import ConfigError, load
from rayrl.config.reward import RewardConfig
from rayrl.data.chat import encode_prompt, load_tokenizer
from rayrl.data.preferences import write_preferences
from rayrl.errors import UserError
from rayrl.models.builtin import resolve_model
from rayrl.stages.reward_data import AnswerEncoder
from rayrl.stages.reward_worker import better_state, evaluation_steps
from rayrl.types import Comparison, Origin, PromptRow

ORIGIN = Origin("store", "unknown", "instruction", "x", 1)


def comparison(name: str, prompt: str, a: str, b: str, verdict: str, margin: float | None = None) -> Comparison:
    row = PromptRow(prompt, [{"role": "user", "content": f"Question {prompt}"}])
    return Comparison(name, row, a, b, verdict, margin, "judge:m", {}, None, ORIGIN)  # type: ignore[arg-type]


def store(folder: Path, rows: list[Comparison]) -> Path:
    path = folder / "preferences.parquet"
    write_preferences(path, rows)
    return path


def test_each_answer_of_a_prompt_is_held_once_and_pairs_point_to_it(tmp_path: Path) -> None:
    data = read(reward_config(write_jsonl(tmp_path / "pairs.jsonl", pair_rows(30))))
    for part in (data.train, data.heldout):
        assert len(part.answers) == 5 * len(part.groups)  # two good and three bad texts, in three pairs
        for group in part.groups:
            assert len(group.pairs) == 3
            for pair in group.pairs:
                assert part.answers[pair.better].text in GOOD and part.answers[pair.worse].text in BAD
                assert {pair.better, pair.worse} <= set(group.rows)
    assert data.counts["train"]["prompts"] + data.counts["heldout"]["prompts"] == 10
    assert data.counts["dropped"] == {}
    prompts = [{answer.prompt.row.id for answer in part.answers} for part in (data.train, data.heldout)]
    assert not prompts[0] & prompts[1]


def test_tokens_are_what_ppo_would_score(tmp_path: Path) -> None:
    """The prompt up to the generation tag, then the answer's tokens with the token that ends the turn."""
    data = read(reward_config(write_jsonl(tmp_path / "pairs.jsonl", pair_rows(30))))
    tokenizer = load_tokenizer(resolve_model("tiny-random"))
    answer = data.train.answers[0]
    encoded = encode_prompt(tokenizer, answer.prompt.row, 1024)
    assert not isinstance(encoded, str)
    assert np.array_equal(answer.prompt.token_ids_P, encoded.token_ids_P)
    expected = [*tokenizer.encode(answer.text, add_special_tokens=False), tokenizer.eos_token_id]
    assert answer.response_ids_T.tolist() == expected


def test_padding_is_never_an_end_token(tmp_path: Path) -> None:
    """SmolLM2 pads with its end token; the saved model must not, or its last token would be looked past."""
    path = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(30))
    data = read(reward_config(path, model={"model": "smollm2-135m-instruct"}))
    assert data.train.answers[0].response_ids_T[-1] != data.pad_id


def test_verdicts(tmp_path: Path) -> None:
    rows = [
        comparison("1", "p1", "yes", "no", "a", 2.0),
        comparison("2", "p1", "yes", "maybe", "b", 5.0),
        comparison("3", "p1", "no", "maybe", "tie", 1.0),
        comparison("4", "p2", "yes", "no", "inconsistent"),
        comparison("5", "p2", "yes", "no", "set_aside"),
        comparison("6", "p3", "yes", "no", "a"),
    ]
    heldout = [{"name": "held", "path": str(write_jsonl(tmp_path / "held.jsonl", pair_rows(3)))}]
    sources = [{"name": "judged", "path": str(store(tmp_path, rows)), "weight": 2.0}]
    config = reward_config(
        tmp_path / "x", data={"sources": sources, "heldout": heldout}, loss={"margin_scale": 0.5, "max_margin": 2.0}
    )
    data = read(config)
    assert data.counts["dropped"] == {"verdict inconsistent": 1, "verdict set_aside": 1}
    group = data.train.groups[0]
    named = [
        (all_texts(data.train)[pair.better], all_texts(data.train)[pair.worse], pair.tie, pair.margin, pair.weight)
        for pair in group.pairs
    ]
    assert named == [
        ("yes", "no", False, 1.0, 2.0),
        ("maybe", "yes", False, 2.0, 2.0),
        ("no", "maybe", True, 0.5, 2.0),
    ]
    assert len(data.train.groups) == 2 and len(group.rows) == 3
    without = read(config.model_copy(update={"loss": config.loss.model_copy(update={"ties": False})}))
    assert without.counts["dropped"]["verdict tie"] == 1 and len(without.train.groups[0].pairs) == 2


def test_held_out_prompts_are_taken_out_of_training_and_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(30))
    held = write_jsonl(tmp_path / "held.jsonl", pair_rows(6))
    sources, heldout = [{"name": "all", "path": str(path)}], [{"name": "held", "path": str(held)}]
    data = read(reward_config(path, data={"sources": sources, "heldout": heldout}))
    assert data.counts["dropped"] == {"the prompt is held out": 6}
    assert data.counts["train"]["prompts"] == 8 and data.counts["heldout"]["prompts"] == 2


def test_what_cant_be_used_is_rejected_with_its_line(tmp_path: Path) -> None:
    rows = pair_rows(60)
    rows[1]["chosen"] = "Stop <|im_end|> here"
    rows[4]["rejected"] = "word " * 600
    data = read(reward_config(write_jsonl(tmp_path / "pairs.jsonl", rows)))
    assert [(bad.line, bad.reason.split(",")[0]) for bad in data.rejected] == [
        (2, "answer a spells the special token '<|im_end|>'"),
        (5, "answer b has 1802 tokens"),
    ]
    assert "more than data.max_answer_tokens=512" in data.rejected[1].reason
    assert data.counts["dropped"] == {"prompt or answer can't be used": 2}
    rows = [row | {"chosen": "x <|im_end|>"} for row in rows]
    with pytest.raises(UserError, match="rejected"):
        read(reward_config(write_jsonl(tmp_path / "bad.jsonl", rows)))


def test_a_bad_source_is_judged_by_itself_and_rows_without_a_verdict_are_good_ones(tmp_path: Path) -> None:
    good, bad = pair_rows(200), [row | {"chosen": "x <|im_end|>"} for row in pair_rows(12)]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in (("good", good), ("bad", bad))]
    for order in (paths, paths[::-1]):
        sources = [{"name": path.stem, "path": str(path)} for path in order]
        with pytest.raises(UserError, match=r"bad\.jsonl: 12 of 12 rows were rejected, none is usable"):
            read(reward_config(paths[0], data={"sources": sources, "heldout_fraction": 0.25}))
    rows = [comparison(str(n), "p", "yes", "no", "inconsistent") for n in range(90)]
    rows += [comparison(f"long-{n}", "q", "yes " * 3000, "no", "a") for n in range(4)]
    sources = [{"name": "judge", "path": str(store(tmp_path, rows))}, {"name": "good", "path": str(paths[0])}]
    data = read(reward_config(paths[0], data={"sources": sources, "heldout_fraction": 0.25}))
    assert data.counts["dropped"]["verdict inconsistent"] == 90 and len(data.rejected) == 4


def test_equal_answers_make_no_pair(tmp_path: Path) -> None:
    data = reward_config(tmp_path / "x").data
    encoder = AnswerEncoder(load_tokenizer(resolve_model("tiny-random")), None, data)
    assert encoder.encode(comparison("1", "p", "yes", "yes", "a")) == "both answers are the same"


def test_no_decided_pair_to_evaluate_on_is_an_error(tmp_path: Path) -> None:
    tied = [comparison("1", "p1", "yes", "no", "tie")]
    path = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(30))
    sources = [{"name": "made", "path": str(path)}]
    heldout = [{"name": "tied", "path": str(store(tmp_path, tied))}]
    with pytest.raises(UserError, match="to evaluate on"):
        read(reward_config(path, data={"sources": sources, "heldout": heldout}))


def test_margin_of_another_pair_of_the_same_prompt_isnt_mixed_up(tmp_path: Path) -> None:
    data = read(reward_config(write_jsonl(tmp_path / "pairs.jsonl", pair_rows(30)), loss={"margin_scale": 1.0}))
    pairs = [pair for group in data.heldout.groups for pair in group.pairs]
    assert [pair.margin for pair in pairs] == [row.margin for row in data.heldout_comparisons]


def test_evaluations() -> None:
    assert evaluation_steps(10, 4, 2, 1) == [3, 5]
    assert evaluation_steps(10, 4, 1, 2) == [2, 3]
    assert evaluation_steps(3, 4, 1, 4) == [1]


def test_best_is_the_most_accurate_and_of_equals_the_one_with_less_loss() -> None:
    start = {"step": 0, "best_step": None, "best_accuracy": -1.0, "best_loss": float("inf")}
    first = better_state(start, 5, {"accuracy": 0.7, "loss": 0.6})
    worse = better_state(first, 10, {"accuracy": 0.6, "loss": 0.5})
    equal = better_state(worse, 15, {"accuracy": 0.7, "loss": 0.55})
    assert [state["best_step"] for state in (first, worse, equal)] == [5, 5, 15]
    assert equal["step"] == 15


@pytest.mark.parametrize("preset", ["tiny", "smollm2", "huatuogpt", "zhongjing"])
def test_presets_load(preset: str) -> None:
    assert load(RewardConfig, preset).command == "reward"


def test_config_names_what_contradicts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be shared evenly"):
        load(RewardConfig, "tiny", ["prompts_per_step=5"])
    config = load(RewardConfig, "tiny")
    twice = [config.data.sources[0].model_dump()] * 2
    with pytest.raises(ValueError, match="names must differ"):
        RewardConfig.model_validate(config.model_dump() | {"data": {"sources": twice}})
