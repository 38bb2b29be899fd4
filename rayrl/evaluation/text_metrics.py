"""How near answers are to reference answers, how varied, how long, and whether they ask: HuatuoGPT's QA table.

Reference metrics compare an answer with one reference, by its token n-grams:

- BLEU-n (Papineni et al. 2002; sacreBLEU): brevity penalty times the geometric mean of the precisions of 1- to n-grams
  (so BLEU-2 is cumulative). `bleu-n` is the mean of the answers' own scores; an order without a match is smoothed by
  1 / (2^k * n-grams), k = 1, 2, ... (NIST's; Chen and Cherry 2014, method 3; sacreBLEU's "exp"), orders longer than the
  answer are left out (its "effective order"), and an answer without any token in common is 0. `corpus-bleu-n` adds up
  the counts of all answers first, as the paper defines it, and isn't smoothed: 0 where no n-gram of an order matches.
- GLEU (Wu et al. 2016, section 4.3; NLTK): matching 1- to 4-grams over the larger of the answer's and the reference's
  number of them; mean of answers.
- ROUGE-1, -2 and -L (Lin 2004; rouge_score): F1 of n-grams and of the longest common subsequence of whole answers, mean
  of answers.

HuatuoGPT and its relatives print one number each and don't say which, nor their tokens and smoothing. NLTK has all of
their names and `sentence_bleu` with a smoothing is its usual call, so means of sentence scores over characters are the
likelier reading. Both BLEUs are given, so that either can be compared. NLTK's BLEU differs where an answer has fewer
than n tokens: its method 3 smooths the orders that the answer lacks, and a corpus gets one n-gram for it.

Over all answers of a set: `distinct-1`, `distinct-2` (Li et al. 2016; unique n-grams over all n-grams, where the paper
divides both by tokens), `length` (tokens), `length-characters` (characters but white space), `asks` (share of answers
that put a question to the patient), `without-reference` (how many prompts have none).

Libraries count and score; this module hands them its tokens, joined by spaces, and averages. rouge_score fills
ROUGE-L's table in Python, so that time grows with the square of length: 1,000 real answers of 119 characters on average
take 2.6 s on one core with their intervals, of 356 characters 17 s.

Left out: corpus GLEU (NLTK doesn't give the counts that its interval needs), differences of two models
(`statistics.paired_difference` of scores over prompts has them), several references for one answer, stemming and
synonyms (METEOR), model-based scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sacrebleu.metrics import BLEU

from rayrl.data.units import CJK, UNIT
from rayrl.evaluation.bootstrap import FloatArray, bootstrap, bootstrap_means, distinct_interval
from rayrl.evaluation.statistics import Estimate, by_prompt, proportion_interval
from rayrl.rewards.questions import asks_question

if TYPE_CHECKING:
    from rjieba import Jieba

Level = Literal["characters", "words"]
Language = Literal["zh", "en"]
ORDERS = (1, 2, 3, 4)
ANSWER_SCORES = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "gleu", "rouge-1", "rouge-2", "rouge-l")
CORPUS_SCORES = ("corpus-bleu-1", "corpus-bleu-2", "corpus-bleu-3", "corpus-bleu-4")
_ROUGE = ("rouge1", "rouge2", "rougeL")

_TOKEN = re.compile(rf"\d+(?:[.,]\d+)+[a-zA-Z]*|{UNIT.pattern}")
_HAS_CJK = re.compile(f"[{CJK}]")
_BLEU = BLEU(tokenize="none", effective_order=True)


@dataclass(frozen=True)
class MetricRow:
    """One answer. Example: MetricRow("q-17", "多喝水，多休息。", "注意休息，多饮水。")"""

    prompt_id: str
    answer: str
    reference: str | None
    """None, or a text without tokens: the answer counts in no reference metric."""


@dataclass(frozen=True)
class Comparison:
    """One answer against its reference."""

    scores: tuple[float, ...]
    """Of ANSWER_SCORES, each in 0..1."""
    counts: tuple[int, ...]
    """sacreBLEU's, which add up to a corpus's: both lengths, matching 1- to 4-grams, the answer's 1- to 4-grams."""


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


@lru_cache(maxsize=4096)  # a set is measured whole and by category
def compare(answer: str, reference: str) -> Comparison:
    """Scores and counts of one answer; both as tokens joined by spaces. An answer without tokens scores 0."""
    from nltk.translate.gleu_score import sentence_gleu  # nltk takes 0.7 s: only where there are references

    bleu = _BLEU.sentence_score(answer, [reference])
    counts = (bleu.sys_len, bleu.ref_len, *bleu.counts, *bleu.totals)
    rouge = _rouge_scorer().score(reference, answer)
    scores = (
        *_bleu_by_order(counts, smooth_method="exp", effective_order=True),
        sentence_gleu([reference.split()], answer.split()),
        *(rouge[name].fmeasure for name in _ROUGE),
    )
    return Comparison(scores, counts)


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
    compared: dict[str, list[Comparison]] = {}
    read = cache(lambda text: tokens(text, level, language))  # answers to one prompt share a reference
    for row in rows:
        own = read(row.answer)
        answers.setdefault(row.prompt_id, []).append(own)
        if row.reference and (reference := read(row.reference)):
            compared.setdefault(row.prompt_id, []).append(compare(" ".join(own), " ".join(reference)))
    asking = by_prompt((row.prompt_id, float(asks_question(row.answer))) for row in rows)
    return {
        **(_reference_metrics(list(compared.values()), seed, resamples) if compared else {}),
        **_set_metrics(rows, answers, seed, resamples),
        "asks": proportion_interval(sum(asking.values()), len(asking)),
        "without-reference": Estimate(len(answers) - len(compared), None, None, len(answers)),
    }


def _reference_metrics(prompts: list[list[Comparison]], seed: int, resamples: int) -> dict[str, Estimate]:
    scores = np.array([np.mean([one.scores for one in of_prompt], axis=0) for of_prompt in prompts])
    sums = np.array([np.sum([one.counts for one in of_prompt], axis=0) for of_prompt in prompts], dtype=np.float64)
    means = bootstrap_means(scores, seed=seed, resamples=resamples)
    corpus = bootstrap(sums, _corpus_bleu, seed=seed, resamples=resamples)
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


def _bleu_by_order(counts: Sequence[int], smooth_method: str, effective_order: bool = False) -> list[float]:
    """BLEU-1 to -4 from the counts of an answer, or added up over answers (see Comparison)."""
    (answer_len, reference_len), matches, totals = counts[:2], list(counts[2:6]), list(counts[6:])
    scores = [
        BLEU.compute_bleu(
            matches[:n],
            totals[:n],
            answer_len,
            reference_len,
            smooth_method=smooth_method,
            effective_order=effective_order,
            max_ngram_order=n,
        ).score
        for n in ORDERS
    ]
    return [min(1.0, score / 100) for score in scores]  # rounding leaves 100.00000000000004 for an answer that is equal


def _corpus_bleu(sums: FloatArray) -> FloatArray:
    """Corpus BLEU-1 to -4 of each row of added counts."""
    return np.array([_bleu_by_order(row, smooth_method="none") for row in sums.astype(np.int64).tolist()])


class _Split:
    """rouge_score's tokenizer interface; its own drops every Chinese character."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, as above

    return RougeScorer(_ROUGE, tokenizer=_Split())


@cache
def _segmenter() -> Jieba:
    from rjieba import Jieba  # its dictionary takes 0.1 s: only where Chinese words are asked for

    return Jieba()  # one of its own: words that another module adds would change the metrics
