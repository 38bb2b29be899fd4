"""How near answers are to reference answers, how varied, how long, and whether they ask: HuatuoGPT's QA table.

What is counted. Reference metrics compare an answer with one reference, by its token n-grams:

- BLEU-n (Papineni et al. 2002): brevity penalty times the geometric mean of the precisions of 1- to n-grams (so BLEU-2
  is cumulative). `bleu-n` is the mean of the answers' own scores; an order without a match, or longer than the answer,
  is smoothed by 1 / (2^k * n-grams), k = 1, 2, ... (NIST's; Chen and Cherry 2014, method 3; NLTK's `method3` and
  sacreBLEU's default "exp"), and an answer without any token in common is 0. `corpus-bleu-n` adds up the counts of all
  answers first, as the paper defines it, and isn't smoothed: 0 where no n-gram of an order matches.
- GLEU (Wu et al. 2016, section 4.3): matching 1- to 4-grams over the larger of the answer's and the reference's
  number of them; `gleu` is the mean of the answers, `corpus-gleu` adds up first.
- ROUGE-1, -2 and -L (Lin 2004): F1 of n-grams and of the longest common subsequence of whole answers, mean of answers.

HuatuoGPT and its relatives print one number each and don't say which, nor their tokens and smoothing. NLTK has all of
their names and `sentence_bleu` with a smoothing is its usual call, so means of sentence scores over characters are the
likelier reading. Both are given, so that either can be compared.

Over all answers of a set: `distinct-1`, `distinct-2` (Li et al. 2016; unique n-grams over all n-grams, where the paper
divides both by tokens), `length` (tokens), `length-characters` (characters but white space), `asks` (share of answers
that put a question to the patient), `without-reference` (how many prompts have none).

The counts are made here once for all metrics, since intervals need them (see bootstrap.py) and NLTK and rouge_score
take long on whole answers; tests compare with both and with sacreBLEU. One difference: NLTK's corpus BLEU counts one
n-gram for an answer too short to have any, this one none, as the paper and sacreBLEU do.

Left out: differences of two models (`statistics.paired_difference` of `answer_scores` over prompts has them), several
references for one answer, stemming and synonyms (METEOR), model-based scores.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from rayrl.data.units import CJK, UNIT
from rayrl.evaluation.bootstrap import FloatArray, bootstrap, bootstrap_means, distinct_interval, ratio
from rayrl.evaluation.statistics import Estimate, by_prompt, proportion_interval
from rayrl.rewards.questions import asks_question

if TYPE_CHECKING:
    from rjieba import Jieba

Level = Literal["characters", "words"]
Language = Literal["zh", "en"]
ORDERS = (1, 2, 3, 4)
ANSWER_SCORES = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "gleu", "rouge-1", "rouge-2", "rouge-l")
CORPUS_SCORES = ("corpus-bleu-1", "corpus-bleu-2", "corpus-bleu-3", "corpus-bleu-4", "corpus-gleu")

_TOKEN = re.compile(rf"\d+(?:[.,]\d+)+[a-zA-Z]*|{UNIT.pattern}")
_HAS_CJK = re.compile(f"[{CJK}]")


@dataclass(frozen=True)
class MetricRow:
    """One answer. Example: MetricRow("q-17", "多喝水，多休息。", "注意休息，多饮水。")"""

    prompt_id: str
    answer: str
    reference: str | None
    """None, or a text without tokens: the answer counts in no reference metric."""


@dataclass(frozen=True)
class Overlap:
    """What an answer shares with its reference; counts for 1- to 4-grams."""

    matches: tuple[int, ...]
    """Each n-gram counts at most as often as the reference has it."""
    answer: tuple[int, ...]
    reference: tuple[int, ...]
    lcs: int
    """Length of the longest common subsequence."""


def tokens(text: str, level: Level, language: Language) -> list[str]:
    """The tokens that metrics count, in lower case and without punctuation.

    characters: each Chinese character (or kana) is a token; Latin words and numbers ("38.5", "0.5mg") stay whole, so
    that English comes out as its words.
    words: English by its words and numbers, as above; Chinese by rjieba, which has jieba's dictionary and cuts Chinese
    as jieba does, with its hidden Markov model for unknown words. It keeps words such as "b超" whole.
    Punctuation is dropped: models differ in full-width marks and markdown, and a shared comma is no agreement.
    Raises ValueError for another level or language.
    """
    if level not in ("characters", "words") or language not in ("zh", "en"):
        raise ValueError(f"tokens: got {level!r} and {language!r}; give 'characters' or 'words', and 'zh' or 'en'")
    if level == "words" and language == "zh":
        pieces = _segmenter().cut(text)
        found = [t for piece in pieces for t in ([piece] if _HAS_CJK.search(piece) else _TOKEN.findall(piece))]
    else:
        found = _TOKEN.findall(text)
    return [token.replace("’", "'").casefold() for token in found]


def overlap(answer: Sequence[str], reference: Sequence[str]) -> Overlap:
    """Counts of one answer and its reference, both as tokens."""
    counts = [(Counter(ngrams(answer, n)), Counter(ngrams(reference, n))) for n in ORDERS]
    return Overlap(
        tuple(sum(min(count, theirs[ngram]) for ngram, count in own.items()) for own, theirs in counts),
        tuple(own.total() for own, _ in counts),
        tuple(theirs.total() for _, theirs in counts),
        lcs_length(answer, reference),
    )


def answer_scores(counts: Overlap) -> dict[str, float]:
    """The scores of ANSWER_SCORES for one answer, each in 0..1; 0 for an answer without tokens."""
    scores = {f"bleu-{n}": score for n, score in zip(ORDERS, _sentence_bleu(counts), strict=True)}
    longer = max(sum(counts.answer), sum(counts.reference))
    scores["gleu"] = sum(counts.matches) / longer if longer else 0.0
    for name, shared, n in (("1", counts.matches[0], 1), ("2", counts.matches[1], 2), ("l", counts.lcs, 1)):
        both = counts.answer[n - 1] + counts.reference[n - 1]
        scores[f"rouge-{name}"] = 2 * shared / both if both else 0.0
    return scores


def measure(
    rows: Sequence[MetricRow], level: Level, language: Language, seed: int = 0, resamples: int = 1000
) -> dict[str, Estimate]:
    """Every metric of the module with its 95% interval; reference metrics only where a row has a reference.

    The unit is the prompt: of several answers to one, the scores are averaged first, and the counts for corpus scores
    and Distinct are added up. `n` is the number of prompts that a metric rests on. Intervals are bootstrapped, that of
    `asks` is Wilson's: where no answer asks, resamples would say 0 for certain.
    Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("measure: no rows; evaluate at least one prompt")
    answers: dict[str, list[list[str]]] = {}
    counts: dict[str, list[Overlap]] = {}
    read = cache(lambda text: tokens(text, level, language))  # answers to one prompt share a reference
    for row in rows:
        own = read(row.answer)
        answers.setdefault(row.prompt_id, []).append(own)
        if row.reference and (reference := read(row.reference)):
            counts.setdefault(row.prompt_id, []).append(overlap(own, reference))
    asking = by_prompt((row.prompt_id, float(asks_question(row.answer))) for row in rows)
    return {
        **(_reference_metrics(list(counts.values()), seed, resamples) if counts else {}),
        **_set_metrics(rows, answers, seed, resamples),
        "asks": proportion_interval(sum(asking.values()), len(asking)),
        "without-reference": Estimate(len(answers) - len(counts), None, None, len(answers)),
    }


