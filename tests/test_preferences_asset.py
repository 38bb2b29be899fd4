"""The project's preference pairs and fine-tuning conversations: built to the byte, disjoint, and without shortcuts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import preference_baselines as baselines
import pytest
from compose_answers import FLAWS, reversed_warning

from rayrl.data.split import conversation_key
from rayrl.rewards.text import sentences, units
from rayrl.types import PromptRow

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "rayrl" / "assets"
SCRIPTS = ROOT / "scripts"

LANGUAGES = ["en", "zh"]
KINDS = ["preferences", "preferences_heldout", "sft_doctor", "sft_distilled"]
FILES = [f"{kind}_{language}" for kind in KINDS for language in LANGUAGES]
Rows = list[dict[str, Any]]


def rows_of(*names: str) -> Rows:
    lines = [line for name in names for line in (ASSETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def key(messages: list[Any]) -> str:
    return conversation_key(PromptRow("", messages))


def prompts_in(row: dict[str, Any]) -> set[str]:
    """Keys of every part of a conversation that ends with the patient's turn."""
    turns = row["messages"]
    return {key(turns[:end]) for end, turn in enumerate(turns, 1) if turn["role"] == "user"}


TRAIN = rows_of(*[f"preferences_{language}" for language in LANGUAGES])
HELDOUT = rows_of(*[f"preferences_heldout_{language}" for language in LANGUAGES])
SFT = rows_of(*[f"sft_{kind}_{language}" for kind in ("doctor", "distilled") for language in LANGUAGES])


def test_the_script_gives_the_shipped_bytes(tmp_path: Path) -> None:
    script = SCRIPTS / "build_preferences.py"
    subprocess.run([sys.executable, str(script), "--output", str(tmp_path)], check=True, timeout=60)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (ASSETS / f"{name}.jsonl").read_bytes(), name


def test_there_are_enough_and_the_files_are_small() -> None:
    assert len(TRAIN) >= 1500
    assert len(HELDOUT) >= 300
    for kind in ("doctor", "distilled"):
        assert len(rows_of(f"sft_{kind}_en")) >= 250
        assert len(rows_of(f"sft_{kind}_zh")) >= 200
    assert sum((ASSETS / f"{name}.jsonl").stat().st_size for name in FILES) < 3_000_000


def test_the_documentation_gives_the_right_numbers() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for kind in KINDS:
        number = ", ".join(str(len(rows_of(f"{kind}_{language}"))) for language in LANGUAGES)
        assert f"| `{kind.replace('_', '-')}-en`, `-zh` | {number} |" in page
    flaws = Counter(row["fields"]["flaw"] for row in TRAIN)
    for flaw, number in flaws.items():
        assert f"| `{flaw}` | {number / len(TRAIN):.0%} |" in page


