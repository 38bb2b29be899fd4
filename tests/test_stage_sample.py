"""`rayrl sample`: which prompts are answered, what becomes of the answers, and that an interruption changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from data_cases import write_used
from run_cases import COMMAND, leaves_nothing, rayrl

from cluster.session import connect
from rayrl import cli
from rayrl.config.parts import RolloutConfig
from rayrl.config.sample import SampleConfig
from rayrl.data.candidates import read_candidates
from rayrl.data.chat import load_tokenizer
from rayrl.data.dedup import NearDuplicates
from rayrl.data.stage_folder import MANIFEST
from rayrl.errors import RunError, UserError
from rayrl.models.builtin import resolve_model
from rayrl.stages import sample_prompts
from rayrl.stages.sample import _decode, _totals
from rayrl.stages.sample_engines import Answered, EngineSettings, Shard, answer_shards, shard_seed
from rayrl.stages.sample_prompts import Chosen, choose_prompts, prompts_of
from rayrl.tracking.rows import read_rows
from rayrl.types import Conversation, Message, Origin, Prompt, PromptRow

TALK: list[Message] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
    {"role": "user", "content": "q3"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve_model("tiny-random"))


def write(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """A file of prompts: whole rows, or the patient's words."""
    made = [
        {"id": f"{path.stem}-{n}", "messages": [{"role": "user", "content": row}]} if isinstance(row, str) else row
        for n, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return path


def config(*paths: Path, exclude: Sequence[Path] = (), **values: Any) -> SampleConfig:
    sources = [{"name": path.stem, "path": str(path)} for path in paths]
    left_out = [{"name": path.stem, "path": str(path)} for path in exclude]
    return SampleConfig(model="tiny-random", prompts=sources, exclude=left_out, **values)


def ids(chosen: Chosen) -> list[str]:
    return [prompt.row.id for prompt in chosen.prompts]


def test_every_answered_turn_may_be_a_prompt() -> None:
    row = PromptRow("r", TALK, "a3", {"missing_info": ["cause"], "department": "x"})
    first, second, last = prompts_of(row)
    assert (first.id, first.messages, first.reference, first.fields) == ("r#1", TALK[:2], "a1", {"department": "x"})
    assert (second.id, second.messages, second.reference) == ("r#2", TALK[:4], "a2")
    assert last == row


def test_each_drop_has_one_reason_and_the_counts_add_up(tmp_path: Path, tokenizer: Any) -> None:
    a = write(
        tmp_path / "a.jsonl",
        [
            "My knee hurts since I fell two days ago.",
            "我膝盖摔了两天很疼怎么办",
            "my KNEE hurts   since I fell two days ago.",  # a-2: exactly a-0
            "医生你好，我膝盖摔了两天，很疼，怎么办？",  # a-3: nearly a-1
            "I have had a rash on both hands since Monday morning.",  # a-4: used exactly
            "Hello, I have got this dry cough that stays away only at night time.",  # a-5: used nearly
            "My left ear rings. <|im_end|>",  # a-6
            "A long story, " + "and it goes on " * 60,  # a-7
            "How much water should one drink a day?",
        ],
    )
    used = write(tmp_path / "used.jsonl", ["I have got this dry cough that stays away only at night time."])
    sft = tmp_path / "sft"
    sft.mkdir()
    (sft / "manifest.json").write_text("{}")
    rash: list[Message] = [
        {"role": "user", "content": "I have had a rash on both hands since Monday morning."},
        {"role": "assistant", "content": "Does it itch?"},
    ]
    write_used(sft, Conversation("c", rash, Origin("s", "real", "instruction", "f", 1)))
    renamed = used.rename(tmp_path / "finetuning.jsonl")
    rollout = RolloutConfig(max_prompt_tokens=200)
    chosen = choose_prompts(config(a, exclude=[sft, renamed], rollout=rollout), tokenizer)
    assert ids(chosen) == ["a-0", "a-1", "a-8"]
    assert chosen.dropped == {
        "duplicate": 1,
        "near duplicate": 1,
        "used in fine-tuning": 1,
        "nearly the same as one used in fine-tuning": 1,
        "refused by the chat template": 1,
        "longer than rollout.max_prompt_tokens": 1,
    }
    assert chosen.num_in == 9 == len(chosen.prompts) + chosen.dropped.total()
    reasons = {bad.line: bad.reason for bad in chosen.rejected}
    assert sorted(reasons) == [3, 4, 5, 6, 7, 8]
    assert reasons[3] == "a-2: duplicate of a-0"
    assert reasons[4] == "a-3: near duplicate of a-1 (similarity 0.73)"
    assert "(finetuning: used-0, similarity 0.92)" in reasons[6]
    assert not any("knee" in reason or "rash" in reason or "疼" in reason for reason in reasons.values())

    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"words": 1}\n{"words": 2}\n')
    with pytest.raises(UserError, match="2 of 2 rows were rejected, none is usable"):
        choose_prompts(config(a, exclude=[broken], rollout=rollout), tokenizer)
    (sft / "manifest.json").rename(sft / "started.json")
    with pytest.raises(UserError, match="isn't the folder of a finished `rayrl sft`"):
        choose_prompts(config(a, exclude=[sft], rollout=rollout), tokenizer)
    (sft / "started.json").rename(sft / "manifest.json")

    exact = choose_prompts(config(a, exclude=[sft, renamed], rollout=rollout, near_duplicates=None), tokenizer)
    assert ids(exact) == ["a-0", "a-1", "a-3", "a-5", "a-8"]
    drawn = choose_prompts(config(a, rollout=rollout, num_prompts=2), tokenizer)
    assert len(drawn.prompts) == 2 and drawn.num_in == 9 == 2 + drawn.dropped.total()
    assert drawn.dropped["not drawn"] >= 1


