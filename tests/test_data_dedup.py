"""Near-duplicates, with similarities counted by hand, and the record of what was used in fine-tuning."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from data_cases import write_used

from rayrl.data.dedup import Match, NearDuplicates, num_bands, shingles, similarity
from rayrl.data.used import answered_prompts, prompt_key, read_used
from rayrl.errors import UserError
from rayrl.types import Conversation, Message, Origin

KNEE = "My knee hurts since I fell two days ago."  # 9 words, 8 pairs
POLITE = "Hello doctor, my knee hurts since I fell TWO days ago, thanks!"  # the same 8 and 3 more
ZH = "我膝盖摔了两天很疼怎么办"  # 12 characters, 11 pairs
ZH_POLITE = "医生你好，我膝盖摔了两天，很疼，怎么办？"  # the same 11 and 医生 生你 你好 好我


def test_shingles_are_pairs_of_words_and_of_chinese_characters() -> None:
    assert shingles("My knee, MY knee hurts.") == {"my knee", "knee my", "knee hurts"}
    assert shingles("头痛3天，ｘ光？") == {"头 痛", "痛 3", "3 天", "天 x", "x 光"}
    assert shingles("Ouch!") == {"ouch"} and shingles("疼") == {"疼"}
    assert shingles("?! …") == frozenset()


def test_similarity_by_hand() -> None:
    assert similarity(shingles(KNEE), shingles(POLITE)) == pytest.approx(8 / 11)
    assert similarity(shingles(ZH), shingles(ZH_POLITE)) == pytest.approx(11 / 15)
    assert similarity(shingles(KNEE), shingles(KNEE.upper() + "!!")) == 1
    assert similarity(frozenset(), frozenset()) == 0
    twelve = [f"w{n}" for n in range(13)]  # 12 pairs, then one word in the middle replaced: (12 - 2) / (12 + 2)
    changed = [*twelve[:6], "other", *twelve[7:]]
    assert similarity(shingles(" ".join(twelve)), shingles(" ".join(changed))) == pytest.approx(10 / 14)


def test_a_greeting_makes_no_new_prompt_and_another_joint_does() -> None:
    kept = NearDuplicates()
    kept.add("knee", KNEE)
    kept.add("zh", ZH)
    assert kept.find(POLITE) == Match("knee", 8 / 11)
    assert kept.find(ZH_POLITE) == Match("zh", 11 / 15)
    assert kept.find("My left hip hurts since I fell two weeks ago.") is None
    assert kept.find("我膝盖摔了两年不疼怎么练") is None
    assert NearDuplicates(0.75).find(POLITE) is None


def test_the_threshold_is_included_and_empty_texts_match_nothing() -> None:
    for threshold, found in ((8 / 11, True), (8 / 11 + 1e-6, False), (1.0, False)):
        kept = NearDuplicates(threshold)
        kept.add("knee", KNEE)
        assert (kept.find(POLITE) is not None) == found
        assert kept.find(KNEE.upper()) == Match("knee", 1.0)
    kept.add("empty", "...")
    assert kept.find("!!!") is None
    with pytest.raises(ValueError, match="threshold must be above 0"):
        NearDuplicates(0)


def test_the_most_similar_is_named_and_the_first_of_equals() -> None:
    kept = NearDuplicates(0.5)
    kept.add("far", POLITE)
    kept.add("near", KNEE)
    kept.add("same", KNEE)
    assert kept.find(KNEE + " Please") == Match("near", 8 / 9)


def test_prompts_of_one_conversation_are_not_compared() -> None:
    kept = NearDuplicates()
    kept.add("c1#1", KNEE, group="c1")
    assert kept.find(POLITE, group="c1") is None
    assert kept.find(POLITE, group="c2") == Match("c1#1", 8 / 11)
    assert kept.find(POLITE) == Match("c1#1", 8 / 11)


def test_bands_by_hand() -> None:
    assert num_bands(0.7) == 32  # bands of 4: (1 - .7**4)**32 = 0.00015; bands of 8: (1 - .7**8)**16 = 0.39
    assert num_bands(0.9) == 16  # (1 - .9**8)**16 = 0.00012
    assert num_bands(1.0) == 1
    assert num_bands(0.01) == 128


@pytest.mark.parametrize("letters", ["word", "zh"])
def test_pairs_above_the_threshold_are_found_as_by_comparing_all(letters: str) -> None:
    """Against brute force, on texts with a few units replaced: similarities from 0.3 to 1."""
    rng = random.Random(3)
    unit = (lambda: f"w{rng.randrange(3000)}") if letters == "word" else (lambda: chr(0x4E00 + rng.randrange(3000)))
    join = " " if letters == "word" else ""
    texts = [[unit() for _ in range(30)] for _ in range(60)]
    copies = [[unit() if rng.random() < 0.06 else one for one in text] for text in texts for _ in range(5)]
    kept = NearDuplicates()
    for number, text in enumerate(texts):
        kept.add(str(number), join.join(text))
    sets = [shingles(join.join(text)) for text in texts]
    wrong = near = 0
    for copy in copies:
        scores = [similarity(shingles(join.join(copy)), one) for one in sets]
        best = max(scores)
        expected = Match(str(scores.index(best)), best) if best >= 0.7 else None
        near += expected is not None
        wrong += kept.find(join.join(copy)) != expected
    assert 100 < near < 290
    assert wrong <= 1  # 200 pairs, each missed with a probability below 0.001


def test_the_same_in_another_process() -> None:
    """Python's own hashes differ from process to process; these mustn't."""
    program = (
        "from rayrl.data.dedup import _sketch, shingles; "
        f"print(_sketch(shingles({POLITE!r})).digest(), _sketch(shingles({ZH!r})).digest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, env={"PYTHONHASHSEED": seed}, check=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def talk(*texts: str) -> list[Message]:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)]


def conversation(name: str, messages: list[Message]) -> Conversation:
    return Conversation(name, messages, Origin("s", "real", "conversation", "f.jsonl", 1))


def test_every_answered_turn_is_a_prompt() -> None:
    system: Message = {"role": "system", "content": "S"}
    messages = [system, *talk("q1", "a1", "q2", "a2")]
    assert answered_prompts(messages) == [messages[:2], messages[:4]]
    assert answered_prompts(messages[:4]) == [messages[:2]]
    two_in_a_row: list[Message] = [*talk("q1"), *talk("q2", "a")]
    assert answered_prompts(two_in_a_row) == [two_in_a_row[:2]]


def test_used_texts_may_hold_any_line_separator(tmp_path: Path) -> None:
    said = "head\u2028ache\x85since\x0cMay\r"
    write_used(tmp_path, conversation("c", talk(said, "Rest.")))
    assert list(read_used(tmp_path).values()) == [said]
    write_used(tmp_path)
    assert read_used(tmp_path) == {}


def test_used_keys_are_written_once_sorted_and_read_back(tmp_path: Path) -> None:
    one = conversation("c1", [{"role": "system", "content": "S"}, *talk("My knee", "Rest.", "And now?", "Wait.")])
    same = conversation("c2", talk(" my KNEE ", "Cool it."))
    write_used(tmp_path, one, same)
    rows = [json.loads(line) for line in (tmp_path / "used.jsonl").read_text().splitlines()]
    expected = {prompt_key(talk("My knee")), prompt_key(talk("My knee", "Rest.", "And now?"))}
    assert [row["key"] for row in rows] == sorted(expected)
    assert read_used(tmp_path) == read_used(tmp_path / "used.jsonl")
    assert set(read_used(tmp_path)) == expected and "My knee\nRest.\nAnd now?" in read_used(tmp_path).values()
    assert [file.name for file in tmp_path.iterdir()] == ["used.jsonl"]


def test_a_folder_without_used_keys_or_with_other_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no used\.jsonl"):
        read_used(tmp_path)
    for text in ('{"id": 3}', "{", "[1]"):
        (tmp_path / "used.jsonl").write_text('{"key": "k", "text": "t"}\n' + text)
        with pytest.raises(UserError, match="line 2"):
            read_used(tmp_path)
