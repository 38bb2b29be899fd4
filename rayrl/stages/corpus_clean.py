"""The stage `clean`: a classifier, where one is configured; then every shard."""

from __future__ import annotations

from collections.abc import Sequence

from rayrl.corpus.clean import Clean
from rayrl.corpus.records import Step, Tally
from rayrl.stages.corpus_classifier import QUALITY, fit_classifier, load_classifier
from rayrl.stages.corpus_work import Phase, Stage, StepWorker, tally_of


def clean(stage: Stage, shards: Sequence[str]) -> Tally:
    """Does the stage. Raises UserError where the labels don't do."""
    config = stage.config.clean
    assert config is not None
    if config.quality is not None:
        fit_classifier(stage, shards, QUALITY)
    return tally_of(stage.phase("clean", StepWorker, shards, make_clean, light=True))


def make_clean(phase: Phase) -> Step:
    """In the worker."""
    config = phase.config.clean
    assert config is not None
    return Clean(config, load_classifier(phase, QUALITY))
