"""Configuration of `rayrl pipeline`: stages by name, in order, and how they feed each other.

    output_dir: runs/loop
    stages:
      sft: {preset: tiny, epochs: 1}
      sample: {model: "${sft}/model"}

`${NAME}` is the output folder of an earlier stage, `${pipeline}` the pipeline's own, `preset` one of the stage's own
presets to start from, `command` what runs the stage where its name doesn't say it. Reading resolves all of them, so
that the configuration a run writes down says everything. Left out: branches and parallel stages; a stage fills the
machine by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError, field_validator, model_validator

from rayrl.config import schema, yaml_text
from rayrl.config.commands import COMMANDS
from rayrl.config.load import PRESETS_DIR, presets, sentence
from rayrl.config.parts import RayConfig
from rayrl.config.strict import CommandConfig

REFERENCE = re.compile(r"\$\{([^}]*)\}")
OWN_KEYS = ("command", "preset")
_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]*$")


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run."""

    name: str
    command: str
    config: CommandConfig
    needs: tuple[str, ...]
    """Names of the stages whose folders it reads."""


class PipelineConfig(CommandConfig):
    """Stages that feed each other."""

    command: ClassVar[str] = "pipeline"

    output_dir: str = Field("runs/pipeline", description="A folder for every stage, by its name.")
    seed: int = Field(0, ge=0, description="Of every stage that doesn't set its own.")
    stages: dict[str, dict[str, Any]] = Field(
        description="Stage configurations by name, in the order in which they run; `command` where the name isn't the "
        "command's, `preset` to start from, `${NAME}` for an earlier stage's folder, `${pipeline}` for the pipeline's.",
    )
    until: str | None = Field(
        None, description="The last stage to run, for what people must do in between: rank the sampled answers."
    )
    ray: RayConfig = Field(default_factory=RayConfig, description="The Ray that all stages share.")

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("stages"), dict):
            return raw
        folder = raw.get("output_dir", cls.model_fields["output_dir"].default)
        if not isinstance(folder, str) or not folder:
            raise ValueError("output_dir: name a folder")
        folder = os.path.expanduser(folder)
        seed = raw.get("seed", cls.model_fields["seed"].default)
        resolved: dict[str, Any] = {}
        for name, given in raw["stages"].items():
            resolved[str(name)] = _resolve_stage(str(name), given, folder, seed, list(resolved))
        return {**raw, "output_dir": folder, "stages": resolved}

    @field_validator("stages")
    @classmethod
    def _some(cls, stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not stages:
            raise ValueError("name at least one stage")
        return stages

    @model_validator(mode="after")
    def _until_a_stage(self) -> PipelineConfig:
        if self.until is not None and self.until not in self.stages:
            raise ValueError(f"until: there is no stage {self.until!r} ({', '.join(self.stages)})")
        return self

    def asked_for(self) -> dict[str, Any]:
        """See CommandConfig: stages after `until` may hold placeholders."""
        wanted = {stage.name for stage in self.plan()}
        return {**self.model_dump(), "stages": {name: self.stages[name] for name in self.stages if name in wanted}}

    def plan(self) -> list[Stage]:
        """The stages to run, in order, each with its typed configuration."""
        stages: list[Stage] = []
        for name, values in self.stages.items():
            own = dict(values)
            command = own.pop("command")
            config = COMMANDS[command].model().model_validate(own)
            folders = {stage.name: str(Path(self.output_dir) / stage.name) for stage in stages}
            texts = _texts({key: value for key, value in own.items() if key != "output_dir"})
            needs = [
                other for other, path in folders.items() if any(t == path or t.startswith(f"{path}/") for t in texts)
            ]
            stages.append(Stage(name, command, config, tuple(needs)))
            if name == self.until:
                break
        return stages


def _resolve_stage(name: str, given: Any, folder: str, seed: Any, earlier: list[str]) -> dict[str, Any]:
    if not _NAME.match(name) or name == PipelineConfig.command:
        raise ValueError(f"stages: {name!r} can't name a stage (a-z, 0-9, - and _; not `pipeline`)")
    if not isinstance(given, dict):
        raise ValueError(f"stages.{name} must hold `key: value` pairs, or {{}}")
    own = {key: value for key, value in given.items() if key not in OWN_KEYS}
    command = given.get("command", name)
    known = [key for key in COMMANDS if key != PipelineConfig.command]
    if command not in known:
        raise ValueError(f"stages.{name}: there is no command {command!r}; set `command` to one of {', '.join(known)}")
    model = COMMANDS[command].model()
    if "preset" in given:
        own = _merge(_preset(name, command, given["preset"]), own)
    output_dir = str(Path(folder) / name)
    if own.setdefault("output_dir", output_dir) != output_dir:
        raise ValueError(f"stages.{name}.output_dir is {output_dir} in a pipeline; leave it out")
    if "seed" in model.model_fields:
        own.setdefault("seed", seed)
    folders = {other: str(Path(folder) / other) for other in earlier}
    own = _substitute(own, {**folders, PipelineConfig.command: folder}, name)
    unknown = [
        f"unknown key {'.'.join(('stages', name, *path))!r}; {schema.nearest(path, section, model)}"
        for path, section in schema.unknown_keys(own, model)
    ]
    if unknown:
        raise ValueError("\n".join(unknown))
    try:
        config = model.model_validate(own)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ValueError(f"stages.{name}: " + "\n".join(sentence(p, f"stages.{name}", []) for p in problems)) from None
    return {"command": command, **config.model_dump(mode="json")}


def _preset(name: str, command: str, preset: Any) -> dict[str, Any]:
    known = presets(command)
    if preset not in known:
        raise ValueError(f"stages.{name}.preset: `rayrl {command}` has no preset {preset!r}; it has {', '.join(known)}")
    raw: dict[str, Any] = yaml_text.parse((PRESETS_DIR / command / f"{preset}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in raw.items() if key != "output_dir"}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `base`, section by section; lists and plain values are replaced, entries of a list by name or number.

    So `sources: {real: {path: FILE}}`, or `stages.sft.data.sources.real.path=FILE` on the command line, fills in one
    entry of a preset's list.
    """
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(before, value)
        elif isinstance(before, list) and isinstance(value, Mapping):
            merged[key] = _merge_entries(before, value, key)
        else:
            merged[key] = value
    return merged


def _merge_entries(entries: list[Any], over: Mapping[str, Any], where: str) -> list[Any]:
    merged = list(entries)
    names = [str(entry.get("name", i)) if isinstance(entry, Mapping) else str(i) for i, entry in enumerate(entries)]
    for name, value in over.items():
        if str(name) not in names and not (str(name).isdecimal() and int(name) < len(entries)):
            raise ValueError(f"{where}: the preset's list has no entry {name!r} ({', '.join(names)})")
        place = names.index(str(name)) if str(name) in names else int(name)
        both = isinstance(merged[place], Mapping) and isinstance(value, Mapping)
        merged[place] = _merge(merged[place], value) if both else value
    return merged


def _substitute(value: Any, folders: Mapping[str, str], stage: str) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(inside, folders, stage) for key, inside in value.items()}
    if isinstance(value, list):
        return [_substitute(inside, folders, stage) for inside in value]
    if not isinstance(value, str):
        return value

    def folder(match: re.Match[str]) -> str:
        if match[1] not in folders:
            there = ", ".join(other for other in folders if other != PipelineConfig.command) or "there is none"
            raise ValueError(f"stages.{stage}: {match[0]} names no stage before it ({there})")
        return folders[match[1]]

    return REFERENCE.sub(folder, value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for inside in value.values() for text in _texts(inside)]
    if isinstance(value, list | tuple):
        return [text for inside in value for text in _texts(inside)]
    return [value] if isinstance(value, str) else []
