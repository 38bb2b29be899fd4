"""`rayrl corpus`: from raw text to instructions, stage by stage, each in a folder of its own (corpus_folder.py).

    read/ extract/ segment/ ...   shards and a manifest each
    config.yaml, summary.json, report.html

A stage's tasks are the shards of the stage before (files, for the first): workers do them in any order, the driver
counts. What is done isn't done again; a run that was cut goes on with the tasks that are missing and ends with the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
import yaml

from cluster.session import connect
from rayrl.config.corpus import CorpusConfig
from rayrl.config.load import dump, load
from rayrl.config.strict import Strict
from rayrl.corpus.contamination import read_items
from rayrl.corpus.lexicon import BUILTIN, Lexicon
from rayrl.corpus.pieces import Listing, list_pieces
from rayrl.corpus.records import Tally
from rayrl.data.lock import only_run
from rayrl.data.stage_folder import MANIFEST, fingerprint
from rayrl.data.storage import Place
from rayrl.errors import UserError
from rayrl.evaluation.corpus_report import corpus_page, summary_of
from rayrl.evaluation.stage_report import render_page
from rayrl.stages.corpus_classifier import CLASSIFIERS
from rayrl.stages.corpus_clean import clean
from rayrl.stages.corpus_dedup import dedup
from rayrl.stages.corpus_folder import CorpusFolder
from rayrl.stages.corpus_read import read
from rayrl.stages.corpus_simple import simple
from rayrl.stages.corpus_work import Stage
from rayrl.tracking.progress import duration
from rayrl.tracking.secrets import masked

logger = logging.getLogger(__name__)

DO: dict[str, Callable[[Stage, Sequence[str]], Tally]] = {"clean": clean, "dedup": dedup}
"""Stages of several phases, from the shards before them."""


def main(config_path: str) -> None:
    """Runs or resumes the stages. Raises UserError for bad input, RunError where a stage fails."""
    config = load(CorpusConfig, config_path)
    root = Place.of(config.output_dir)
    with ExitStack() as alone:
        if root.local is not None:
            root.local.mkdir(parents=True, exist_ok=True)
            alone.enter_context(only_run(root.local))
        Corpus(config, root).run()


class Corpus:
    """One run over the stages."""

    def __init__(self, config: CorpusConfig, root: Place) -> None:
        self._config, self._root = config, root
        self._begun = False

    def run(self) -> None:
        """Does what isn't done yet of the stages that are asked for."""
        config = self._config
        listing = list_pieces(config.sources, int(config.read.split_mb * 2**20))
        for source, others in listing.skipped.items():
            told = ", ".join(f"{number} {suffix}" for suffix, number in sorted(others.items()))
            logger.info("%s: files that aren't read: %s", source, told)
        stages = config.stages()
        first, last = self._asked(stages)
        _check_inputs(_absolute(config), stages)
        before: CorpusFolder | None = None
        done: dict[str, Any] = {}
        with ExitStack() as connection:
            for number, name in enumerate(stages[: last + 1]):
                if number == first and config.from_stage is not None:
                    self._begin(stages[number:])  # the stages before are known to be done
                    self._clear(stages[number:])
                folder = self._folder(name, listing, before)
                if name == config.only and folder.stale:
                    self._begin([name])
                    folder.clear()
                if folder.done:
                    folder.tidy()
                    logger.info("%s is done: %s", name, _headline(folder.manifest()["counts"]))
                elif number < first:
                    raise UserError(f"{name} isn't done yet: run the command without --only or --from first")
                else:
                    self._begin(stages[number : last + 1])
                    if not ray.is_initialized():
                        at = connect(config.ray.address, object_store_mb=config.ray.object_store_mb)
                        connection.enter_context(at)
                    _do(Stage(_absolute(config), folder), before, listing)
                before = folder
                done[name] = folder.manifest()["counts"]
        self._begin([])
        self._report(done)

    def _begin(self, stages: Sequence[str]) -> None:
        """Once, before the first of `stages` is changed: the configuration is written down, and what the last run
        ended with is no more."""
        if self._begun:
            return
        _check_keys(self._config, stages)
        self._begun = True
        lasting = self._config.model_copy(update={"only": None, "from_stage": None})
        (self._root / "config.yaml").write_bytes(dump(lasting).encode())
        for name in ("summary.json", "report.html"):
            (self._root / name).remove()

    def _report(self, done: Mapping[str, Any]) -> None:
        """Writes summary.json and report.html."""
        (self._root / "summary.json").write_json(summary_of(done))
        config = dict(masked(yaml.safe_load(dump(self._config))))
        page = render_page(self._root.name, corpus_page(done), config)
        (self._root / "report.html").write_bytes(page.encode("utf-8", "replace"))
        logger.info("report: %s", (self._root / "report.html").uri)

    def _asked(self, stages: Sequence[str]) -> tuple[int, int]:
        """Numbers of the first and last stage that this run may do."""
        config = self._config
        if config.only is not None and config.from_stage is not None:
            raise UserError("--only makes one stage, --from that and the later ones: give one of the two")
        named = config.only or config.from_stage
        if named is not None and named not in stages:
            raise UserError(f"the configuration has no stage {named}; its stages: {', '.join(stages)}")
        first = 0 if named is None else stages.index(named)
        return first, first if config.only is not None else len(stages) - 1

    def _clear(self, stages: Sequence[str]) -> None:
        """Removes what is to be made anew."""
        for name in stages:
            CorpusFolder(self._root, name, {}, self._config.seed).clear()
        logger.info("made anew: %s; should it be cut, the command without --from goes on", ", ".join(stages))

    def _folder(self, name: str, listing: Listing, before: CorpusFolder | None) -> CorpusFolder:
        """The stage's folder, by what it depends on: its section, and its input."""
        config = self._config
        sections: list[Strict] = [getattr(config, name)]
        if before is None:
            sections += config.sources
            inputs = {"sources": listing.fingerprint()}
        else:
            manifest = (before.place / MANIFEST).read_bytes()
            inputs = {before.name: hashlib.sha256(manifest).hexdigest()}
        hashes = "".join(_hash_of(section) for section in sections) + "".join(map(fingerprint, _named(config, name)))
        own = hashlib.sha256(f"{config.seed} {hashes}".encode()).hexdigest()
        return CorpusFolder(self._root, name, {"config": own, **inputs}, config.seed)


