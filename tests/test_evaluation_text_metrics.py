"""Text metrics by hand, against other libraries on real answers, and how often their intervals hold."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reader_cases import SHARED

from rayrl.evaluation import bootstrap as bootstrap_module
from rayrl.evaluation.bootstrap import bootstrap_means, distinct_interval
from rayrl.evaluation.statistics import Estimate, mean_interval
from rayrl.evaluation.text_metrics import (
    ANSWER_SCORES,
    CORPUS_SCORES,
    Level,
    MetricRow,
    compare,
    measure,
    ngrams,
    tokens,
)

REAL = SHARED / "qa_single.jsonl"
CAT = MetricRow("cat", "The cat sat on the mat.", "The cat is on the mat")
WATER = MetricRow("water", "多喝水！", "多喝温水，多休息。")


def scores(answer: list[str], reference: list[str]) -> dict[str, float]:
    return dict(zip(ANSWER_SCORES, compare(" ".join(answer), " ".join(reference)).scores, strict=True))


def row_scores(row: MetricRow) -> dict[str, float]:
    return scores(tokens(row.answer, "characters", "zh"), tokens(row.reference or "", "characters", "zh"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("体温38.5℃，CT和HbA1c", ["体", "温", "38.5", "ct", "和", "hba1c"]),
        ("Don’t take 1,000 or 0.5mg!", ["don't", "take", "1,000", "or", "0.5mg"]),
        ("……，。", []),
        ("", []),
    ],
)
def test_characters_of_chinese_and_whole_words_and_numbers(text: str, expected: list[str]) -> None:
    assert (
        tokens(text, "characters", "zh") == tokens(text, "characters", "en") == tokens(text, "words", "en") == expected
    )


def test_chinese_words_are_those_of_the_dictionary() -> None:
    assert tokens("高血压患者，应注意休息。", "words", "zh") == ["高血压", "患者", "应", "注意", "休息"]
    assert tokens("做B超检查，体温38.5度", "words", "zh") == ["做", "b超", "检查", "体温", "38.5", "度"]
    assert tokens("……，。 \n", "words", "zh") == []


def test_an_unknown_level_or_language_is_refused() -> None:
    for level, language in (("letters", "zh"), ("words", "fr")):
        with pytest.raises(ValueError, match="tokens: got"):
            tokens("a", level, language)  # type: ignore[arg-type]


def test_scores_of_an_english_answer_by_hand() -> None:
    """Matches 5 of 6, 3 of 5, 1 of 4 and 0 of 3, the last smoothed to 1/2 of 3; as long as the reference."""
    assert row_scores(CAT) == pytest.approx(
        {
            "bleu-1": 5 / 6,
            "bleu-2": math.sqrt(1 / 2),
            "bleu-3": 1 / 2,
            "bleu-4": (1 / 48) ** (1 / 4),
            "gleu": 9 / 18,
            "rouge-1": 5 / 6,
            "rouge-2": 3 / 5,
            "rouge-l": 5 / 6,
        }
    )


def test_scores_of_a_chinese_answer_by_hand() -> None:
    """Three characters against seven: 3 of 3, 1 of 2 and 0 of 1, smoothed to 1/2 of 1; BLEU-4 has no order to add."""
    brevity = math.exp(1 - 7 / 3)
    assert row_scores(WATER) == pytest.approx(
        {
            "bleu-1": brevity,
            "bleu-2": brevity * math.sqrt(1 / 2),
            "bleu-3": brevity * (1 / 4) ** (1 / 3),
            "bleu-4": brevity * (1 / 4) ** (1 / 3),
            "gleu": 4 / 22,
            "rouge-1": 6 / 10,
            "rouge-2": 2 / 8,
            "rouge-l": 6 / 10,
        }
    )


def test_corpus_scores_add_up_counts_by_hand() -> None:
    """With "the cat" for "the cat": 7 of 8, 4 of 6 and 1 of 4 match, and no 4-gram of 3, which isn't smoothed."""
    found = measure([CAT, MetricRow("b", "the cat", "The cat")], "words", "en", resamples=2)
    expected = [7 / 8, math.sqrt(7 / 12), (7 / 48) ** (1 / 3), 0.0]
    assert [found[name].mean for name in CORPUS_SCORES] == pytest.approx(expected)


