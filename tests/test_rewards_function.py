"""Reward functions by dotted path, and the scoring of a batch with reasons for what failed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrl.rewards.function import load_function, score_batch
from rayrl.rewards.rules import make_rule
from rayrl.types import Prompt, PromptRow, Rollout

MODULE = """
import numpy as np

constant = 3

def length(prompt, response, reference, fields, scale=1.0):
    return scale * len(response)

def seen(**given):
    assert set(given) == {"prompt", "response", "reference", "fields"}, given
    return len(given["prompt"]) + (given["reference"] is None) + given["fields"]["weight"]

def vandal(prompt, response, reference, fields):
    prompt[0]["content"] = "gone"
    fields["missing_info"].append("gone")
    return True

def text(prompt, response, reference, fields):
    return "1.0"

def nothing(prompt, response, reference, fields):
    pass

def by_response(prompt, response, reference, fields):
    return {"nan": float("nan"), "inf": -float("inf"), "half": np.float32(0.5)}[response]

def too_few(prompt, response):
    return 1.0

def needs_more(prompt, response, reference, fields, threshold):
    return 1.0
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clinic_rewards.py").write_text(MODULE)
    (tmp_path / "clinic_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def rollout(text: str, row: PromptRow | None = None) -> Rollout:
    row = row or PromptRow("p1", [{"role": "user", "content": "Hi"}], None, {"weight": 10})
    return Rollout(Prompt(row, np.array([1])), 0, np.array([2]), np.array([-0.1]), text, True, 0)


def test_a_function_gets_what_the_row_holds() -> None:
    row = PromptRow("p", [{"role": "user", "content": "Hi"}], None, {"weight": 10})
    assert load_function("clinic_rewards.length", {"scale": 0.5})(row, "abcd") == 2.0
    assert load_function("clinic_rewards.seen", {})(row, "abcd") == 12.0


def test_a_function_cannot_change_the_row() -> None:
    row = PromptRow("p", [{"role": "user", "content": "Hi"}], None, {"missing_info": ["age"]})
    assert load_function("clinic_rewards.vandal", {})(row, "x") == 1.0
    assert row.messages[0]["content"] == "Hi" and row.fields["missing_info"] == ["age"]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("length", {}, "isn't a dotted path"),
        ("clinic rewards.length", {}, "isn't a dotted path"),
        ("no_such_module_here.length", {}, r"'no_such_module_here.length': there is no module 'no_such_module_here'"),
        ("clinic_rewards.inner.length", {}, "there is no module 'clinic_rewards.inner'"),
        ("clinic_broken.length", {}, "importing 'clinic_broken' failed.*a_package_that_is_not_there"),
        ("clinic_rewards.lenght", {}, "module 'clinic_rewards' has no 'lenght'"),
        ("clinic_rewards.constant", {}, "'clinic_rewards.constant' is a int, not a function"),
        ("clinic_rewards.too_few", {}, "can't be called.*unexpected keyword argument"),
        ("clinic_rewards.needs_more", {}, "can't be called.*'threshold'"),
        ("clinic_rewards.length", {"scales": 1}, "can't be called.*'scales'"),
    ],
)
def test_loading_refuses_with_the_path(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_function(path, options)


@pytest.mark.parametrize("name", ["text", "nothing"])
def test_what_is_no_number_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match=rf"'clinic_rewards.{name}' returned .* must return a number"):
        load_function(f"clinic_rewards.{name}", {})(PromptRow("p", []), "x")


def test_a_batch_keeps_the_reason_of_each_failure() -> None:
    scores = score_batch(
        "clinic", load_function("clinic_rewards.by_response", {}), [rollout(t) for t in ("half", "nan", "inf", "other")]
    )
    assert scores.name == "clinic"
    assert scores.raw_B == [0.5, None, None, None]
    assert type(scores.raw_B[0]) is float
    assert scores.failures == {
        1: "ValueError: the score is nan, not a finite number (prompt 'p1')",
        2: "ValueError: the score is -inf, not a finite number (prompt 'p1')",
        3: "KeyError: 'other' (prompt 'p1')",
    }


def test_a_batch_of_a_rule() -> None:
    short, long = rollout("One"), rollout("One two three")
    scores = score_batch("length", make_rule("length_window", {"min_units": 3, "slack": 4}), [short, long])
    assert scores.raw_B == [0.5, 1.0] and scores.failures == {}
    missing = score_batch("overlap", make_rule("reference_overlap", {}), [short])
    assert missing.raw_B == [None]
    assert missing.failures[0].startswith("ValueError: prompt 'p1': the rule reference_overlap needs a reference")
    assert all(math.isfinite(score) for score in scores.raw_B if score is not None)