_ENDPOINT_MATTERS = ("endpoint", "model", "temperature", "max_tokens", "max_tokens_key")
_ENGINE_DOESNT = ("engines", "cpus_per_engine", "gpus_per_engine", "threads")


def _hash_of(section: Strict) -> str:
    """Of what shapes a stage's result: an endpoint's budget, cache and pace don't, nor where engines run."""

    def shaping(value: Any) -> Any:
        if not isinstance(value, dict):
            return [shaping(one) for one in value] if isinstance(value, list | tuple) else value
        kept = {key: value[key] for key in _ENDPOINT_MATTERS} if "api_key_env" in value else dict(value)
        if "tensor_parallel" in kept:
            kept = {key: one for key, one in kept.items() if key not in _ENGINE_DOESNT}
            kept["on_gpus"] = value["gpus_per_engine"] > 0  # they round in another way
        return {key: shaping(one) for key, one in kept.items()}

    return hashlib.sha256(json.dumps(shaping(section.model_dump(mode="json"))).encode()).hexdigest()


def _check_inputs(config: CorpusConfig, stages: Sequence[str]) -> None:
    """What a stage would stumble over hours later. Raises UserError."""
    for name in stages:
        for path in _named(config, name):
            if path not in BUILTIN and not Place.of(path).is_file():
                raise UserError(f"{name}: {path} isn't there (built-in lists: {', '.join(BUILTIN)})")
    if config.extract is not None:
        Lexicon.load(config.extract)
    for kind in CLASSIFIERS.values():
        section = kind.config(config)
        if section is not None and section.labels is not None:
            kind.read(section.labels)
    for one in config.decontaminate.sets if config.decontaminate is not None else []:
        read_items(one)