def test_metrics_of_a_set_by_hand() -> None:
    rows = [MetricRow("a", "多喝水。", None), MetricRow("b", "多休息", None), MetricRow("c", "发烧 几天了？", None)]
    found = measure(rows, "characters", "zh")
    means = {name: estimate.mean for name, estimate in found.items()}
    assert means == pytest.approx(
        {
            "distinct-1": 10 / 11,
            "distinct-2": 1.0,
            "length": 11 / 3,
            "length-characters": 13 / 3,
            "asks": 1 / 3,
            "without-reference": 3,
        }
    )
    assert astuple(found["distinct-2"]) == (1.0, 1.0, 1.0, 3)


def test_answers_to_one_prompt_count_once() -> None:
    rows = [MetricRow("p", "水", "水"), MetricRow("p", "酒", "水"), MetricRow("q", "水", "水")]
    found = measure(rows, "characters", "zh")
    assert found["rouge-1"].mean == found["bleu-1"].mean == pytest.approx(3 / 4)
    assert found["rouge-1"].n == found["length"].n == found["asks"].n == 2
    assert [found[name].mean for name in ("corpus-bleu-1", "distinct-1")] == pytest.approx([2 / 3, 2 / 3])


def test_prompts_without_reference_are_left_out_and_counted() -> None:
    rows = [CAT, MetricRow("none", "The cat", None), MetricRow("marks", "The cat", "……")]
    found = measure(rows, "words", "en")
    assert found["bleu-2"].n == found["corpus-bleu-2"].n == 1
    assert found["bleu-2"].mean == pytest.approx(math.sqrt(1 / 2))
    assert found["without-reference"] == Estimate(2, None, None, 3)
    assert found["length"].n == 3


@pytest.mark.parametrize("answer", ["", "。。。", " \n"])
@pytest.mark.parametrize("level", ["characters", "words"])
def test_empty_answers_count_as_0(answer: str, level: Level) -> None:
    found = measure([MetricRow(f"p{i}", answer, "多喝水") for i in range(3)], level, "zh")
    assert all(found[name] == Estimate(0.0, 0.0, 0.0, 3) for name in (*ANSWER_SCORES, *CORPUS_SCORES))
    assert found["distinct-1"].mean == found["distinct-2"].mean == found["length"].mean == found["asks"].mean == 0
    with pytest.raises(ValueError, match="no rows"):
        measure([], level, "zh")


@given(st.text())
@example("做 B超\u3000检查\x85体温\u202838.5\x1c度")
def test_tokens_have_no_white_space_at_which_libraries_would_split_them(text: str) -> None:
    for level in ("characters", "words"):
        found = tokens(text, level, "zh")
        assert " ".join(found).split() == found


words = st.lists(st.sampled_from("abcd"), max_size=12)


def naive_overlap(answer: list[str], reference: list[str], n: int) -> tuple[int, int, int]:
    """N-grams shared, of the answer, of the reference."""
    own, theirs = (Counter(" ".join(s[i : i + n]) for i in range(len(s) - n + 1)) for s in (answer, reference))
    return (own & theirs).total(), own.total(), theirs.total()


def naive_gleu(answer: list[str], reference: list[str]) -> float:
    shared, own, theirs = np.sum([naive_overlap(answer, reference, n) for n in (1, 2, 3, 4)], axis=0)
    return shared / max(own, theirs, 1)


def naive_rouge(answer: list[str], reference: list[str]) -> list[float]:
    row = [0] * (len(reference) + 1)
    for left in answer:
        above, row = row, [0]
        for i, right in enumerate(reference):
            row.append(above[i] + 1 if left == right else max(row[i], above[i + 1]))
    shared = [naive_overlap(answer, reference, 1), naive_overlap(answer, reference, 2)]
    shared.append((row[-1], len(answer), len(reference)))
    return [2 * both / max(own + theirs, 1) for both, own, theirs in shared]


