import json
from pathlib import Path

import pytest

from rayrl.tracking.checkpoints import CheckpointStore, link


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
    assert sorted(path.name for path in save(store, 1).iterdir()) == ["policy", "state.json"]


def test_numbers_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=True)
    store.begin(1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.publish(1, {"best_step": None, "best_score": float("nan")})
    assert store.latest() is None


def test_link_is_relative_and_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", keep_last=2, keep_best=True)
    for step in (1, 2):
        link(tmp_path / "run", "policy", save(store, step) / "policy")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert (moved / "policy/model").read_text("utf-8") == "weights of 2"
    assert json.loads((moved / "checkpoints/step-000002/state.json").read_text("utf-8"))["step"] == 2