def test_pairs_have_the_promised_form() -> None:
    rows = TRAIN + HELDOUT
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"id", "group", "messages", "reference", "chosen", "rejected", "margin", "fields"}, row["id"]
        assert {"department", "condition", "language", "missing_info", "flaw", "variant"} <= set(row["fields"])
        roles = [message["role"] for message in row["messages"]]
        assert roles in (["user"], ["user", "assistant", "user"]), row["id"]
        assert row["margin"] in (1, 2, 3)
        assert row["chosen"] != row["rejected"]
        assert row["fields"]["flaw"] in FLAWS
        text = " ".join([*(m["content"] for m in row["messages"]), row["reference"], row["chosen"], row["rejected"]])
        assert not re.search(r"[{}]|\bNone\b|  ", text), row["id"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_readers_take_every_row(language: str) -> None:
    readers = pytest.importorskip("rayrl.data.readers")
    from rayrl.config.sources import SourceConfig

    for kind in ("preferences", "preferences_heldout"):
        rows = rows_of(f"{kind}_{language}")
        read = readers.read_comparisons(SourceConfig(name="own", path=f"{kind.replace('_', '-')}-{language}"))
        assert not read.rejected
        for row, comparison in zip(rows, read.rows, strict=True):
            better = comparison.answer_a if comparison.verdict == "a" else comparison.answer_b
            assert (comparison.id, comparison.prompt.id) == (row["id"], row["group"])
            assert (better, comparison.margin) == (row["chosen"], row["margin"])
            assert comparison.prompt.fields["flaw"] == row["fields"]["flaw"]
    for kind in ("doctor", "distilled"):
        read = readers.read_conversations(SourceConfig(name="own", path=f"sft-{kind}-{language}"))
        assert not read.rejected
        assert [list(made.messages) for made in read.rows] == [r["messages"] for r in rows_of(f"sft_{kind}_{language}")]


def test_no_heldout_prompt_is_trained_on() -> None:
    consultations = {key(row["messages"]) for row in rows_of(*[f"consultations_{language}" for language in LANGUAGES])}
    heldout = {key(row["messages"]) for row in HELDOUT}
    trained = {prompt for row in TRAIN + SFT for prompt in prompts_in(row)}
    assert not heldout & trained
    assert not consultations & trained  # so whatever the PPO split holds out is new to both
    assert not heldout & consultations


def test_half_of_the_heldout_conditions_are_in_no_training_file() -> None:
    trained = {row["fields"]["condition"] for row in TRAIN + SFT}
    unseen = [row for row in HELDOUT if row["fields"].get("unseen_condition")]
    assert not trained & {row["fields"]["condition"] for row in unseen}
    assert 0.4 <= len(unseen) / len(HELDOUT) <= 0.6
    assert len({row["fields"]["condition"] for row in unseen}) >= 15
    rest = {row["fields"]["condition"] for row in HELDOUT if not row["fields"].get("unseen_condition")}
    assert rest <= trained


@pytest.mark.parametrize("rows", [TRAIN, HELDOUT], ids=["train", "heldout"])
def test_every_flaw_has_its_share(rows: Rows) -> None:
    shares = Counter(row["fields"]["flaw"] for row in rows)
    assert set(shares) == set(FLAWS)
    for flaw, number in shares.items():
        assert 0.08 <= number / len(rows) <= 0.24, flaw


@pytest.mark.parametrize("languages", [["en"], ["zh"], LANGUAGES], ids=["en", "zh", "both"])
def test_shortcuts_fail(languages: list[str]) -> None:
    train = rows_of(*[f"preferences_{language}" for language in languages])
    heldout = rows_of(*[f"preferences_heldout_{language}" for language in languages])
    for rows in (train, heldout):
        assert 0.45 <= baselines.longer(rows) <= 0.60
        assert 0.45 <= baselines.asks(rows) <= 0.60
    assert baselines.opening(train, heldout) <= 0.65
    assert baselines.bag_of_words(train, heldout) <= 0.75


def test_the_word_classifier_would_find_a_shortcut() -> None:
    planted = [{**row, "chosen": row["chosen"] + " certainly"} for row in TRAIN[:200]]
    assert baselines.bag_of_words(planted, planted[:50]) > 0.95
    assert baselines.longer([{"chosen": "one two", "rejected": "one"}, {"chosen": "a b", "rejected": "c d"}]) == 0.75
    assert baselines.asks([{"chosen": "How?", "rejected": "Rest."}, {"chosen": "Rest.", "rejected": "多久？"}]) == 0.5
    won = [{"chosen": "Hi. A.", "rejected": "Bye. A."}]
    assert baselines.opening(won * 3, won) == 1.0


def test_good_answers_ask_where_something_is_missing_and_nowhere_else() -> None:
    for row in TRAIN + HELDOUT:
        if "chosen_flaw" not in row["fields"]:
            assert bool(re.search("[?？]", row["chosen"])) == bool(row["fields"]["missing_info"]), row["id"]


def test_labels_follow_from_how_the_answers_were_made() -> None:
    for row in TRAIN + HELDOUT:
        fields, rejected = row["fields"], row["rejected"]
        asks, length = bool(re.search("[?？]", rejected)), len(units(rejected))
        if fields["flaw"] == "no_question":
            assert fields["missing_info"] and not asks, row["id"]
        elif fields["flaw"] == "needless_question":
            assert not fields["missing_info"] and asks, row["id"]
        elif fields["flaw"] == "terse" and "chosen_flaw" not in fields:
            assert length < len(units(row["chosen"])), row["id"]
        elif fields["flaw"] == "rambling":
            assert length >= 20 and not asks, row["id"]
        elif fields["variant"] == "repeated":
            assert max(Counter(re.sub(r"^\d+\. ", "", s) for s in sentences(rejected)).values()) >= 2, row["id"]


def test_dangerous_answers_hold_a_dangerous_sentence_and_only_those() -> None:
    signs = {
        "en": "no need to (?:go|see|seek|call|get|have)|nobody has to look|can safely be ignored|unsafe",
        "zh": "也不用",
    }
    for language in LANGUAGES:
        phrases = (SCRIPTS / f"answers_{language}.yaml").read_text(encoding="utf-8")
        told = re.findall(r"unsafe: (.+?)\}?$", phrases, re.M)
        pattern = "|".join([signs[language], *map(re.escape, told)])
        for row in rows_of(f"preferences_{language}", f"preferences_heldout_{language}"):
            if row["fields"]["flaw"] == "unsafe":
                assert re.search(pattern, row["rejected"]), row["id"]
            if "chosen_flaw" not in row["fields"]:
                assert not any(sentence in row["chosen"] for sentence in told), row["id"]
                if language == "en":
                    assert not re.search(signs["en"], row["chosen"]), row["id"]


def test_warnings_are_turned_into_their_opposite() -> None:
    assert (
        reversed_warning("Go to hospital at once for a fever.", "en")
        == "There is no need to go to hospital for a fever."
    )
    assert reversed_warning("If you faint, go to hospital.", "en") == "Even if you faint, nobody has to look at it."
    assert reversed_warning("Chest pain needs emergency care.", "en") == "Chest pain can safely be ignored."
    assert reversed_warning("如果咳血，请尽快就医。", "zh") == "即使咳血，也不用就医。"


def test_graded_groups_have_one_order() -> None:
    groups: dict[str, Rows] = defaultdict(list)
    for row in TRAIN + HELDOUT:
        groups[row["group"]].append(row)
    graded = [rows for rows in groups.values() if len(rows) > 1]
    assert len(graded) >= 40
    for rows in groups.values():
        assert len({json.dumps([row["messages"], row["reference"]]) for row in rows}) == 1
    for rows in graded:
        beaten = Counter(row["chosen"] for row in rows)
        order = sorted({text for row in rows for text in (row["chosen"], row["rejected"])}, key=lambda t: -beaten[t])
        assert len(order) == 4
        margins = {(row["chosen"], row["rejected"]): row["margin"] for row in rows}
        assert margins == {(order[a], order[b]): b - a for a, b in combinations(range(4), 2)}
        assert rows[-1]["fields"]["flaw"] == "unsafe"


@pytest.mark.parametrize(("language", "low", "high"), [("en", 14, 80), ("zh", 24, 150)])
def test_answers_are_mostly_of_a_length_that_a_small_model_writes(language: str, low: int, high: int) -> None:
    rows = rows_of(f"preferences_{language}")
    lengths = [len(units(row[side])) for row in rows for side in ("chosen", "rejected")]
    assert sum(low <= length <= high for length in lengths) > 0.85 * len(lengths)


def test_conversations_have_the_promised_form() -> None:
    assert len({row["id"] for row in SFT}) == len(SFT)
    for row in SFT:
        assert set(row) == {"id", "messages", "fields"}
        assert {"department", "kind"} <= set(row["fields"])
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2), row["id"]
        assert not re.search(r"[{}]|\bNone\b|  ", " ".join(m["content"] for m in row["messages"])), row["id"]


@pytest.mark.parametrize(("language", "limit"), [("en", 44), ("zh", 84)])
def test_doctors_are_short_and_ask_and_assistants_write_at_length(language: str, limit: int) -> None:
    doctor, distilled = rows_of(f"sft_doctor_{language}"), rows_of(f"sft_distilled_{language}")
    last = [row["messages"][-1]["content"] for row in doctor]
    asking = sum(bool(re.search("[?？]", text)) for text in last) / len(last)
    assert 0.45 <= asking <= 0.65
    assert max(len(units(text)) for text in last) <= limit * 1.3
    assert sum(len(units(text)) <= limit for text in last) > 0.95 * len(last)
    first = [row["messages"][1]["content"] for row in distilled if row["fields"]["form"] == "instruction"]
    overviews = [row for row in distilled if row["fields"]["form"] == "consultation"]
    assert len(first) == pytest.approx(len(distilled) / 2, abs=1)
    assert all("\n" in text for text in first)
    assert any(len(row["messages"]) > 4 for row in overviews)
    assert not any(re.search("[?？]", row["messages"][-1]["content"]) for row in overviews)