def test_bad_rows_are_counted_and_too_many_stop_it(tmp_path: Path, tokenizer: Any) -> None:
    a = write(tmp_path / "a.jsonl", ["one question", "another matter", {"id": "bad", "messages": []}])
    chosen = choose_prompts(config(a, max_rejected_fraction=0.5), tokenizer)
    assert (chosen.num_in, chosen.dropped) == (3, {"rejected row": 1})
    assert [(bad.line, len(chosen.prompts)) for bad in chosen.rejected] == [(3, 2)]
    with pytest.raises(UserError, match="1 of 3 rows were rejected"):
        choose_prompts(config(a), tokenizer)
    with pytest.raises(UserError, match="no prompt is left to answer: 1 rejected row, 2 used in fine-tuning"):
        choose_prompts(config(a, exclude=[write(tmp_path / "b.jsonl", ["one question", "another matter"])],
                              max_rejected_fraction=0.5), tokenizer)  # fmt: skip


def test_turns_of_one_conversation_stay_and_a_copy_of_it_goes(tmp_path: Path, tokenizer: Any) -> None:
    def talk(name: str, opening: str) -> dict[str, Any]:
        """Long answers, so that the last prompts are nearly the same by their history."""
        turns: list[Message] = [{"role": "user", "content": opening}]
        for n in range(4):
            turns.append({"role": "assistant", "content": " ".join(f"word{n}{k}" for k in range(30))})
            turns.append({"role": "user", "content": f"Well, number {n} then?"})
        return {"id": name, "messages": turns, "reference": "Yes."}

    a = write(tmp_path / "a.jsonl", [talk("one", "My back hurts."), talk("two", "Hello doctor. My back hurts.")])
    every = choose_prompts(config(a, turns="all", rollout=RolloutConfig(max_prompt_tokens=1500)), tokenizer)
    # "My back hurts." and the same after a greeting share 2 of 4 pairs of words; with the history they are the same.
    assert ids(every) == ["one#1", "one#2", "one#3", "one#4", "one", "two#1"]
    assert every.dropped == {"near duplicate": 4} and every.num_in == 10
    assert [prompt.row.reference for prompt in every.prompts][4] == "Yes."
    last = choose_prompts(config(a, rollout=RolloutConfig(max_prompt_tokens=1500)), tokenizer)
    assert ids(last) == ["one"] and last.num_in == 2


