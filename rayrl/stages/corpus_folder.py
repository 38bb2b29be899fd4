"""One stage's folder in a corpus: what it was made from, how far it is, and its manifest when it is done.

    00000-0000.parquet ...   shards
    manifest.json            written last: the stage is done
    rejected.jsonl           input that no document could be made of (`read`)
    .work/                   started.json, counts and intermediate files of a stage that isn't done

Unlike other commands' folders it may lie in an object store, where nothing can be renamed: so it is done by its
manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rayrl.data.stage_folder import MANIFEST, STARTED, Manifest
from rayrl.data.storage import Place
from rayrl.errors import UserError

WORK = ".work"
CLEARING = "clearing.json"
REJECTED = "rejected.jsonl"


class CorpusFolder:
    """The folder of the stage `name`. `identity`: hashes of what it depends on, by what they are of."""

    def __init__(self, root: Place, name: str, identity: Mapping[str, str], seed: int) -> None:
        self.name, self.place, self._seed = name, root / name, seed
        self._identity = dict(identity)
        self.work = self.place / WORK

    @property
    def done(self) -> bool:
        """Whether the stage is finished. Raises UserError where it was made, or begun, from something else."""
        if (self.work / CLEARING).is_file():
            return False
        for file in (self.place / MANIFEST, self.work / STARTED):
            if file.is_file():
                self._check(file)
                return file.name == MANIFEST
        return False

    @property
    def stale(self) -> bool:
        """Whether the stage was made, or begun, from something else."""
        try:
            return self.done and False
        except UserError:
            return True

    def begin(self) -> None:
        """Makes the folder, or goes on in it."""
        started = self.work / STARTED
        if (self.work / CLEARING).is_file():
            self.clear()
        if not started.is_file():
            if self.place.files():
                raise UserError(f"{self.place.uri} holds files that aren't this stage's; choose another output_dir")
            started.write_json(self._identity)

    def shards(self) -> list[str]:
        """The finished shards, in order."""
        return [entry.uri for entry in self.place.files() if Place(entry.uri).name.endswith(".parquet")]

    def publish(self, counts: Mapping[str, Any]) -> None:
        """Writes the manifest; from here on the stage is done."""
        inputs = {key: value for key, value in self._identity.items() if key != "config"}
        manifest = Manifest(self.name, self._identity["config"], inputs, counts, self._seed)
        (self.place / MANIFEST).write_json(asdict(manifest))
        self.tidy()

    def tidy(self) -> None:
        """Removes what a finished stage needs no more, and what killed workers left."""
        self.work.remove()
        self.place.sweep()

    def manifest(self) -> dict[str, Any]:
        """What a finished stage says of itself."""
        found: dict[str, Any] = (self.place / MANIFEST).read_json()
        return found

    def clear(self) -> None:
        """Removes all that the stage made; a removal that is cut is finished when the stage begins."""
        if self.place.exists():
            (self.work / CLEARING).write_json({})
            for entry in [*self.place.files(), *self.work.files(recursive=True)]:
                if Place(entry.uri).name != CLEARING:  # it goes last
                    Place(entry.uri).remove()
            self.place.remove()

    def _check(self, file: Place) -> None:
        try:
            found = file.read_json()
            before = found if file.name == STARTED else {"config": found["config_hash"], **found["inputs"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file.uri} can't be read ({error}); `--from {self.name}` makes the stage anew") from error
        differing = [key for key, value in self._identity.items() if before.get(key) != value]
        if differing:
            what = " and ".join({"config": "configuration"}.get(key, key) for key in differing)
            state = "was made" if file.name == MANIFEST else "was begun"
            raise UserError(
                f"{self.place.uri} {state} with another {what}: `--from {self.name}` makes it and the later stages "
                "anew, or choose another output_dir"
            )