def _check_keys(config: CorpusConfig, stages: Sequence[str]) -> None:
    """Raises UserError where a stage that is to be done will miss the key to its endpoint."""
    asked: list[tuple[str, Any]] = []
    if config.unify is not None and {"unify", "check"} & set(stages):
        asked.append(("unify.endpoint", config.unify.endpoint))
    for name, kind in CLASSIFIERS.items():
        if name in stages and (section := kind.config(config)) is not None:
            asked.append((f"{kind.key}.judge", section.judge))
    for key, endpoint in asked:
        if endpoint is not None and endpoint.api_key_env is not None and endpoint.api_key_env not in os.environ:
            raise UserError(f"{key}.api_key_env: the environment variable {endpoint.api_key_env} isn't set")


def _absolute(config: CorpusConfig) -> CorpusConfig:
    """The configuration for workers, whose working directory may be another."""
    values = config.model_dump()
    quality = (values["clean"] or {}).get("quality") or {}
    detector = (values["check"] or {}).get("detector") or {}
    unify = values["unify"] or {}
    lists = (values["extract"] or {}).get("lexicons", []) + (values["decontaminate"] or {}).get("sets", [])
    owners = [(one, "path") for one in lists] + [(quality, "labels"), (detector, "labels")]
    owners += [(one, "cache") for one in (quality.get("judge"), detector.get("judge"), unify.get("endpoint")) if one]
    for owner, key in owners:
        if owner.get(key) is not None:
            owner[key] = _absolute_path(owner[key])
    encoder = ((values["dedup"] or {}).get("semantic") or {}).get("encoder")
    for owner in (one for one in (encoder, detector.get("encoder"), unify.get("engine")) if one and one["model"]):
        local = Path(owner["model"]).expanduser()  # else a model's name
        owner["model"] = str(local.absolute()) if local.exists() else owner["model"]
    if values["extract"]:
        values["extract"]["stop_words"] = list(map(_absolute_path, values["extract"]["stop_words"]))
    return CorpusConfig.model_validate(values)


def _absolute_path(written: str) -> str:
    return written if written in BUILTIN else Place.of(written).uri


def _named(config: CorpusConfig, name: str) -> list[str]:
    """Files beside the texts that a stage depends on."""
    if name == "extract" and config.extract is not None:
        return [*(one.path for one in config.extract.lexicons), *config.extract.stop_words]
    if name in CLASSIFIERS:
        section = CLASSIFIERS[name].config(config)
        return [section.labels] if section is not None and section.labels is not None else []
    if name == "decontaminate" and config.decontaminate is not None:
        return [one.path for one in config.decontaminate.sets]
    return []


def _do(stage: Stage, before: CorpusFolder | None, listing: Listing) -> None:
    """Runs or resumes a stage, and publishes it."""
    began = time.monotonic()
    stage.folder.begin()
    tally = read(stage, listing) if before is None else DO.get(stage.folder.name, simple)(stage, before.shards())
    total = {side: sizes.total() for side, sizes in tally.sizes.items()}
    counts = {
        "in": total["in"]["rows"],
        "out": total["out"]["rows"],
        "dropped": {reason: entry["rows"] for reason, entry in sorted(tally.dropped.items())},
        "sizes": {side: sizes.rows() for side, sizes in tally.sizes.items()},
        "reasons": dict(sorted(tally.dropped.items())),
        "notes": dict(sorted(tally.notes.items())),
    }
    if not counts["out"]:
        raise UserError(f"{stage.folder.name} keeps none of {counts['in']} texts: {counts['dropped']}")
    stage.folder.publish(counts)
    logger.info("%s: %s, %s", stage.folder.name, _headline(counts), duration(time.monotonic() - began))


def _headline(counts: dict[str, Any]) -> str:
    """Example: "1,200 texts from 3,000, 4.10 of 9.90 million characters\""""
    chars = {side: sum(row["chars"] for row in counts["sizes"][side]) for side in ("in", "out")}
    left = f"{chars['out']:,} of {chars['in']:,} characters"
    if chars["in"] >= 1_000_000:
        left = f"{chars['out'] / 1e6:,.2f} of {chars['in'] / 1e6:,.2f} million characters"
    return f"{counts['out']:,} texts from {counts['in']:,}, {left}"
