"""The rules that ship with the project: plain functions of a prompt row and an answer, each with values in [0, 1].

    rule(prompt, response, **options) -> float

`RULES` has them by name; `make_rule(name, options)` binds and checks options. An answer without words scores 0 in every
rule. They measure form, which is what a rule can measure: whether the medicine is right is for a reward model, a judge
or a doctor. The mixture of rule and model rewards follows HuatuoGPT's RLMF. clarifying_question is in questions.py.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from rayrl.rewards.questions import clarifying_question
from rayrl.rewards.text import CLOSERS, is_chinese, ngram_counts, script_counts, sentences, units
from rayrl.types import PromptRow

Rule = Callable[[PromptRow, str], float]

_TEMPLATE_MARKUP = re.compile(
    r"<\|.*?\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:think|user|assistant|system)>|^#+ ?(?:Response|Instruction)\b", re.M
)
_ROLE_PREFIX = re.compile(
    r"^[^\w\n]*(?:user|assistant|system|patient|doctor|human|ai|bot|用户|助手|病人|患者|医生|问|答)\W{0,3}[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_PARAGRAPH_UNITS = 150


def reference_overlap(prompt: PromptRow, response: str) -> float:
    """ROUGE-L F against the doctor's answer, over words (Latin) and characters (Chinese).

    Raises ValueError for a prompt row without a reference.
    """
    if not prompt.reference or not prompt.reference.strip():
        raise ValueError(
            f"prompt {prompt.id!r}: the rule reference_overlap needs a reference answer in every row; "
            "add one or take the rule out"
        )
    return float(_rouge_scorer().score(prompt.reference, response)["rougeL"].fmeasure)


def presentation(prompt: PromptRow, response: str) -> float:
    """A readable answer, in five parts that add up to 1.

    0.4 it ends as a sentence does; 0.2 no template markup or role prefix; 0.15 the share of sentences that begin with a
    capital, a figure or a character; 0.15 markdown, quotes and brackets are closed; 0.1 layout (no run of blank lines,
    no paragraph over 150 words, no shouting).
    """
    if not units(response):
        return 0.0
    text = response.strip()
    clean = not _TEMPLATE_MARKUP.search(text) and not _ROLE_PREFIX.search(text)
    score = (
        0.4 * _is_ended(text)
        + 0.2 * clean
        + 0.15 * _capital_share(text)
        + 0.15 * _is_closed(text)
        + 0.1 * _is_laid_out(text)
    )
    return min(1.0, score)


def length_window(
    prompt: PromptRow, response: str, *, min_units: int = 20, max_units: int = 120, slack: int = 20
) -> float:
    """1 inside [min_units, max_units] words or Chinese characters, falling linearly to 0 over `slack` outside.

    Raises ValueError unless 0 <= min_units <= max_units and slack >= 0.
    """
    if not 0 <= min_units <= max_units or slack < 0:
        raise ValueError(
            f"length_window: needs 0 <= min_units <= max_units and slack >= 0, got {min_units}, {max_units} and {slack}"
        )
    count = len(units(response))
    if count == 0:
        return 0.0
    outside = max(min_units - count, count - max_units, 0)
    if outside == 0:
        return 1.0
    return max(0.0, 1.0 - outside / slack) if slack else 0.0


def repetition(prompt: PromptRow, response: str, *, n_words: int = 3, n_characters: int = 4) -> float:
    """1 - the share of n-grams that repeat an earlier one: of words, or of characters in a mostly Chinese text.

    Raises ValueError where n is below 1.
    """
    if n_words < 1 or n_characters < 1:
        raise ValueError(f"repetition: n_words and n_characters must be at least 1, got {n_words} and {n_characters}")
    found = units(response)
    if not found:
        return 0.0
    grams = ngram_counts(found, n_characters if is_chinese(response) else n_words)
    return len(grams) / grams.total() if grams else 1.0


def language_match(prompt: PromptRow, response: str) -> float:
    """Answers in the script of the patient's last turn: min(1, share of the answer's units in it / 0.8).

    Every script with at least a fifth of the patient's units is the patient's; the 0.8 leaves room for names such as CT
    and HbA1c in a Chinese answer. It tells scripts apart, not languages (English and French look alike).
    Raises ValueError for a prompt without a patient's turn.
    """
    turns = [message["content"] for message in prompt.messages if message["role"] == "user"]
    if not turns:
        raise ValueError(f"prompt {prompt.id!r}: the rule language_match needs a message of role 'user'")
    if not units(response):
        return 0.0
    wanted, found = script_counts(turns[-1]), script_counts(response)
    if not wanted:  # the patient wrote figures only: any language will do
        return 1.0
    scripts = {script for script, count in wanted.items() if count >= 0.2 * wanted.total()}
    share = sum(found[script] for script in scripts) / max(1, found.total())
    return min(1.0, share / 0.8)


RULES: dict[str, Callable[..., float]] = {
    "clarifying_question": clarifying_question,
    "reference_overlap": reference_overlap,
    "presentation": presentation,
    "length_window": length_window,
    "repetition": repetition,
    "language_match": language_match,
}


def make_rule(name: str, options: Mapping[str, Any]) -> Rule:
    """The rule of that name with its options bound.

    Unknown names and options raise ValueError that names the nearest one. The bound rule is tried on a small example
    first, so that an option of a wrong type or value is an error here and not in the middle of a run.
    """
    if name not in RULES:
        raise ValueError(f"unknown reward rule {name!r}; {_nearest(name, list(RULES))}")
    function = RULES[name]
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ValueError(f"reward rule {name!r} has no option {option!r}; {_nearest(option, known)}")
    rule = functools.partial(function, **options)
    example = PromptRow("example", [{"role": "user", "content": "My knee hurts."}], "Rest it.", {"missing_info": []})
    try:
        rule(example, "Rest your knee for a few days.")
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward rule {name!r} can't use the options {dict(options)}: {error}") from error
    return rule


def _nearest(given: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"valid ones: {', '.join(valid)}" if valid else "it takes none"


class _UnitTokenizer:
    """rouge_score's tokenizer interface over `units`; its own drops every Chinese character."""

    def tokenize(self, text: str) -> list[str]:
        return units(text)


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, 0.7 s: only where the rule is used

    return RougeScorer(["rougeL"], tokenizer=_UnitTokenizer())


