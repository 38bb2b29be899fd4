"""Which step each of the simple stages takes: made in the worker, from the configuration."""

from __future__ import annotations

from rayrl.config.corpus import CorpusConfig
from rayrl.corpus.lexicon import Extract, Lexicon, Matcher
from rayrl.corpus.records import Step
from rayrl.corpus.segments import Segments


def extract(config: CorpusConfig) -> Step:
    """Domain text by lexicons."""
    assert config.extract is not None
    return Extract(config.extract, Matcher(Lexicon.load(config.extract)))


def segment(config: CorpusConfig) -> Step:
    """Documents to segments."""
    assert config.segment is not None
    return Segments(config.segment)


STEPS = {"extract": extract, "segment": segment}
