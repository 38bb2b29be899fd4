"""From a YAML file or a preset's name, and `key.path=value` overrides, to a validated configuration; and back.

Whatever is wrong with the input comes out as a `ConfigError`: one sentence a problem, with the full path of the key,
where it was written and what to write instead. Left out: includes, interpolation and environment variables; a resolved
config is one file that says everything.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayrl.config import schema, yaml_text
from rayrl.config.secret_values import looks_secret
from rayrl.config.strict import CommandConfig, Strict
from rayrl.errors import UserError

PRESETS_DIR = Path(__file__).parent.parent / "presets"
PLACEHOLDER = "path/to/"
"""What presets write where only the user knows the path."""
COMMAND_LINE = "on the command line"

T = TypeVar("T", bound=CommandConfig)


class ConfigError(UserError):
    """What is wrong with a configuration: one sentence a problem, one problem a line."""


def load(model: type[T], source: str, overrides: Sequence[str] = ()) -> T:
    """Reads and validates a configuration.

    Args:
        model: the command's configuration.
        source: path of a YAML file, or the name of one of the command's presets.
        overrides: `key.path=value` with a YAML value; list items by index (`rewards.0.weight=2`) or, for named
            entries, by name (`rewards.questions.weight=2`). Later ones win.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value out of its range, keys that contradict each other,
            a secret.
    """
    path = _locate(source, model.command)
    raw = _read(path)
    _refuse_unknown(raw, f"in {path}", model)
    changed = [_apply(raw, override, model) for override in overrides]
    _refuse_unknown(raw, COMMAND_LINE, model)
    _refuse_secrets(raw, path)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [sentence(problem, str(path), changed) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def dump(config: Strict) -> str:
    """The resolved configuration as YAML, defaults included; `load` reads it back to an equal one."""
    return yaml_text.render(config.model_dump())


def config_hash(config: Strict) -> str:
    """64 hexadecimal digits, the same for equal configurations."""
    return hashlib.sha256(dump(config).encode()).hexdigest()


def presets(command: str = "ppo") -> dict[str, str]:
    """Names of a command's presets in the package, each with its first comment line."""
    return {
        path.stem: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        for path in sorted((PRESETS_DIR / command).glob("*.yaml"))
    }


def placeholders(config: CommandConfig) -> list[str]:
    """Dotted keys that still hold a preset's placeholder path."""
    return [key for key, value in leaves(config.asked_for()) if isinstance(value, str) and PLACEHOLDER in value]


def require_no_placeholders(config: CommandConfig) -> None:
    """Stops a run whose model or data paths the user hasn't filled in.

    Raises:
        ConfigError: names every such key.
    """
    keys = placeholders(config)
    if keys:
        asked = " ".join(f"{key}=PATH" for key in keys)
        raise ConfigError(f"{', '.join(keys)}: only placeholders so far; set them on the command line ({asked})")


def _locate(source: str, command: str) -> Path:
    known = presets(command)
    if source in known:
        return PRESETS_DIR / command / f"{source}.yaml"
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{source} is a folder; name a YAML file or a preset ({', '.join(known)})")
    near = difflib.get_close_matches(path.stem, known, n=1, cutoff=0.5)
    hint = f"did you mean the preset {near[0]!r}?" if near else f"presets: {', '.join(known)}"
    others = [path.parent.name for path in sorted(PRESETS_DIR.glob("*/*.yaml")) if path.stem == source]
    if others:
        hint = f"it is a preset of {' and '.join(f'`rayrl {other}`' for other in others)}; {hint}"
    raise ConfigError(f"no file and no preset is called {source!r}; {hint}")


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml_text.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} isn't UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} isn't valid YAML, {yaml_text.problem_line(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} must hold `key: value` pairs, but holds {'nothing' if raw is None else repr(raw)[:60]}"
        )
    return raw


def _refuse_unknown(raw: dict[str, Any], where: str, model: type[Strict]) -> None:
    lines = [
        f"unknown key {'.'.join(path)!r} {where}; {schema.nearest(path, section, model)}"
        for path, section in schema.unknown_keys(raw, model)
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def _refuse_secrets(raw: Mapping[str, Any], path: Path) -> None:
    """Before anything repeats a value: what a run resolves is written to its folder, and shown."""
    keys = [key for key, value in leaves(raw) if looks_secret(key, value)]
    if keys:
        raise ConfigError(
            f"{', '.join(keys)} holds what looks like a secret, and a configuration is written to the run's folder: "
            f"keep it in an environment variable (in {path} or {COMMAND_LINE})"
        )


def _apply(raw: dict[str, Any], override: str, model: type[Strict]) -> str:
    """Sets one override in the raw data; returns its path as pydantic would write it (list items by index)."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{override!r} on the command line isn't of the form key.path=value")
    parts = key.split(".")
    node: Any = raw
    annotation: Any = model
    taken: list[str] = []
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        slot, inner = _slot(node, annotation, part, taken, model)
        taken.append(str(slot))
        if last:
            node[slot] = _value(text, inner, key)
        else:
            if isinstance(node, dict) and node.get(slot) is None:
                node[slot] = [] if schema.is_list(inner) else {}
            node, annotation = node[slot], inner
    return ".".join(taken)


def _slot(node: Any, annotation: Any, part: str, taken: list[str], model: type[Strict]) -> tuple[str | int, Any]:
    """Where `part` lies in `node`, which the model declares as `annotation`: its key or index, and what it declares."""
    here = ".".join(taken)
    section = schema.section_of(annotation)
    if isinstance(node, list):
        return _index(node, part, here), section if section is not None else Any
    if not isinstance(node, dict):
        raise ConfigError(f"{here}.{part} {COMMAND_LINE}: {here} is a single value and has no keys inside")
    if section is None:
        return part, Any
    if part not in section.model_fields:
        path = (*taken, part)
        raise ConfigError(f"unknown key {'.'.join(path)!r} {COMMAND_LINE}; {schema.nearest(path, section, model)}")
    return part, section.model_fields[part].annotation


def _index(items: list[Any], part: str, here: str) -> int:
    if part.isdecimal():
        if int(part) < len(items):
            return int(part)
        raise ConfigError(f"{here}.{part} {COMMAND_LINE}: the file's list has {len(items)} items, counted from 0")
    names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
    if part in names:
        return next(i for i, item in enumerate(items) if isinstance(item, dict) and item.get("name") == part)
    near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"its entries: {', '.join(names) or 'none with a name'}"
    raise ConfigError(f"{here}.{part} {COMMAND_LINE}: no entry of that name; {hint}")


def _value(text: str, annotation: Any, key: str) -> Any:
    """An override's value. Keys that hold text take it as it is written (`project=2026`, `system_prompt=Note: ...`)."""
    wants_text = schema.strip_none(annotation) is str
    try:
        value = yaml_text.parse(text)
    except yaml.YAMLError as error:
        if wants_text:
            return text
        raise ConfigError(
            f"{key} {COMMAND_LINE}: {text!r} isn't valid YAML ({yaml_text.problem_line(error)})"
        ) from None
    return text if wants_text and not (value is None or isinstance(value, str)) else value


def sentence(problem: ErrorDetails, file: str, changed: list[str]) -> str:
    """What pydantic found, in words: the key with its full path, what is wrong, and where it was written."""
    path = ".".join(str(part) for part in problem["loc"])
    where = f"in {file}"
    if any(path == key or path.startswith(f"{key}.") for key in changed):
        where = COMMAND_LINE
    elif not path and changed:
        where = f"in {file} with {', '.join(changed)} set {COMMAND_LINE}"
    if problem["type"] == "missing":
        return f"{path} is required, and {file} doesn't set it"
    if problem["type"] == "value_error":
        return f"{path + ': ' if path else ''}{problem['ctx']['error']} ({where})"
    got = repr(problem["input"])
    message = problem["msg"].replace("Input should be", "must be")
    return f"{path} {message}, got {got if len(got) <= 60 else got[:60] + '...'} ({where})"


def leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything below; list items by name where they have one."""
    if isinstance(value, Mapping):
        pairs = [(str(key), inside) for key, inside in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [
            (str(item["name"]) if isinstance(item, Mapping) and "name" in item else str(index), item)
            for index, item in enumerate(value)
        ]
    else:
        return [(prefix, value)]
    return [leaf for key, inside in pairs for leaf in leaves(inside, f"{prefix}.{key}" if prefix else key)]
