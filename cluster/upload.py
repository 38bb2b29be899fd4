"""What a job takes along of its working directory: which files, how large, and the archive that Ray unpacks for it.

`.gitignore` and `.rayignore` count in every folder, as in Ray's own packaging, and EXCLUDES are left out unasked: what
can be made anew, weights, and files that usually hold keys. What the caller names goes along whatever these say. Links
to folders, and links that lead out of the directory, are left out.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.thirdparty.pathspec import PathSpec

from cluster.errors import JobRefused

LIMIT_BYTES = DASHBOARD_CLIENT_MAX_SIZE
"""What the dashboard takes in one request: 100 MiB (its store would take 512)."""
_MADE_ANEW = (
    ".git/",
    ".hg/",
    ".venv/",
    "venv/",
    "__pycache__/",
    "*.egg-info/",
    "node_modules/",
    ".cache/",
    ".*_cache/",
)
_OF_RUNS = ("runs/", "checkpoints/", "wandb/", "mlruns/", "*.sqlite*")
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.ckpt")
_KEYS = (".env", ".env.*", ".netrc", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".ssh/", ".aws/", ".kube/", ".ray/")
EXCLUDES = (*_MADE_ANEW, *_OF_RUNS, *_WEIGHTS, *_KEYS)
"""gitignore patterns."""
_HOPELESS = 20
"""Times the limit: no archive of so much is tried."""

Rules = list[tuple[Path, PathSpec]]


@dataclass(frozen=True)
class Upload:
    """Files of `root`. Example: Upload(Path("/home/me/work"), {"run.yaml": 812, "data/prompts.jsonl": 40960})"""

    root: Path
    files: Mapping[str, int]
    """Path from the root -> bytes."""

    @classmethod
    def of(cls, root: Path, excludes: Sequence[str] = (), named: Iterable[str] = ()) -> Upload:
        """The files under `root`, but for EXCLUDES, `excludes` and what ignore files say, and all of `named`.

        `named`: files or folders, as paths from the root.
        """
        root = root.resolve()
        files: dict[str, int] = {}
        _collect(root, root, [(root, PathSpec.from_lines("gitwildmatch", [*EXCLUDES, *excludes]))], files)
        for name in named:
            if (root / name).is_dir():
                _collect(root, root / name, None, files)
            else:
                files[Path(name).as_posix()] = (root / name).stat().st_size
        return cls(root, dict(sorted(files.items())))

    def pack(self, target: Path, extra: Mapping[str, str]) -> None:
        """Writes the archive, the same bytes for the same files; `extra`: text files of the caller's own.

        Raises JobRefused, naming the largest folders, where Ray wouldn't take it.
        """
        total = sum(self.files.values())
        if total > _HOPELESS * LIMIT_BYTES:
            raise JobRefused(self._too_large(f"{total >> 20} MiB"))
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in self.files:
                path = self.root / name
                archive.writestr(_entry(name, path.stat().st_mode), path.read_bytes())
            for name, text in extra.items():
                archive.writestr(_entry(name, 0o644), text)
        packed = target.stat().st_size
        if packed >= LIMIT_BYTES:
            raise JobRefused(self._too_large(f"{total >> 20} MiB, {packed >> 20} packed"))

    def _too_large(self, size: str) -> str:
        folders: Counter[str] = Counter()
        for name, size_bytes in self.files.items():
            for parent in list(Path(name).parents)[:-1] or [Path(name)]:
                folders[parent.as_posix()] += size_bytes
        largest = ", ".join(f"{name} {count >> 20}" for name, count in _outermost(folders)[:5] if count >> 20)
        return (
            f"the working directory {self.root} has {size} to upload, and Ray takes {LIMIT_BYTES >> 20} (largest, in "
            f"MiB: {largest}): leave out what the job doesn't need (--exclude, .rayignore), and put data and models "
            "where the cluster sees them, under absolute paths"
        )


def _outermost(folders: Counter[str]) -> list[tuple[str, int]]:
    """Largest first; a folder that is nearly all of its parent stands for it."""
    found: list[tuple[str, int]] = []
    for name, count in sorted(folders.items(), key=lambda one: (-one[1], one[0].count("/"))):
        nearly = next((i for i, (other, size) in enumerate(found) if name.startswith(f"{other}/")), None)
        if nearly is None:
            found.append((name, count))
        elif count > 0.9 * found[nearly][1]:
            found[nearly] = (name, count)
    return found


def _collect(root: Path, folder: Path, rules: Rules | None, files: dict[str, int]) -> None:
    """Adds the files below `folder`. `rules`: None takes all."""
    inside = None if rules is None else rules + _ignore_files(folder)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            path = Path(entry.path)
            is_folder = entry.is_dir()
            if entry.is_symlink() and (is_folder or not path.resolve().is_relative_to(root)):
                continue
            if inside is not None and _left_out(path, is_folder, inside):
                continue
            if is_folder:
                _collect(root, path, inside, files)
            elif path.is_file():  # neither a socket nor a link to nothing
                files[path.relative_to(root).as_posix()] = entry.stat().st_size


def _ignore_files(folder: Path) -> Rules:
    no_git = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1"  # Ray's own variable
    paths = [folder / name for name in ((".rayignore",) if no_git else (".gitignore", ".rayignore"))]
    return [
        (folder, PathSpec.from_lines("gitwildmatch", path.read_text("utf-8", errors="replace").splitlines()))
        for path in paths
        if path.is_file()
    ]


def _left_out(path: Path, is_folder: bool, rules: Rules) -> bool:
    mark = "/" if is_folder else ""
    return any(spec.match_file(path.relative_to(base).as_posix() + mark) for base, spec in rules)


def _entry(name: str, mode: int) -> zipfile.ZipInfo:
    """Without the file's time: the same files make the same archive, which Ray then has already."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (mode & 0o777) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
