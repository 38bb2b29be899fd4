"""Build the project's preference pairs and fine-tuning conversations in rayrl/assets, in English and Chinese.

    python scripts/build_preferences.py [--output DIR]

preferences_{en,zh}.jsonl and preferences_heldout_{en,zh}.jsonl hold pairs of a good and a flawed answer, and graded
groups (four answers to one prompt in a known order, six pairs). A label follows from how the two answers were composed
(compose_answers.py); no reward rule and no model has seen them. sft_{distilled,doctor}_{en,zh}.jsonl come from
compose_conversations.py. No prompt of any file is one of consultations_{en,zh}.jsonl, none of the held-out pairs is
in another file, and the conditions that answers_{en,zh}.yaml lists as `unseen` occur in held-out pairs only.

The same seed gives the same bytes. Advice is general and illustrates a format; it is no medical guideline, and answers
with the flaw `unsafe` are dangerous on purpose.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import preference_baselines as baselines
import yaml
from compose_answers import Answer, Composer
from compose_conversations import build_distilled, build_doctor
from draw_prompts import Prompts, prompt_keys

HERE = Path(__file__).resolve().parent
SEED = 20240915
TRAIN_PROMPTS = {"en": (800, 30), "zh": (430, 18)}
"""Prompts with one pair, and with a graded group."""

HELDOUT_PROMPTS = {"en": (170, 6), "zh": (90, 4)}
"""As above; half of them are of conditions that no training file has."""

SFT_ROWS = {"en": 270, "zh": 210}
SHARES = {
    "wrong": 18, "no_question": 20, "needless_question": 22,
    "terse": 10, "rambling": 10, "unsafe": 8, "disordered": 12,
}  # fmt: skip
"""Of a hundred single pairs, how many have which flaw."""

GRADES = (("good", "terse", "wrong", "unsafe"), ("good", "rambling", "wrong", "unsafe"))
"""Best first; the groups take turns."""


def single_pairs(prompts: Prompts, count: int, unseen_share: float) -> list[list[dict[str, Any]]]:
    """One pair a prompt, with the flaws in their shares."""
    wanted = [flaw for flaw, share in SHARES.items() for _ in range(round(count * share / 100))]
    prompts.rng.shuffle(wanted)
    made, seen = [], Counter[str]()
    for number, flaw in enumerate(wanted):
        unseen = (number % 10) < 10 * unseen_share
        seen[flaw] += 1
        complete = flaw == "needless_question" or (flaw != "no_question" and seen[flaw] % 2 == 0)
        composer, prompt = _composer_for(prompts, unseen, complete, can_wait=flaw == "no_question")
        good, bad = _match(composer, flaw, chosen_longer=seen[flaw] % 4 < 2)
        made.append([pair(prompt, good, bad, bad.margin, unseen)])
    return made


def graded_groups(prompts: Prompts, count: int, unseen_share: float) -> list[list[dict[str, Any]]]:
    """Four answers in a known order, as their six pairs; the margin is the distance in the order."""
    made = []
    for number in range(count):
        unseen = (number % 10) < 10 * unseen_share
        composer, prompt = _composer_for(prompts, unseen, number % 4 < 2, can_wait=True)
        ranked = _graded(composer, GRADES[number % 2])
        made.append([
            pair(prompt, ranked[better], ranked[worse], worse - better, unseen)
            for better in range(4) for worse in range(better + 1, 4)
        ])  # fmt: skip
    return made


def pair(prompt: dict[str, Any], chosen: Answer, rejected: Answer, margin: int, unseen: bool) -> dict[str, Any]:
    """A row without its id and group."""
    about: dict[str, Any] = {"flaw": rejected.flaw, "variant": rejected.variant}
    if chosen.flaw != "good":
        about["chosen_flaw"] = chosen.flaw
    if unseen:
        about["unseen_condition"] = True
    return {
        "messages": prompt["messages"],
        "reference": prompt["reference"],
        "chosen": chosen.text,
        "rejected": rejected.text,
        "margin": margin,
        "fields": {**prompt["fields"], **about},
    }


def _composer_for(prompts: Prompts, unseen: bool, complete: bool, can_wait: bool) -> tuple[Composer, dict[str, Any]]:
    """A prompt of a random condition; with `can_wait` none of those that can't.

    There a doctor sends the patient off before asking, and other advice would be as dangerous as an unsafe answer.
    """
    barred = set(prompts.answers["immediate"]) if can_wait else set()
    fitting = [c for c in prompts.conditions[unseen] if c["name"] not in barred]
    return prompts.composer(prompts.rng.choice(fitting), complete)


def _match(composer: Composer, flaw: str, chosen_longer: bool) -> tuple[Answer, Answer]:
    """A good and a flawed answer of like length, the longer side in turns, so that length doesn't tell them apart.

    Of the draws of which the wanted one is longer, the first whose lengths are within a factor of 1.5, or else the
    last. Terse answers are shorter and rambling ones longer by nature: there the first fitting draw counts.
    """
    if flaw in ("terse", "rambling"):
        good, bad = _graded(composer, ("good", flaw))
        return good, bad
    best = composer.make("good"), composer.make(flaw)
    for _ in range(40):
        good, bad = composer.make("good"), composer.make(flaw)
        if good.length != bad.length and (good.length > bad.length) == chosen_longer:
            best = good, bad
            if max(good.length, bad.length) <= 1.5 * min(good.length, bad.length):
                break
    return best


def _graded(composer: Composer, kinds: tuple[str, ...]) -> list[Answer]:
    """Answers of these kinds; a terse one, second in the order, is at most 0.7 times as long as the good one."""
    for _ in range(100):
        ranked = [composer.make(kind) for kind in kinds]
        if kinds[1] != "terse" or ranked[1].length <= 0.7 * ranked[0].length:
            return ranked
    raise RuntimeError(f"no terse answer for {composer.case.condition['name']!r}")


def numbered(prefix: str, groups: list[list[dict[str, Any]]], rng: random.Random) -> list[dict[str, Any]]:
    """The pairs in random order of their prompts, with ids; pairs of one prompt stay together."""
    rng.shuffle(groups)
    rows: list[dict[str, Any]] = []
    for number, group in enumerate(groups, 1):
        for made in group:
            rows.append({"id": f"{prefix}-{len(rows) + 1:04d}", "group": f"{prefix}-p{number:04d}", **made})
    return rows


def build(language: str) -> dict[str, list[dict[str, Any]]]:
    """All files of a language, by name."""
    material = yaml.safe_load((HERE / f"consultations_{language}.yaml").read_text(encoding="utf-8"))
    answers = yaml.safe_load((HERE / f"answers_{language}.yaml").read_text(encoding="utf-8"))
    rng = random.Random(f"{SEED}-{language}")
    asset = HERE.parent / "rayrl" / "assets" / f"consultations_{language}.jsonl"
    known = [json.loads(line)["messages"] for line in asset.read_text(encoding="utf-8").splitlines()]
    prompts = Prompts(language, material, answers, rng, {key for messages in known for key in prompt_keys(messages)})
    singles, groups = HELDOUT_PROMPTS[language]
    heldout = [*single_pairs(prompts, singles, 0.5), *graded_groups(prompts, groups, 0.5)]
    singles, groups = TRAIN_PROMPTS[language]
    train = [*single_pairs(prompts, singles, 0.0), *graded_groups(prompts, groups, 0.0)]
    return {
        f"preferences_{language}": numbered(f"pref-{language}", train, rng),
        f"preferences_heldout_{language}": numbered(f"prefheld-{language}", heldout, rng),
        f"sft_doctor_{language}": build_doctor(prompts, SFT_ROWS[language]),
        f"sft_distilled_{language}": build_distilled(prompts, SFT_ROWS[language]),
    }


def report(files: dict[str, list[dict[str, Any]]], language: str) -> None:
    """Print counts, shares of the flaws, and what shortcuts reach on the held-out pairs."""
    train, heldout = files[f"preferences_{language}"], files[f"preferences_heldout_{language}"]
    for name, rows in files.items():
        print(f"{name}: {len(rows)} rows")
    flaws = Counter(row["fields"]["flaw"] for row in train)
    print("  flaws of the rejected answer:", ", ".join(f"{f} {n / len(train):.0%}" for f, n in flaws.most_common()))
    print(
        f"  held-out accuracy of shortcuts: longer {baselines.longer(heldout):.3f}, asks {baselines.asks(heldout):.3f},"
        f" opening {baselines.opening(train, heldout):.3f}, words {baselines.bag_of_words(train, heldout):.3f}"
    )


def main() -> None:
    """Write the eight files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE.parent / "rayrl" / "assets", help="folder to write to")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for language in ("en", "zh"):
        files = build(language)
        for name, rows in files.items():
            text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
            (output / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        report(files, language)


if __name__ == "__main__":
    main()
