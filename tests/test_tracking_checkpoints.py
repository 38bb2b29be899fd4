import hashlib
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from rayrl.errors import RunError
from rayrl.heartbeat import beats
from rayrl.tracking.checkpoints import CheckpointStore, link
from rayrl.tracking.checksums import checksums, damage


def save(store: CheckpointStore, step: int, best: int | None = None) -> Path:
    folder = store.begin(step)
    (folder / "policy").mkdir()
    (folder / "policy/model").write_text(f"weights of {step}", "utf-8")
    return store.publish(step, {"step": step, "best_step": best})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_checkpoint_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    assert store.latest() is None
    folder = store.begin(3)
    assert folder.name == "step-000003.partial"
    assert list(folder.iterdir()) == []
    assert store.latest() is None
    final = store.publish(3, {"step": 3, "best_step": None, "kl": {"value": 0.1}})
    assert names(tmp_path) == ["step-000003"]
    assert store.latest() == (3, final)
    assert store.read_state(final) == {"step": 3, "best_step": None, "kl": {"value": 0.1}}


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    kept = []
    for step, best in [(2, None), (4, 4), (6, 4), (8, 4), (10, 10)]:
        save(store, step, best)
        kept.append([int(name[-6:]) for name in names(tmp_path)])
    assert kept == [[2], [2, 4], [4, 6], [4, 6, 8], [8, 10]]


def test_large_files_count_as_progress_while_they_are_read_and_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=False)
    folder = store.begin(1)
    (folder / "weights").write_bytes(bytes(40 << 20))
    before = beats()
    assert checksums(folder) == {"weights": hashlib.sha256(bytes(40 << 20)).hexdigest()}
    assert beats() == before + 3, "parts of 16 MB"
    for name in "abc":
        (folder / name).touch()
    before = beats()
    store.begin(2)
    assert beats() == before + 4, "each file of the leftover"


def test_what_a_link_names_is_kept(tmp_path: Path) -> None:
    """A checkpoint that somebody has moved to another disk."""
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=False)
    archived = tmp_path / "archive"
    save(store, 1).rename(archived)
    (tmp_path / "checkpoints/step-000001").symlink_to(archived)
    save(store, 2)
    assert names(tmp_path) == ["step-000002"]
    assert damage(archived) is None


def test_the_best_is_kept_only_where_asked(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=False)
    for step in (1, 2, 3):
        save(store, step, best=1)
    assert names(tmp_path) == ["step-000003"]


def test_leftovers_of_killed_runs_are_removed_and_never_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    save(store, 1)
    half = store.begin(2)
    (half / "policy").mkdir()
    torn = tmp_path / "checkpoints/step-000009"  # no state.json: not one of ours, or damaged
    torn.mkdir()
    again = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    latest = again.latest()
    assert latest is not None
    assert latest[0] == 1
    assert list(again.begin(2).iterdir()) == []
    again.publish(2, {"best_step": None})
    assert names(tmp_path) == ["step-000001", "step-000002", "step-000009"]


def test_a_step_that_is_saved_again_replaces_the_old(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    old = save(store, 1)
    (old / "old").touch()
    assert sorted(path.name for path in save(store, 1).iterdir()) == ["SHA256SUMS", "policy", "state.json"]


def test_numbers_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    store.begin(1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.publish(1, {"best_step": None, "best_score": float("nan")})
    assert store.latest() is None


def test_link_is_relative_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    store = CheckpointStore(tmp_path / "run", keep_last=2, keep_best=True)
    for step in (1, 2):
        link(tmp_path / "run", "policy", save(store, step) / "policy")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert (moved / "policy/model").read_text("utf-8") == "weights of 2"
    assert json.loads((moved / "checkpoints/step-000002/state.json").read_text("utf-8"))["step"] == 2


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path, keep_last=2, keep_best=True), 1)
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, capture_output=True)
    assert checked.returncode == 0
    assert checked.stdout.decode().splitlines() == ["policy/model: OK", "state.json: OK"]


def test_every_damaged_copy_is_found_and_the_one_before_is_taken(tmp_path: Path) -> None:
    """50 copies, each with flipped bits or a cut in one of its files, the list of sums among them."""
    generator = random.Random(0)
    whole = tmp_path / "whole"
    (whole / "checkpoints").mkdir(parents=True)
    store = CheckpointStore(whole, keep_last=2, keep_best=True)
    for step in (2, 4):
        folder = store.begin(step)
        for name in ("policy/model.safetensors", "policy_state/state/rank_0.pt", "policy_state/state/rank_1.pt"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(generator.randbytes(3000))
        store.publish(step, {"step": step, "best_step": None, "kl": 0.1})
    assert store.newest_whole() == (4, whole / "checkpoints/step-000004")
    files = sorted(p.relative_to(whole) for p in (whole / "checkpoints/step-000004").rglob("*") if p.is_file())
    assert len(files) == 5
    for number in range(50):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(whole, copy)
        victim = copy / files[number % len(files)]
        content = bytearray(victim.read_bytes())
        if number % 2:
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        else:
            del content[generator.randrange(len(content)) :]
        victim.write_bytes(content)
        damaged = CheckpointStore(copy, keep_last=2, keep_best=True)
        assert damaged.newest_whole() == (2, copy / "checkpoints/step-000002"), (number, victim.name)
        assert names(copy) == ["step-000002", "step-000004.damaged"]


def test_files_that_are_missing_or_not_on_the_list_are_damage(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path, keep_last=2, keep_best=True), 1)
    (path / "more").touch()
    assert damage(path) == "more isn't in SHA256SUMS"
    (path / "more").unlink()
    assert damage(path) is None
    (path / "policy/model").unlink()
    assert damage(path) == "policy/model is missing"
    (path / "SHA256SUMS").unlink()
    assert damage(path) == "it has no SHA256SUMS"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    for step in (1, 2):
        (save(store, step) / "policy/model").write_text("other weights")
    for _ in range(2):  # also a second time, when there is none by that name
        with pytest.raises(RunError, match=r"every checkpoint in .* is damaged \(step-000001\.damaged, step-000002"):
            store.newest_whole()


def test_checkpoints_of_older_versions_are_left_as_they_are(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    path = save(store, 1)
    (path / "SHA256SUMS").unlink()
    with pytest.raises(RunError, match="has a SHA256SUMS: made by an older version"):
        store.newest_whole()
    assert names(tmp_path) == ["step-000001"]
    command = "find * -type f ! -name SHA256SUMS -exec sha256sum {} + > SHA256SUMS"
    subprocess.run(["bash", "-c", command], cwd=path, check=True)
    assert store.newest_whole() == (1, path)


def test_ranks_share_the_work_of_the_sums(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    folder = store.begin(1)
    for i in range(5):
        (folder / f"file-{i}").write_text(str(i))
    parts = [checksums(folder, part, 3) for part in range(3)]
    assert sorted(len(part) for part in parts) == [1, 2, 2]
    assert damage(store.publish(1, {"best_step": None}, {k: v for part in parts for k, v in part.items()})) is None
    folder = store.begin(2)
    (folder / "late").touch()
    with pytest.raises(OSError, match=r"changed while it was written: \['late'"):
        store.publish(2, {"best_step": None}, {})
