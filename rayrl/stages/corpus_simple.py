"""The stages that are one step a shard: extract, segment, decontaminate, unify, check."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence

import pyarrow as pa

from rayrl.corpus.contamination import Decontaminate, read_items
from rayrl.corpus.deviation import Check
from rayrl.corpus.lexicon import Extract, Lexicon, Matcher
from rayrl.corpus.records import INSTRUCTION, TEXT, Step, Tally
from rayrl.corpus.segments import Segments
from rayrl.corpus.unify import Unify
from rayrl.judge.service import ModelService
from rayrl.placement import thread_env
from rayrl.stages.corpus_classifier import DETECTOR, fit_classifier, load_classifier
from rayrl.stages.corpus_generators import make_generator
from rayrl.stages.corpus_work import Phase, Stage, StepWorker, tally_of
from rayrl.stages.pool import Pool

logger = logging.getLogger(__name__)

HITS = "hits.jsonl"
"""Evaluation questions that were found, each with the text that held it."""


def make_extract(phase: Phase) -> Step:
    """Domain text by lexicons."""
    assert phase.config.extract is not None
    return Extract(phase.config.extract, Matcher(Lexicon.load(phase.config.extract)))


def make_segment(phase: Phase) -> Step:
    """Documents to segments."""
    assert phase.config.segment is not None
    return Segments(phase.config.segment)


def make_decontaminate(phase: Phase) -> Step:
    """Texts without evaluation questions."""
    config = phase.config.decontaminate
    assert config is not None
    return Decontaminate(config, [item for one in config.sets for item in read_items(one)])


def make_unify(phase: Phase) -> Step:
    """Segments to instructions."""
    assert phase.config.unify is not None
    return Unify(phase.config.unify, make_generator(phase.config.unify, phase.config.seed))


def make_check(phase: Phase) -> Step:
    """Instructions that keep to their texts."""
    config = phase.config
    assert config.unify is not None and config.check is not None
    generator = make_generator(config.unify, config.seed)
    return Check(config.check, config.unify, generator, load_classifier(phase, DETECTOR))


MAKERS: dict[str, tuple[Callable[[Phase], Step], pa.Schema]] = {
    "extract": (make_extract, TEXT),
    "segment": (make_segment, TEXT),
    "decontaminate": (make_decontaminate, TEXT),
    "unify": (make_unify, INSTRUCTION),
    "check": (make_check, INSTRUCTION),
}
"""By stage: what makes the step in the worker, and what its rows are."""


def simple(stage: Stage, shards: Sequence[str]) -> Tally:
    """Does a stage of MAKERS."""
    name, config = stage.folder.name, stage.config
    if name == "extract" and config.extract is not None:
        lexicon = Lexicon.load(config.extract)
        logger.info("%d terms, %d lines repeat another", len(lexicon.terms), lexicon.repeated)
    service, pool = None, None
    detector = config.check.detector if name == "check" and config.check is not None else None
    if detector is not None:
        fit_classifier(stage, shards, DETECTOR)
    if name in ("unify", "check") and config.unify is not None:
        if config.unify.endpoint is not None:
            # Kept while workers ask: its actor lives as long as the first that asked.
            service = ModelService(config.unify.endpoint)
        else:
            pool = _engines(stage)
    light = pool is None and (detector is None or detector.encoder is None)
    counts = stage.phase(name, StepWorker, shards, *MAKERS[name], pool=pool, light=light)
    del service
    listed = [row for one in counts for row in one["listed"]]
    if name == "decontaminate":
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
        (stage.folder.place / HITS).write_bytes(lines.encode("utf-8", "backslashreplace"))
    tally = tally_of(counts)
    tally.notes.update(f"in {row['set']}" for row in listed)
    return tally


def _engines(stage: Stage) -> Pool:
    assert stage.config.unify is not None and stage.config.unify.engine is not None
    rollout = stage.config.unify.engine.rollout
    return Pool(
        "an engine",
        rollout.engines,
        rollout.cpus_per_engine,
        rollout.gpus_per_engine * rollout.tensor_parallel,
        stage.config.ray.start_timeout_s,
        thread_env(rollout.threads, rollout.cpus_per_engine),
    )