def _capital_share(text: str) -> float:
    firsts = [match[0] for s in sentences(text) if (match := re.search(r"[^\W_]", s))]
    return sum(not first.islower() for first in firsts) / len(firsts)


def _is_ended(text: str) -> bool:
    last = text.splitlines()[-1].rstrip(CLOSERS)
    opens_item = re.fullmatch(r"\W{0,9}(?:\d{1,3}|[A-Za-z])\.", last)  # cut after "3."
    trailing_off = last.endswith(("..", "…", "。。")) or opens_item
    return last.endswith((".", "!", "?", "。", "！", "？")) and not trailing_off


def _is_closed(text: str) -> bool:
    fences, rest = text.count("```"), text.replace("```", "")
    paired = all(rest.count(mark) % 2 == 0 for mark in ("**", "`", '"'))
    nested = all(rest.count(left) == rest.count(right) for left, right in ("“”", "[]", "「」"))
    listed = re.sub(r"^[ \t]*\w{1,2}\)", "", rest, flags=re.MULTILINE)  # "1)" and "a)" open a list
    return (
        fences % 2 == 0
        and paired
        and nested
        and listed.count("(") + listed.count("（") == listed.count(")") + listed.count("）")
    )


def _is_laid_out(text: str) -> bool:
    letters = [c for c in text if c.isupper() or c.islower()]
    shouting = len(letters) > 20 and sum(c.isupper() for c in letters) > 0.5 * len(letters)
    longest = max(len(units(paragraph)) for paragraph in re.split(r"\n\s*\n", text))
    return not shouting and not re.search(r"\n\s*\n\s*\n", text) and longest <= _PARAGRAPH_UNITS
