"""Starts a stage by its module's name, in this process.

The command line knows stages only by name, so that it loads neither Ray nor a model library. Inside a Ray job it is the
very same command, run as the job's driver; sending one to a cluster is in submission.py.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from cluster.sealed import open_env


def run(module: str, config_path: Path | str) -> None:
    """Imports `module` and calls its `main(config_path: str) -> None`; what it raises goes to the caller.

    A submitted job's secrets are in the environment by then.
    """
    open_env()
    importlib.import_module(module).main(str(config_path))