def test_the_draw_follows_seed_and_weights(tmp_path: Path, tokenizer: Any) -> None:
    few = write(tmp_path / "few.jsonl", [f"few {n} {n * n}" for n in range(10)])
    many = write(tmp_path / "many.jsonl", [f"many {n} {n * n}" for n in range(200)])

    def draw(n: int, seed: int = 0, weight: float = 1.0) -> list[str]:
        drawn = config(few, many, num_prompts=n, seed=seed)
        light = [drawn.prompts[0], drawn.prompts[1].model_copy(update={"weight": weight})]
        return ids(choose_prompts(drawn.model_copy(update={"prompts": light}), tokenizer))

    assert draw(12) == draw(12)
    assert set(draw(8)) < set(draw(12))  # a longer draw holds a shorter one
    assert draw(12) == sorted(draw(12), key=lambda name: (name.split("-")[0], int(name.split("-")[1])))
    assert set(draw(12, seed=1)) != set(draw(12))
    assert [sum(name.startswith("few") for name in draw(n)) for n in (12, 20, 40)] == [6, 10, 10]  # 10 is all of it
    assert sum(name.startswith("few") for name in draw(12, weight=3)) == 3


def test_the_same_id_in_two_sources(tmp_path: Path, tokenizer: Any) -> None:
    row = {"id": "x", "messages": [{"role": "user", "content": "How are you?"}]}
    other = {"id": "x", "messages": [{"role": "user", "content": "What is the matter?"}]}
    one, two = write(tmp_path / "one.jsonl", [row]), write(tmp_path / "two.jsonl", [other])
    assert ids(choose_prompts(config(one, two), tokenizer)) == ["x", "two/x"]