@given(words, words)
def test_scores_keep_their_bounds(answer: list[str], reference: list[str]) -> None:
    found = scores(answer, reference)
    assert all(0 <= score <= 1 for score in found.values())
    assert found["gleu"] == pytest.approx(naive_gleu(answer, reference))
    assert [found[name] for name in ANSWER_SCORES[5:]] == pytest.approx(naive_rouge(answer, reference))
    if len(answer) >= 2:
        assert min(scores(answer, answer).values()) == pytest.approx(1)


@lru_cache(maxsize=1)
def real_pairs() -> list[MetricRow]:
    """500 real references with another answer, a cut, shuffled or thinned reference, or a mixture as the answer."""
    if not REAL.is_file():
        pytest.skip(f"{REAL} isn't there: the shared data lies beside some checkouts only")
    texts = [json.loads(line)["answer"] for line in REAL.read_text("utf-8").rstrip("\n").split("\n")[:501]]
    rng, rows = random.Random(0), []
    for i in range(500):
        text, other = texts[i], texts[i + 1]
        parts = re.findall(r"[^，。]+[，。]?", text)
        answer = (
            other,
            text[: max(1, len(text) // 2)],
            "".join(rng.sample(parts, len(parts))),
            "".join(c for c in text if rng.random() > 0.2),
            text[: len(text) // 3] + other,
        )[i % 5]
        rows.append(MetricRow(str(i), answer, text))
    return rows


def real_tokens(level: Level) -> tuple[list[list[str]], list[list[str]]]:
    rows = real_pairs()
    return [tokens(r.answer, level, "zh") for r in rows], [tokens(r.reference or "", level, "zh") for r in rows]


@pytest.mark.parametrize("level", ["characters", "words"])
def test_bleu_agrees_with_nltk(level: Level) -> None:
    """Where answers have n-grams of every order; see the module's docstring."""
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu

    answers, references = real_tokens(level)
    weights = [(1 / n,) * n for n in (1, 2, 3, 4)]
    long = [i for i, own in enumerate(answers) if len(own) >= 4]
    assert len(long) > 450
    for i in long:
        ours = scores(answers[i], references[i])
        theirs = sentence_bleu([references[i]], answers[i], weights, SmoothingFunction().method3)
        assert [ours[f"bleu-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(theirs, abs=1e-12)
    corpus = measure([real_pairs()[i] for i in long], level, "zh", resamples=2)
    listed = corpus_bleu([[references[i]] for i in long], [answers[i] for i in long], weights)
    assert [corpus[name].mean for name in CORPUS_SCORES] == pytest.approx(listed, abs=1e-12)


@pytest.mark.parametrize("level", ["characters", "words"])
def test_gleu_rouge_and_distinct_agree_with_naive_counts(level: Level) -> None:
    answers, references = real_tokens(level)
    for answer, reference in zip(answers, references, strict=True):
        found = scores(answer, reference)
        assert found["gleu"] == pytest.approx(naive_gleu(answer, reference), abs=1e-12)
        assert [found[name] for name in ANSWER_SCORES[5:]] == pytest.approx(naive_rouge(answer, reference), abs=1e-12)
    found = measure(real_pairs(), level, "zh", resamples=2)
    pairs = [tuple(own[i : i + 2]) for own in answers for i in range(len(own) - 1)]
    singles = [token for own in answers for token in own]
    assert found["distinct-1"].mean == pytest.approx(len(set(singles)) / len(singles), abs=1e-12)
    assert found["distinct-2"].mean == pytest.approx(len(set(pairs)) / len(pairs), abs=1e-12)


def test_bootstrap_of_a_mean_is_near_the_t_interval_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(5, 2, size=(80, 1))
    found, t = bootstrap_means(values, resamples=4000)[0], mean_interval(values[:, 0])
    assert found.mean == pytest.approx(t.mean) and found.n == 80
    assert t.low is not None and t.high is not None
    assert (found.low, found.high) == pytest.approx((t.low, t.high), abs=0.06 * (t.high - t.low))
    monkeypatch.setattr(bootstrap_module, "_BLOCK", 80 * 7)  # blocks of 7 resamples
    assert bootstrap_means(values, resamples=4000) == [found]
    assert bootstrap_means(values, resamples=4000, seed=1) != [found]


def test_bootstrap_at_its_edges() -> None:
    assert bootstrap_means(np.array([[0.3, 2.0]])) == [Estimate(0.3, None, None, 1), Estimate(2.0, None, None, 1)]
    assert astuple(bootstrap_means(np.full((9, 1), 0.1))[0]) == pytest.approx((0.1, 0.1, 0.1, 9))
    for values, options in ((np.zeros((0, 1)), {}), (np.ones((2, 1)), {"resamples": 0})):
        with pytest.raises(ValueError, match="bootstrap: needs"):
            bootstrap_means(values, **options)
    assert distinct_interval([[], []]) == Estimate(0.0, 0.0, 0.0, 2)


def test_distinct_sees_no_spread_where_prompts_are_alike() -> None:
    """Drawing prompts simply would put the first near 0.63, the share of them that is drawn at all."""
    assert distinct_interval([[f"{i}a", f"{i}b"] for i in range(50)]) == Estimate(1.0, 1.0, 1.0, 50)
    assert distinct_interval([["a", "b"]] * 50) == Estimate(0.02, 0.02, 0.02, 50)


def coverage(interval: Callable[[int], Estimate], truth: float, sets: int = 200) -> float:
    found = [interval(seed) for seed in range(sets)]
    return sum(e.low is not None and e.high is not None and e.low <= truth <= e.high for e in found) / sets


def test_intervals_of_means_cover_the_truth() -> None:
    draw = np.random.default_rng(11)
    share = coverage(lambda seed: bootstrap_means(draw.exponential(1, (40, 1)), seed=seed, resamples=400)[0], 1.0)
    assert share >= 0.9


def simulated(rng: np.random.Generator, topics: int = 30) -> list[int]:
    """An answer of 10 to 60 words: common ones by Zipf's law, and some of its topic's own."""
    size = int(rng.integers(10, 60))
    common, own = (
        np.minimum(rng.zipf(1.4, size), 5000),
        10_000 + 100 * rng.integers(topics) + rng.integers(100, size=size),
    )
    return [int(word) for word in np.where(rng.random(size) < 0.6, common, own)]


def test_intervals_of_corpus_bleu_cover_the_truth() -> None:
    rng, pool = np.random.default_rng(12), []
    for i in range(2000):
        reference = [f"w{word}" for word in simulated(rng)]
        kept = rng.beta(4, 2)
        answer = [word if rng.random() < kept else "x" for word in reference[: int(rng.integers(8, 60))]]
        pool.append(MetricRow(str(i), " ".join(answer), " ".join(reference)))
    draws = [rng.choice(2000, 60, replace=False) for _ in range(200)]
    truth = measure(pool, "words", "en", resamples=2)
    found = [measure([pool[p] for p in drawn], "words", "en", i, resamples=400) for i, drawn in enumerate(draws)]
    for name in CORPUS_SCORES:
        assert coverage(lambda i, name=name: found[i][name], truth[name].mean) >= 0.9, name


@pytest.mark.parametrize("n", [1, 2])
def test_intervals_of_distinct_cover_what_new_prompts_give(n: int) -> None:
    rng = np.random.default_rng(13)
    pool = [ngrams([str(word) for word in simulated(rng)], n) for _ in range(3000)]

    def plain(drawn: list[int]) -> float:
        grams = [gram for prompt in drawn for gram in pool[prompt]]
        return len(set(grams)) / len(grams)

    truth = float(np.mean([plain(list(rng.choice(3000, 50, replace=False))) for _ in range(800)]))
    draws = [rng.choice(3000, 50, replace=False) for _ in range(200)]
    assert coverage(lambda i: distinct_interval([pool[p] for p in draws[i]], seed=i, resamples=400), truth) >= 0.9

    def percentiles(i: int) -> Estimate:
        low, high = np.quantile([plain(list(rng.choice(draws[i], 50))) for _ in range(60)], [0.025, 0.975])
        return Estimate(0, float(low), float(high), 50)

    assert coverage(percentiles, truth, sets=40) < 0.5  # why drawing prompts simply won't do
