"""A stage's folder: done once, continued after a cut, refused to others, never half there."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import ClassVar

import pytest

from rayrl.config.load import config_hash
from rayrl.config.strict import CommandConfig
from rayrl.data.stage_folder import MANIFEST, STARTED, StageFolder, fingerprint
from rayrl.errors import UserError


class CopyConfig(CommandConfig):
    command: ClassVar[str] = "copy"
    times: int = 1


class MoveConfig(CommandConfig):
    command: ClassVar[str] = "move"
    times: int = 1


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("one\n")
    return path


def run(folder: StageFolder, name: str = "out.txt") -> None:
    (folder.begin() / name).write_text("done")
    folder.publish({"in": 1, "out": 1}, seed=3)


def files(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def test_nothing_is_there_until_it_is_whole(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "runs" / "copy"
    folder = StageFolder(CopyConfig(), out, [source])
    assert not folder.done and not out.parent.exists()  # looking leaves nothing
    work = folder.begin()
    assert work == folder.work == tmp_path / "runs" / "copy.partial"
    (work / "out.txt").write_text("x")
    assert not out.exists() and not folder.done
    folder.publish({"in": 2, "out": 1, "dropped": {"answer is empty": 1}}, seed=7)
    assert folder.done and not work.exists()
    assert sorted(file.name for file in out.iterdir()) == [MANIFEST, "out.txt"]
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["stage"] == "copy" and manifest["seed"] == 7
    assert manifest["config_hash"] == config_hash(CopyConfig())
    assert manifest["inputs"] == {str(source): fingerprint(source)}
    assert manifest["counts"] == {"in": 2, "out": 1, "dropped": {"answer is empty": 1}}
    assert set(manifest["versions"]) == {"rayrl", "ray", "torch", "transformers"}


def test_in_place_works_in_its_own_folder(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "train"
    folder = StageFolder(CopyConfig(), out, [source], in_place=True)
    assert folder.begin() == out and not folder.done
    (out / "metrics.jsonl").write_text("{}\n")
    again = StageFolder(CopyConfig(), out, [source], in_place=True)
    assert not again.done and again.begin() == out  # goes on
    run(again)
    assert StageFolder(CopyConfig(), out, [source], in_place=True).done
    assert {MANIFEST, "metrics.jsonl", "out.txt"} <= set(files(out))


@pytest.mark.parametrize("in_place", [False, True])
def test_done_is_done_for_the_same_configuration_and_inputs(tmp_path: Path, source: Path, in_place: bool) -> None:
    out = tmp_path / "out"
    run(StageFolder(CopyConfig(), out, [source], in_place=in_place))
    before = files(tmp_path)
    assert StageFolder(CopyConfig(), out, [source], in_place=in_place).done
    with pytest.raises(UserError, match="holds a copy stage with another configuration"):
        StageFolder(CopyConfig(times=2), out, [source], in_place=in_place)
    with pytest.raises(UserError, match="holds a copy stage with another stage and configuration"):
        StageFolder(MoveConfig(times=3), out, [source], in_place=in_place)
    with pytest.raises(UserError, match="another inputs"):
        StageFolder(CopyConfig(), out, [source, "tiny-random"], in_place=in_place)
    source.write_text("two\n")
    with pytest.raises(UserError, match="another inputs"):
        StageFolder(CopyConfig(), out, [source], in_place=in_place)
    source.write_text("one\n")
    assert files(tmp_path) == before


@pytest.mark.parametrize("in_place", [False, True])
def test_a_cut_stage_goes_on_and_only_with_what_it_began_with(tmp_path: Path, source: Path, in_place: bool) -> None:
    out = tmp_path / "out"
    first = StageFolder(CopyConfig(), out, [source], in_place=in_place)
    (first.begin() / "shard-0").write_text("0")
    again = StageFolder(CopyConfig(), out, [source], in_place=in_place)
    assert not again.done
    assert (again.begin() / "shard-0").read_text() == "0"
    with pytest.raises(UserError, match="another configuration"):
        StageFolder(CopyConfig(times=2), out, [source], in_place=in_place)
    source.write_text("two\n")
    with pytest.raises(UserError, match="another inputs"):
        StageFolder(CopyConfig(), out, [source], in_place=in_place)
    source.write_text("one\n")
    run(again)
    assert (out / "shard-0").is_file() and again.done


def test_discard_starts_again(tmp_path: Path, source: Path) -> None:
    folder = StageFolder(CopyConfig(), tmp_path / "out", [source])
    (folder.begin() / "shard-0").write_text("0")
    folder.discard()
    assert not folder.work.exists()
    other = StageFolder(CopyConfig(times=2), tmp_path / "out", [source])
    assert [file.name for file in other.begin().iterdir()] == [STARTED]


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    StageFolder(CopyConfig(), out, [source])  # an empty folder is no one's
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"isn't empty and holds no manifest\.json"):
        StageFolder(CopyConfig(), out, [source])
    in_place = StageFolder(CopyConfig(), out, [source], in_place=True)
    with pytest.raises(UserError, match="holds files that aren't this stage's"):
        in_place.begin()
    partial = tmp_path / "new.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds files that aren't this stage's"):
        StageFolder(CopyConfig(), tmp_path / "new", [source]).begin()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="is a file"):
        StageFolder(CopyConfig(), file, [source])
    assert files(out) == {"thesis.txt": "years of work"} == files(partial)


def test_an_empty_folder_is_published_over(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run(StageFolder(CopyConfig(), out, [source]))
    assert set(files(out)) == {MANIFEST, "out.txt"}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_kill_between_the_manifest_and_the_rename(tmp_path: Path, source: Path, in_place: bool) -> None:
    """Whatever of publishing was done before the kill, the next run ends it."""
    out = tmp_path / "out"
    folder = StageFolder(CopyConfig(), out, [source], in_place=in_place)
    (folder.begin() / "shard-0").write_text("0")
    real = os.replace

    def killed(source: str | Path, target: str | Path) -> None:
        real(source, target)
        if Path(target).name == MANIFEST:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.publish({}, 0)
    again = StageFolder(CopyConfig(), out, [source], in_place=in_place)
    if not again.done:
        assert (again.begin() / "shard-0").is_file()
        again.publish({}, 0)
    assert StageFolder(CopyConfig(), out, [source], in_place=in_place).done
    assert {MANIFEST, "shard-0"} <= set(files(out)) <= {MANIFEST, STARTED, "shard-0"}
    assert not out.with_name("out.partial").exists()


def test_a_kill_just_before_the_rename(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    folder = StageFolder(CopyConfig(), out, [source])
    (folder.begin() / "shard-0").write_text("0")
    with pytest.MonkeyPatch.context() as patch:
        real = os.replace

        def killed(source: str | Path, target: str | Path) -> None:
            if Path(target) == out:
                raise KeyboardInterrupt
            real(source, target)

        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.publish({}, 0)
    again = StageFolder(CopyConfig(), out, [source])
    assert not again.done
    assert (again.begin() / "shard-0").is_file()
    again.publish({}, 0)
    assert set(files(out)) == {MANIFEST, "shard-0"}


def test_a_torn_record_of_the_start_is_said(tmp_path: Path, source: Path) -> None:
    folder = StageFolder(CopyConfig(), tmp_path / "out", [source])
    (folder.begin() / STARTED).write_text('{"stage": "co')
    with pytest.raises(UserError, match=r"started\.json.*can't be read"):
        StageFolder(CopyConfig(), tmp_path / "out", [source])


def test_fingerprints_follow_content_and_names(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "data", tmp_path / "b" / "data"
    for folder in (one, two):
        (folder / "deep").mkdir(parents=True)
        (folder / "x.jsonl").write_text("x")
        (folder / "deep" / "y.jsonl").write_text("y")
        time.sleep(0.01)
    assert fingerprint(one) == fingerprint(two) and len(fingerprint(one)) == 64  # wherever it lies, whenever written
    seen = {fingerprint(one)}
    (two / "x.jsonl").write_text("X")
    seen.add(fingerprint(two))
    (two / "x.jsonl").rename(two / "z.jsonl")
    seen.add(fingerprint(two))
    shutil.rmtree(two / "deep")
    seen.add(fingerprint(two))
    assert len(seen) == 4
    assert fingerprint("tiny-random") == fingerprint("tiny-random") != fingerprint("smollm2-135m-instruct")
    # A file's content can't pass for another file.
    for name in ("p", "q"):
        (tmp_path / name / "d").mkdir(parents=True)
    (tmp_path / "p" / "d" / "1").write_text("x")
    (tmp_path / "p" / "d" / "2").write_text("")
    (tmp_path / "q" / "d" / "1").write_text("xd/2")
    assert fingerprint(tmp_path / "p" / "d") != fingerprint(tmp_path / "q" / "d")


def test_a_stage_s_folder_is_known_by_its_manifest(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    run(StageFolder(CopyConfig(), out, [source]))
    before = fingerprint(out)
    (out / "report.html").write_text("written again later")
    assert fingerprint(out) == before
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps({**manifest, "seed": 4}))
    assert fingerprint(out) != before


def test_texts_in_counts_stay_as_they_are(tmp_path: Path, source: Path) -> None:
    folder = StageFolder(CopyConfig(), tmp_path / "out", [source])
    folder.begin()
    folder.publish({"departments": {"内科": 3}}, 0)
    written = (tmp_path / "out" / MANIFEST).read_text(encoding="utf-8")
    assert "内科" in written and json.loads(written)["counts"] == {"departments": {"内科": 3}}
