"""What a finished stage achieved, in a few words, from the files it left."""

from __future__ import annotations

import json
from pathlib import Path

from rayrl.data.stage_folder import MANIFEST


def headline(folder: Path) -> str:
    """`headline` of the stage's summary.json, else the rows its manifest counts; "" where there is neither."""
    summary, manifest = folder / "summary.json", folder / MANIFEST
    if summary.is_file():
        said = json.loads(summary.read_text(encoding="utf-8")).get("headline")
        if said:
            return str(said)
    if manifest.is_file():
        counts = json.loads(manifest.read_text(encoding="utf-8"))["counts"]
        return ", ".join(f"{counts[key]} {key}" for key in ("in", "out") if key in counts)
    return ""
