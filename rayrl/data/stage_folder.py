"""A stage's output folder and its manifest: done once, continued when interrupted, never half there.

A stage that writes data works in `<output_dir>.partial` and publishes it by rename; one that trains works in its own,
which is done when the manifest lies in it. Either way: run again with the same configuration and inputs, nothing is
done; with others, the folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rayrl.config.load import config_hash
from rayrl.config.strict import CommandConfig
from rayrl.errors import UserError

MANIFEST = "manifest.json"
STARTED = "started.json"
RUN_RECORD = "run.json"
"""What PPO writes in the manifest's place (actors/record.py)."""
_PACKAGES = ("rayrl", "ray", "torch", "transformers")


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says of itself (manifest.json)."""

    stage: str
    config_hash: str
    inputs: Mapping[str, str]
    """Path -> fingerprint."""
    counts: Mapping[str, Any]
    """Rows in and out, and dropped by reason: {"in": 10, "out": 8, "dropped": {"answer is empty": 2}}."""
    seed: int
    versions: Mapping[str, str] = field(default_factory=lambda: {name: version(name) for name in _PACKAGES})


def fingerprint(path: str | Path) -> str:
    """64 hexadecimal digits: of a stage's folder its manifest; else of the files' names and bytes.

    What isn't a path (a model's or built-in's name) stands for itself.
    """
    path = Path(path).expanduser()
    if (path / MANIFEST).is_file():
        return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    if not path.exists():
        return hashlib.sha256(str(path).encode()).hexdigest()
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        digest.update(f"{file.relative_to(path.parent)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


class StageFolder:
    """The output folder of one stage. `work` is where it writes until `publish`."""

    def __init__(
        self, config: CommandConfig, output_dir: str | Path, inputs: Sequence[str | Path], *, in_place: bool = False
    ) -> None:
        """`in_place`: for training, whose folder is watched while it runs.

        Raises UserError where the folder holds another configuration's, or other inputs', work.
        """
        self.path = Path(output_dir).expanduser().absolute()
        self.work = self.path if in_place else self.path.with_name(self.path.name + ".partial")
        self._identity = {
            "stage": config.command,
            "config_hash": config_hash(config),
            "inputs": {str(path): fingerprint(path) for path in inputs},
        }
        if self.path.is_file():
            raise UserError(f"{self.path} is a file; choose another output_dir")
        self._check(self.path / MANIFEST)
        self._check(self.work / STARTED)

    @property
    def done(self) -> bool:
        """Whether the stage has been finished, with this configuration and these inputs."""
        return (self.path / MANIFEST).is_file()

    @property
    def begun(self) -> bool:
        """Whether an interrupted run has left its work."""
        return (self.work / STARTED).is_file()

    def begin(self) -> Path:
        """Makes the working folder, or finds what an interrupted run left in it."""
        if not self.begun:
            if self.work.exists() and any(self.work.iterdir()):
                raise UserError(f"{self.work} holds files that aren't this stage's; choose another output_dir")
            self.work.mkdir(parents=True, exist_ok=True)
            _write_json(self.work / STARTED, self._identity)
        return self.work

    def publish(self, counts: Mapping[str, Any], seed: int) -> None:
        """Writes the manifest; from here on the stage is done."""
        manifest = Manifest(**self._identity, counts=counts, seed=seed)  # type: ignore[arg-type]
        _write_json(self.work / MANIFEST, asdict(manifest))
        if self.work != self.path:
            os.replace(self.work, self.path)
        (self.path / STARTED).unlink(missing_ok=True)  # last: a working folder without it would be nobody's

    def discard(self) -> None:
        """Removes what an interrupted run left."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _check(self, file: Path) -> None:
        if not file.is_file():
            if file.name == MANIFEST and self.work != self.path and self.path.is_dir() and any(self.path.iterdir()):
                raise UserError(f"{self.path} isn't empty and holds no {MANIFEST}; choose another output_dir")
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} can't be read ({error}); remove {file.parent} to start again") from error
        differing = [key for key, value in self._identity.items() if before.get(key) != value]
        if differing:
            what = " and ".join({"config_hash": "configuration"}.get(key, key) for key in differing)
            raise UserError(
                f"{file.parent} holds a {before.get('stage')} stage with another {what}; "
                "choose another output_dir, or remove it to start again"
            )


def changed_input(folder: Path, apart: Callable[[Path], bool] = lambda path: False) -> str | None:
    """The first input of a finished stage, or of a PPO run, that is no longer what was read.

    `apart`: which paths aren't looked at. None where all are the same, or where the folder records nothing.
    """
    for record in (folder / MANIFEST, folder / RUN_RECORD):
        if record.is_file():
            inputs: dict[str, str] = json.loads(record.read_text(encoding="utf-8")).get("inputs", {})
            return next((p for p, before in inputs.items() if not apart(Path(p)) and fingerprint(p) != before), None)
    return None


def _write_json(path: Path, value: Any) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
