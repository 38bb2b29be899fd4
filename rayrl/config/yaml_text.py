"""YAML as people write it today: `1e-6` is a number, `no` and `2026-01-01` are text, a key stands once.

PyYAML follows YAML 1.1, where those mean a string, False and a date, and where the second of two equal keys silently
wins. The scalar rules here are the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema). Merge keys
and includes are left out: a config is one file.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_NUMBER = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_RARE_BREAKS = re.compile("[\r\x85\u2028\u2029\ufeff]")
_SCALARS = {
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    "float": (_NUMBER, list("-+.0123456789")),
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either reading, 1.1 or 1.2, would take for something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.Node:
        # PyYAML writes these line breaks bare outside double quotes and then reads them back as spaces.
        style = '"' if _RARE_BREAKS.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)


def parse(text: str) -> Any:
    """The value that `text` stands for.

    Raises:
        yaml.YAMLError: not YAML; `problem_line` says where.
    """
    return yaml.load(text, Loader=_Loader)


def render(value: Any) -> str:
    """Plain data as YAML that `parse` reads back to the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def problem_line(error: yaml.YAMLError) -> str:
    """One line about a syntax error: "line 3: mapping values are not allowed here"."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]
