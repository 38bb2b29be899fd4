"""A user's own Python function as a reward, and the scoring of a batch by any per-sample scorer.

    def reward(prompt, response, reference, fields, **options) -> float

`prompt` is the conversation (a list of role and content), `response` the answer's text, `reference` the doctor's answer
or None, `fields` the row's mapping. It is called by keyword, so it may leave parameters out only by taking **kwargs.
Left out: timeouts and processes, which belong to the actor that runs it.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from rayrl.types import PromptRow, Rollout, SourceScores

SampleScorer = Callable[[PromptRow, str], float]


def load_function(path: str, options: Mapping[str, Any]) -> SampleScorer:
    """The function at a dotted path, with its options bound, as scorer of a (prompt row, answer).

    Raises ValueError, naming the path and what to do, where the module, the attribute or a parameter isn't there. The
    scorer raises what the function raises, and TypeError where it returns something that is no number.
    """
    function = _import_attribute(path)
    if not callable(function):
        raise ValueError(
            f"reward function {path!r} is a {type(function).__name__}, not a function; name a callable of that module"
        )
    try:
        inspect.signature(function).bind(prompt=[], response="", reference=None, fields={}, **options)
    except TypeError as error:
        raise ValueError(
            f"reward function {path!r} can't be called by keyword with prompt, response, reference, fields and the "
            f"options {list(options)}: {error}; change its parameters or the options"
        ) from error
    return functools.partial(_call, path, function, dict(options))


def score_batch(name: str, scorer: SampleScorer, rollouts: Sequence[Rollout]) -> SourceScores:
    """One number a rollout; where the scorer raises or returns NaN or infinity, None and the reason "Type: message"."""
    raw: list[float | None] = []
    failures: dict[int, str] = {}
    for index, rollout in enumerate(rollouts):
        try:
            raw.append(_finite(scorer(rollout.prompt.row, rollout.text)))
        except Exception as error:  # a user's function may raise anything; the mixture decides what a failure does
            raw.append(None)
            failures[index] = f"{type(error).__name__}: {error} (prompt {rollout.prompt.row.id!r})"
    return SourceScores(name, raw, failures)


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"the score is {score}, not a finite number")
    return float(score)


def _import_attribute(path: str) -> Any:
    module_path, _, attribute = path.rpartition(".")
    if not module_path or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"reward function {path!r} isn't a dotted path; write it as package.module.function")
    try:
        module = importlib.import_module(module_path)
    except Exception as error:  # a user's module may raise anything while it is imported
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_path}.".startswith(f"{missing}."):
            problem, advice = f"there is no module {missing!r}", "install it or put its folder on PYTHONPATH"
        else:
            problem, advice = f"importing {module_path!r} failed", "mend it, or install what it needs"
        raise ValueError(f"reward function {path!r}: {problem} ({type(error).__name__}: {error}); {advice}") from error
    if not hasattr(module, attribute):
        raise ValueError(
            f"reward function {path!r}: module {module_path!r} has no {attribute!r}; check the spelling, "
            "or the PYTHONPATH if another module of that name was found first"
        )
    return getattr(module, attribute)


def _call(path: str, function: Callable[..., Any], options: dict[str, Any], prompt: PromptRow, response: str) -> float:
    # Copies: a function that edits what it is given must not edit the run's prompts.
    score = function(
        prompt=copy.deepcopy(prompt.messages),
        response=response,
        reference=prompt.reference,
        fields=copy.deepcopy(dict(prompt.fields)),
        **options,
    )
    if not isinstance(score, Real):
        raise TypeError(
            f"reward function {path!r} returned {score!r} of type {type(score).__name__}; it must return a number"
        )
    return float(score)