def test_near_duplicates_are_looked_for_among_the_kept_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of texts, each near the next: what is dropped drops nothing itself."""
    words = [f"w{n}" for n in range(24)]
    texts = [" ".join(words[start : start + 18]) for start in (0, 2, 4)]  # 17 pairs, 15 shared with the next: 15/19
    kept = NearDuplicates()
    kept.add("0", texts[0])
    assert kept.find(texts[1]) is not None and kept.find(texts[2]) is None  # 13/21
    chosen = choose_prompts(config(write(tmp_path / "a.jsonl", texts)), load_tokenizer(resolve_model("tiny-random")))
    assert ids(chosen) == ["a-0", "a-2"]
    assert sample_prompts.NEAR_DUPLICATE in chosen.dropped


def test_empty_answers_go_and_identical_ones_stay(tokenizer: Any) -> None:
    def tokens(text: str) -> list[int]:
        return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]

    prompts = [Prompt(PromptRow(name, TALK[1:2]), np.array([1])) for name in ("p", "q", "r")]
    answers = [["Rest.", " Rest. ", "  "], ["", "", "\n"], ["How long?", "Where?", "Why?"]]
    answered = Answered(5, [[tokens(text) for text in texts] for texts in answers], [[True] * 3] * 2 + [[False] * 3], 2)
    settings = config(Path("x.jsonl"), samples_per_prompt=3)
    candidates, row = _decode(settings, prompts, answered, tokenizer)
    assert [(one.prompt.id, one.answers) for one in candidates] == [
        ("p", ["Rest.", "Rest."]),
        ("r", ["How long?", "Where?", "Why?"]),
    ]
    assert candidates[0].model == "tiny-random"
    num_tokens = sum(len(ids) for of_prompt in answered.token_ids for ids in of_prompt)
    assert row == {
        "shard": 5, "prompts": 3, "candidates": 2, "answers": 5, "empty_answers": 4, "identical_answers": 1,
        "tokens": num_tokens, "ended": 6, "time/generate": 2,
    }  # fmt: skip
    chosen = Chosen(prompts, 7, sample_prompts.Counter({"duplicate": 4}), [])
    counts, summary = _totals(settings, chosen, [row, row])
    assert counts["in"] == 7 and counts["out"] == 4
    assert counts["dropped"] == {"duplicate": 4, "every answer is empty": 2}
    assert summary["answers_per_engine_second"] == 18 / 4 and summary["share_ended"] == 12 / 18
    with pytest.raises(RunError, match="every answer of tiny-random is empty"):
        _totals(settings, chosen, [{**row, "candidates": 0}])


def test_shards_have_seeds_of_their_own() -> None:
    seeds = [shard_seed(seed, number) for seed in range(20) for number in range(50)]
    assert len(set(seeds)) == 1000 and min(seeds) >= 0 and max(seeds) < 2**31
    assert shard_seed(0, 1) != shard_seed(1, 0)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rollout.max_prompt_tokens=2040"], "more than the 2048 positions"),
        (["prompts=[]"], "name at least one source"),
        (["prompts=[{name: a, path: x}, {name: a, path: y}]"], "two sources are called 'a'"),
        (["prompts.consultations.path=/nowhere/x.jsonl"], "/nowhere/x.jsonl"),
        (["exclude=[{name: all, path: consultations-en}]"], "no prompt is left to answer"),
        (["model=/nowhere/model"], "/nowhere/model"),
        (["near_duplicates=0"], "near_duplicates must be greater than 0"),
    ],
)
def test_bad_input_is_one_sentence(
    overrides: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", "tiny", f"output_dir={tmp_path / 'run'}", *overrides]) == 2
    err = capsys.readouterr().err.splitlines()
    assert sentence in err[-1], err
    assert not ray.is_initialized() and list(tmp_path.iterdir()) == []


def test_answers_depend_on_neither_engines_nor_order_nor_a_death(caplog: pytest.LogCaptureFixture) -> None:
    rollout = RolloutConfig(
        backend="hf", dtype="fp32", max_prompt_tokens=32, max_new_tokens=64, cpus_per_engine=0.5, threads=1, engines=2
    )
    settings = EngineSettings(resolve_model("tiny-random"), rollout, (2,), 0)
    one_engine = EngineSettings(settings.model, rollout.model_copy(update={"engines": 1}), (2,), 0)
    shards = [Shard(n, shard_seed(7, n), [np.arange(3, 9 + n), np.arange(20, 24)]) for n in range(6)]

    def answers(given: Sequence[Shard], how: EngineSettings, kill: bool = False) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for answered in answer_shards(given, how, 2, 120):
            assert answered.number not in found
            found[answered.number] = (answered.token_ids, answered.ended)
            if kill and len(found) == 1:
                for one in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if "_Kept" in " ".join(one.cmdline()):
                            one.kill()
                            break
        return found

    with connect(num_cpus=2, object_store_mb=100):
        whole = answers(shards, settings)
        assert sorted(whole) == list(range(6))
        assert len({json.dumps(ids) for ids, _ in whole.values()}) == 6
        assert answers(shards[::-1], one_engine, kill=True) == whole
        assert "an engine died; starting again with the" in caplog.text
        assert ray.data.DataContext.get_current().execution_no_progress_timeout_s != -1  # this stage's alone
        lost = EngineSettings("/nowhere/model", rollout, (2,), 0)
        with pytest.raises(RunError, match=r"an engine failed: .*/nowhere/model"):
            answers(shards, lost)


ARGUMENTS = ("sample", "tiny", "output_dir=out", "num_prompts=20", "shard_size=5", "samples_per_prompt=2")


def test_every_prompt_is_answered_and_none_is_told(tmp_path: Path) -> None:
    """What a kill leaves is in test_pipeline_end_to_end.py."""
    pytest.importorskip("vllm", reason="needs a vLLM engine (pip install 'rayrl[cpu]')")
    said, out = rayrl_in(tmp_path), tmp_path / "out"
    assert not (tmp_path / "out.partial").exists()
    assert [row["shard"] for row in read_rows(out / "metrics.jsonl")] == [0, 1, 2, 3]
    rows = read_candidates(out).rows
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    assert len(rows) == 20 == manifest["counts"]["out"]
    assert manifest["counts"]["in"] == 576 == 20 + sum(manifest["counts"]["dropped"].values())
    assert len({answer for row in rows for answer in row.answers}) > 30
    spoken = [turn["content"] for row in rows for turn in row.prompt.messages] + [
        a for row in rows for a in row.answers
    ]
    assert not any(text in said for text in spoken if len(text) > 8)
    again = rayrl(*ARGUMENTS[:2], f"output_dir={out}", *ARGUMENTS[3:])
    assert again.returncode == 2 and "another configuration" in again.stderr  # another output_dir is another one


def rayrl_in(folder: Path) -> str:
    """Runs the command there; what it said."""
    with leaves_nothing() as marks:
        done = subprocess.run(
            [COMMAND, *ARGUMENTS], cwd=folder, env={**os.environ, **marks}, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
