"""Which step each of the simple stages takes: made in the worker, from the configuration."""

from __future__ import annotations

from rayrl.config.corpus import CorpusConfig
from rayrl.corpus.deviation import Check
from rayrl.corpus.lexicon import Extract, Lexicon, Matcher
from rayrl.corpus.records import INSTRUCTION, TEXT, Step
from rayrl.corpus.segments import Segments
from rayrl.corpus.unify import Unify
from rayrl.stages.corpus_generators import make_generator


def extract(config: CorpusConfig) -> Step:
    """Domain text by lexicons."""
    assert config.extract is not None
    return Extract(config.extract, Matcher(Lexicon.load(config.extract)))


def segment(config: CorpusConfig) -> Step:
    """Documents to segments."""
    assert config.segment is not None
    return Segments(config.segment)


def unify(config: CorpusConfig) -> Step:
    """Segments to instructions."""
    assert config.unify is not None
    return Unify(config.unify, make_generator(config.unify, config.seed))


def check(config: CorpusConfig) -> Step:
    """Instructions that keep to their texts."""
    assert config.unify is not None and config.check is not None
    return Check(config.check, config.unify, make_generator(config.unify, config.seed))


STEPS = {
    "extract": (extract, TEXT),
    "segment": (segment, TEXT),
    "unify": (unify, INSTRUCTION),
    "check": (check, INSTRUCTION),
}
"""By stage: what makes the step, and what its rows are."""
