"""The base of every configuration model: unknown keys are refused and the nearest valid one is named."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Strict(BaseModel):
    """A frozen configuration section that accepts only the keys it declares."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(cls.model_fields)}"
                raise ValueError(f"unknown key {key!r}; {hint}")
        return values


class CommandConfig(Strict):
    """The whole configuration of one command."""

    command: ClassVar[str]
    """The command's name; its presets lie in rayrl/presets/<command>/."""

    def asked_for(self) -> dict[str, Any]:
        """The values that this run uses: in them nothing may be left for the user to fill in."""
        return self.model_dump()
