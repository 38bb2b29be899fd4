"""What keys a configuration model has: dotted paths, the section behind a key, the valid key nearest to a wrong one.

Used by load.py (errors) and scripts/build_config_reference.py (documentation). Reads pydantic's field annotations;
it validates nothing itself.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from rayrl.config.strict import Strict

Path = tuple[str, ...]


def strip_none(annotation: Any) -> Any:
    """`X` for `X | None`; anything else as it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return annotation


def section_of(annotation: Any) -> type[Strict] | None:
    """The section that `X`, `X | None` or `list[X]` holds, or None where it holds plain values."""
    inner = strip_none(annotation)
    if get_origin(inner) is list:
        inner = get_args(inner)[0]
    return inner if isinstance(inner, type) and issubclass(inner, Strict) else None


def is_list(annotation: Any) -> bool:
    """Whether the key holds a list (of sections or of values)."""
    return get_origin(strip_none(annotation)) is list


def key_paths(model: type[Strict], prefix: Path = ()) -> Iterator[Path]:
    """Every key of a model and of its sections, depth first; items of a list stand as NAME."""
    for key, field in model.model_fields.items():
        yield (*prefix, key)
        section = section_of(field.annotation)
        if section is not None:
            item = ("NAME",) if is_list(field.annotation) else ()
            yield from key_paths(section, (*prefix, key, *item))


def unknown_keys(value: Any, model: type[Strict], prefix: Path = ()) -> Iterator[tuple[Path, type[Strict]]]:
    """Paths in raw data that the model doesn't declare, each with the section in which it stands."""
    if not isinstance(value, dict):
        return
    for key, inside in value.items():
        path = (*prefix, str(key))
        if key not in model.model_fields:
            yield path, model
            continue
        annotation = model.model_fields[key].annotation
        section = section_of(annotation)
        if section is None:
            continue
        if is_list(annotation) and isinstance(inside, list):
            for index, item in enumerate(inside):
                yield from unknown_keys(item, section, (*path, str(index)))
        else:
            yield from unknown_keys(inside, section, path)


def nearest(path: Path, section: type[Strict], root: type[Strict]) -> str:
    """What to write in place of an unknown key: "did you mean 'policy.optimizer.lr'?", or the section's keys.

    Asked in turn: a key of that very name further inside the section, a similar key of the section, a key of that name
    anywhere, a similar one anywhere.
    """
    *parents, key = path
    everywhere = list(key_paths(root))
    named = [known for known in everywhere if known[-1] == key]
    inside = [known for known in named if list(known[: len(parents)]) == parents] if parents else []
    similar = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.6)
    leaves = difflib.get_close_matches(key, {known[-1] for known in everywhere}, n=1, cutoff=0.75)
    found = (
        inside
        or [(*parents, match) for match in similar]
        or named
        or [known for known in everywhere if known[-1] in leaves]
    )
    if found:
        return f"did you mean {' or '.join(repr('.'.join(known)) for known in found[:3])}?"
    return f"valid keys there: {', '.join(section.model_fields)}"