def _reference_metrics(prompts: list[list[Overlap]], seed: int, resamples: int) -> dict[str, Estimate]:
    scores = np.array(
        [np.mean([list(answer_scores(one).values()) for one in of_prompt], axis=0) for of_prompt in prompts]
    )
    sums = np.array([np.sum([_corpus_columns(one) for one in of_prompt], axis=0) for of_prompt in prompts])
    means = bootstrap_means(scores, seed=seed, resamples=resamples)
    corpus = bootstrap(sums.astype(np.float64), _corpus_statistic, seed=seed, resamples=resamples)
    return dict(zip(ANSWER_SCORES + CORPUS_SCORES, means + corpus, strict=True))


def _set_metrics(
    rows: Sequence[MetricRow], answers: Mapping[str, list[list[str]]], seed: int, resamples: int
) -> dict[str, Estimate]:
    metrics = {
        f"distinct-{n}": distinct_interval(
            [[gram for answer in own for gram in ngrams(answer, n)] for own in answers.values()],
            seed=seed,
            resamples=resamples,
        )
        for n in (1, 2)
    }
    characters = by_prompt((row.prompt_id, len("".join(row.answer.split()))) for row in rows)
    lengths = [[np.mean([len(a) for a in own]), characters[prompt_id]] for prompt_id, own in answers.items()]
    estimates = bootstrap_means(np.array(lengths, dtype=np.float64), seed=seed, resamples=resamples)
    return metrics | dict(zip(("length", "length-characters"), estimates, strict=True))


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n items, in order."""
    return list(zip(*(items[start:] for start in range(n)), strict=False))


def lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, Bit-parallel LCS-length computation revisited): a bit of `row` is 0 where the table's row
    rises by one, so that one addition does a row. Whole answers would take seconds cell by cell.
    """
    places: dict[str, int] = {}
    for position, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << position
    full = row = (1 << len(left)) - 1
    for token in right:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(left) - row.bit_count()


def _sentence_bleu(counts: Overlap) -> list[float]:
    if not counts.matches[0]:
        return [0.0] * len(ORDERS)
    penalty = min(1.0, math.exp(1 - counts.reference[0] / counts.answer[0]))
    scores, log_sum, halvings = [], 0.0, 0
    for n, matches, total in zip(ORDERS, counts.matches, counts.answer, strict=True):
        if not matches:
            halvings += 1
        log_sum += math.log((matches or 0.5**halvings) / max(1, total))
        scores.append(penalty * math.exp(log_sum / n))
    return scores


def _corpus_columns(counts: Overlap) -> list[int]:
    """What an answer adds to the sums: matches and n-grams by order, the reference's length, GLEU's denominator."""
    longer = max(sum(counts.answer), sum(counts.reference))
    return [*counts.matches, *counts.answer, counts.reference[0], longer]


def _corpus_statistic(sums: FloatArray) -> FloatArray:
    """Corpus BLEU-1 to -4 and corpus GLEU of each row of sums."""
    matches, totals, reference, longer = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    with np.errstate(divide="ignore"):  # log 0 is -inf, which makes the score 0
        log_precisions = np.log(ratio(matches, totals))
    penalty = np.minimum(0.0, 1 - ratio(reference, np.maximum(totals[:, 0], 1)))
    bleu = np.exp(penalty[:, None] + np.cumsum(log_precisions, axis=1) / np.array(ORDERS))
    return np.column_stack([bleu, ratio(matches.sum(axis=1), longer)])


@cache
def _segmenter() -> Jieba:
    from rjieba import Jieba  # its dictionary takes 0.1 s: only where Chinese words are asked for

    return Jieba()  # one of its own: words that another module adds would change the metrics
