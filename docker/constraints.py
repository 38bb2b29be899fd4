"""Prints the versions of the project's own dependencies in requirements/cpu.lock, as constraints for pip.

The lock as a whole can't constrain the GPU image: vLLM's CUDA build asks for other versions of some parts.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def constraints() -> list[str]:
    """Lines `name==version`, in the lock's order, of what pyproject.toml names outside the extra `dev`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    names = {_plain(re.split(r"[\[<>=!~ ;]", requirement)[0]) for requirement in asked}
    lock = (ROOT / "requirements/cpu.lock").read_text("utf-8").splitlines()
    return [line for line in lock if _plain(line.partition("==")[0]) in names]


def _plain(name: str) -> str:
    """As package indexes compare names: lower case, one `-` for any of `-_.`."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print("\n".join(constraints()))
