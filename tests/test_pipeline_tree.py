"""The pipeline's display: on a terminal one tree, elsewhere lines; what stages print is in their logs."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rayrl.stages.pipeline_tree import PipelineTree


def run(folder: Path, console: Console) -> None:
    with PipelineTree(folder, ["sft", "sample", "ppo"], console) as tree:
        tree.skip("sft", 61.0, "loss 2.0")
        with tree.running("sample"):
            print("64 prompts")
            print("half a li", end="")
            print("ne")
            logging.getLogger("rayrl.x").warning("look here")
        tree.finish("sample", "256 answers")
        with pytest.raises(RuntimeError), tree.running("ppo"):
            raise RuntimeError("broken")


def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        run(tmp_path, Console(file=out, width=100))
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.stream is sys.stderr, "given back"
    lines = out.getvalue().splitlines()
    assert lines[:5] == [
        "[1/3] sft: done before: loss 2.0",
        "[2/3] sample: started",
        "    64 prompts",
        "    half a line",
        "    look here",
    ]
    assert lines[5].startswith("[2/3] sample: done in ") and lines[5].endswith(": 256 answers")
    assert (tmp_path / "sample.log").read_text() == "64 prompts\nhalf a line\nlook here\n"


def test_a_tree_on_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    run(tmp_path, Console(file=out, width=100, force_terminal=True, color_system=None))
    last = out.getvalue().split(str(tmp_path))[-1]
    assert "✓ sft" in last and "loss 2.0" in last
    assert "✓ sample" in last and "256 answers" in last
    assert "✗ ppo" in last
    assert "64 prompts" not in last, "the stage's own lines give way to its result"
