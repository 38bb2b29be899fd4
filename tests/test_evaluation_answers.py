"""Answers kept on disk: made once, shared between runs, whole after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.errors import UserError
from rayrl.evaluation.answers import ANSWERS, SETTINGS, Answer, AnswerStore, question_key

ANSWERED = Answer("k1", "Rest it.", 4, True)
KINDS = [
    ANSWERED,
    Answer("k2", None, reason="too long"),
    Answer("k3", "", 0, False),
    Answer("k4", None, reason="goodbye", dialogue=[{"role": "user", "content": "咳嗽。\n\u2028再见"}]),
    Answer("k5", None, logprobs=[-1.25, -0.5]),
]


def keep(root: Path, answers: list[Answer], settings: dict[str, Any] | None = None, name: str = "sft") -> Path:
    with AnswerStore(root, name, {"model": "m", "seed": 0} if settings is None else settings) as store:
        store.add(answers)
    return store.folder


def test_every_kind_of_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = keep(tmp_path, KINDS)
    with AnswerStore(tmp_path, "sft", {"model": "m", "seed": 0}) as store:
        assert store.folder == folder
        assert [store.get(one.key) for one in KINDS] == KINDS
        assert store.get("other") is None
        assert store.missing(["k9", "k1", "k8", "k9", "k3"]) == ["k9", "k8"]


def test_an_answer_is_known_as_soon_as_it_is_added_and_the_last_one_counts(tmp_path: Path) -> None:
    with AnswerStore(tmp_path, "sft", {}) as store:
        assert store.missing(["k1"]) == ["k1"]
        store.add([ANSWERED])
        assert store.missing(["k1"]) == [] and store.get("k1") == ANSWERED
        store.add([])
        store.add([Answer("k1", "Rest it for a week.")])
    with AnswerStore(tmp_path, "sft", {}) as store:
        assert store.get("k1") == Answer("k1", "Rest it for a week.")


def test_runs_share_a_folder_by_settings_whatever_they_call_the_model(tmp_path: Path) -> None:
    first = keep(tmp_path, [ANSWERED], {"model": "m", "seed": 0}, "start")
    with AnswerStore(tmp_path, "before training", {"seed": 0, "model": "m"}) as store:
        assert store.folder == first and store.get("k1") == ANSWERED
    assert [path.name for path in tmp_path.iterdir()] == [first.name] and first.name.startswith("start-")


@pytest.mark.parametrize("settings", [{"model": "m", "seed": 1}, {"model": "m2", "seed": 0}, {"model": "m"}, {}])
def test_other_settings_have_another_folder(tmp_path: Path, settings: dict[str, Any]) -> None:
    first = keep(tmp_path, [ANSWERED])
    with AnswerStore(tmp_path, "sft", settings) as store:
        assert store.folder != first and store.get("k1") is None


def test_settings_say_what_made_the_answers(tmp_path: Path) -> None:
    settings = {"model": "指纹", "temperature": 0.7, "system": "half a pair: \ud83d"}
    folder = keep(tmp_path, [], settings)
    text = (folder / SETTINGS).read_text(encoding="utf-8")
    assert json.loads(text) == settings and "指纹" in text
    assert {path.name for path in folder.iterdir()} == {SETTINGS, ANSWERS, ".lock"}


def test_a_name_with_the_letters_of_patterns_finds_its_folder_again(tmp_path: Path) -> None:
    folder = keep(tmp_path, [ANSWERED], name="[x]*?")
    assert keep(tmp_path, [], name="[x]*?") == folder


def test_only_one_at_a_time_may_have_it_open(tmp_path: Path) -> None:
    with AnswerStore(tmp_path, "sft", {}) as store:
        store.add([ANSWERED])
        second = AnswerStore(tmp_path, "sft", {})
        with pytest.raises(UserError, match=f"answers {store.folder} is in use by another run.*another answers"):
            second.__enter__()
        with AnswerStore(tmp_path, "sft", {"seed": 1}):  # another folder isn't locked
            pass
    with second:
        assert second.get("k1") == ANSWERED


def test_an_error_inside_lets_go_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="judge"), AnswerStore(tmp_path, "sft", {}) as store:
        store.add([ANSWERED])
        raise RuntimeError("the judge is dead")
    assert keep(tmp_path, [], {}) == store.folder


def test_a_damaged_line_is_named_and_lets_go_of_the_folder(tmp_path: Path) -> None:
    folder = keep(tmp_path, [ANSWERED], {"a": 1})
    good = (folder / ANSWERS).read_bytes()
    (folder / ANSWERS).write_bytes(b"{torn}\n" + good)
    damaged = AnswerStore(tmp_path, "sft", {"a": 1})
    with pytest.raises(ValueError, match="line 1: not JSON"):
        damaged.__enter__()
    (folder / ANSWERS).write_bytes(good)
    with AnswerStore(tmp_path, "sft", {"a": 1}) as store:
        assert store.get("k1") == ANSWERED


@pytest.mark.parametrize("cut", [1, 2, 10, 25, -1])
def test_a_last_line_half_written_is_made_again_and_spoils_no_other(tmp_path: Path, cut: int) -> None:
    """`cut` bytes of the last line are there; -1: all of it but its end. In all cases it counts as not written."""
    folder = keep(tmp_path, [ANSWERED, Answer("k2", "多喝水")])
    lines = (folder / ANSWERS).read_bytes().splitlines(keepends=True)
    (folder / ANSWERS).write_bytes(lines[0] + lines[1][:cut])
    with AnswerStore(tmp_path, "sft", {"model": "m", "seed": 0}) as store:
        assert store.missing(["k1", "k2"]) == ["k2"]
        store.add([Answer("k3", "Drink.")])
        assert store.missing(["k1", "k2", "k3"]) == ["k2"]
    with AnswerStore(tmp_path, "sft", {"model": "m", "seed": 0}) as store:
        assert store.missing(["k1", "k2", "k3"]) == ["k2"]
        assert store.get("k1") == ANSWERED and store.get("k3") == Answer("k3", "Drink.")


def test_a_file_of_one_half_line_is_as_none(tmp_path: Path) -> None:
    folder = keep(tmp_path, [])
    (folder / ANSWERS).write_bytes(b'{"key": "k1", "te')
    assert keep(tmp_path, [ANSWERED]) == folder
    assert (folder / ANSWERS).read_bytes().startswith(b'{"key": "k1", "text": "Rest it."')


def test_a_killed_process_leaves_whole_answers_and_no_lock(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from rayrl.evaluation.answers import Answer, AnswerStore
with AnswerStore(Path({str(tmp_path)!r}), "sft", {{}}) as store:
    store.add([Answer("k1", "Rest it.", 4, True)])
    store._file.write('{{"key": "k2", "text": "hal')
    store._file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -9
    with AnswerStore(tmp_path, "sft", {}) as store:
        assert store.get("k1") == ANSWERED and store.missing(["k1", "k2"]) == ["k2"]


def test_halves_of_utf16_pairs_survive_in_texts(tmp_path: Path) -> None:
    odd = Answer("k1", "\ud83d alone, 咳 \udc00", 3, True)
    folder = keep(tmp_path, [odd])
    (folder / ANSWERS).read_text(encoding="utf-8")
    with AnswerStore(tmp_path, "sft", {"model": "m", "seed": 0}) as store:
        assert store.get("k1") == odd
    assert question_key(["\ud83d"]) != question_key(["?"])


def test_a_question_s_key_goes_by_what_was_asked() -> None:
    messages = [{"role": "user", "content": "膝盖疼"}]
    key = question_key(messages)
    assert len(key) == 32 and key == question_key([{"content": "膝盖疼", "role": "user"}])
    assert key != question_key([{"role": "user", "content": "膝盖痛"}]) and key != question_key(messages * 2)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, json_values)
def test_keys_are_the_same_only_for_the_same_question(one: Any, other: Any) -> None:
    assert (question_key(one) == question_key(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )
