#!/usr/bin/env python
"""Writes docs/configuration.md from the typed configuration models; with --check only says whether it is up to date.

Keys, types, defaults and descriptions come from rayrl/config alone, so that the reference can't say anything else.
Sections that several keys or commands share (`policy.train`, `critic.train`) are printed once, under all their paths.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rayrl.config.commands import COMMANDS
from rayrl.config.schema import is_list, section_of
from rayrl.config.strict import Strict

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"
HEADER = """\
# Configuration

<!-- Written by scripts/build_config_reference.py from rayrl/config; change it there. -->

`rayrl COMMAND SOURCE [key.path=value ...]` reads one YAML file, or one of the command's presets by name (`rayrl
presets`). Unknown keys are refused, and the nearest valid one is named. Values are YAML 1.2: `1e-6` is a number, `no`
is text.

On the command line a key is its dotted path (`policy.optimizer.lr=1e-5`); an item of a list is named by its number from
0 (`rewards.0.weight=2`) or, where items have names, by its name (`rewards.questions.weight=2`). `--dry-run` prints the
resolved configuration (of `ppo` also where every role goes) and starts nothing.
"""
SYMBOLS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def sections(model: type[Strict], path: str = "") -> Iterator[tuple[str, type[Strict]]]:
    """(dotted path, section), the model itself first, then depth first."""
    yield path, model
    for key, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            entry = "NAME" if "name" in inner.model_fields else "NUMBER"
            step = f"{key}.{entry}" if is_list(field.annotation) else key
            yield from sections(inner, f"{path}.{step}" if path else step)


def type_text(annotation: Any, metadata: list[Any]) -> str:
    """A type as a reader wants it: "number > 0", "`a`, `b`", "list of text", "number or null"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0], list(args[1:]) + metadata)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(arg, metadata) for arg in args)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is list:
        return f"list of {type_text(args[0], [])}"
    if origin is tuple:
        return f"[{', '.join(type_text(arg, []) for arg in args)}]"
    if origin is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return "section"
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    bounds = [
        f"{symbol} {getattr(item, name):g}"
        for item in metadata
        for name, symbol in SYMBOLS.items()
        if hasattr(item, name)
    ]
    return " ".join([names[annotation], *([", ".join(bounds)] if bounds else [])])


def default_text(field: FieldInfo) -> str:
    """The default as one would write it in YAML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Strict):
        return "see below"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(str(item) for item in value)}]`"
    return f"`{value or '{}'}`" if isinstance(value, dict) else f"`{value}`"


def table(model: type[Strict]) -> list[str]:
    """One row a key."""
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        kind = type_text(field.annotation, list(field.metadata)).replace("|", "\\|")
        description = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{key}` | {kind} | {default_text(field)} | {description} |")
    return lines


def render() -> str:
    """The whole document."""
    models = {name: command.model() for name, command in COMMANDS.items()}
    paths: dict[type[Strict], dict[str, list[str]]] = {}
    for name, model in models.items():
        for path, section in sections(model):
            paths.setdefault(section, {}).setdefault(name, []).append(path)
    lines = [HEADER]
    for section, where in paths.items():
        first, *others = where
        lines += [f"## rayrl {first}" if section is models[first] else f"### {first}: {_joined(where[first])}", ""]
        also = "; ".join(f"{name}: {_joined(where[name])}" for name in others)
        lines += [(section.__doc__ or "").strip() + (f" Also {also}." if also else ""), "", *table(section), ""]
    return "\n".join(lines).rstrip() + "\n"


def _joined(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the document is out of date")
    args = parser.parse_args()
    text = render()
    if not args.check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET} is out of date: run python {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
