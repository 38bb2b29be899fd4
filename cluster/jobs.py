"""Starts a stage by its module's name, in this process.

The command line knows stages only by name, so that it loads neither Ray nor a model library, and `ray job submit --
rayrl ...` runs the very same command as the job's driver: submitting needs no code of its own.
"""

from __future__ import annotations

import importlib
from pathlib import Path


def run(module: str, config_path: Path | str) -> None:
    """Imports `module` and calls its `main(config_path: str) -> None`; what it raises goes to the caller."""
    importlib.import_module(module).main(str(config_path))
