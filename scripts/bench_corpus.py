"""`rayrl corpus` beside datatrove on one core: reading to segments with the same lexicon and splitter, and MinHash.

    .venv/bin/python scripts/bench_corpus.py ../shared/data/corpus_raw.jsonl --mb 50 --rounds 3

Both read the same JSONL, keep what the same lexicon calls medical, cut it by the same function and write the segments
(rayrl: read, exact duplicates, extract and segment, each to Parquet as in a run; datatrove: JSONL in one pass, without
looking for duplicates). MinHash: signatures of all texts, each program with its own defaults (rayrl: 256 hashes of
character sequences; datatrove: 112 of five words) and written as each does. Runs alternate; medians and ratios are
printed. datatrove runs in an environment of its own, `.bench/datatrove`, made on the first run (PyPI only). One process
and one thread each, no Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".bench" / "datatrove"
PINS = (
    "datatrove==0.10.1", "orjson", "regex", "xxhash<4", "nltk", "tokenizers", "spacy==3.8.18", "numpy<3",
    "ahocorasick-rs==1.0.3", "sentencex==1.0.32", "pyarrow==26.0.1", "pydantic==2.14.3", "PyYAML==6.0.3",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="JSONL with text and language")
    parser.add_argument("--lexicon", type=Path, default=ROOT.parent / "shared" / "data" / "lexicon_medical.txt")
    parser.add_argument("--mb", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # this script again, in one program's environment
    args = parser.parse_args()
    if args.job:
        program, what, folder = args.job
        work = {"rayrl": rayrl, "datatrove": datatrove}[program]
        print(json.dumps(work(what, args.source, args.lexicon, Path(folder))))
        return
    sys.path.insert(0, str(ROOT / "scripts"))
    from corpus_input import write

    peer = _environment()
    with tempfile.TemporaryDirectory(prefix="rayrl-bench-") as folder:
        source = Path(folder) / "input.jsonl"
        size = write(args.source, source, int(args.mb * 1e6)) / 1e6
        for what in ("segments", "minhash"):
            speeds: dict[str, list[float]] = {"rayrl": [], "datatrove": []}
            for number in range(args.rounds):
                for program, python in (("rayrl", Path(sys.executable)), ("datatrove", peer)):
                    out = Path(folder) / f"{what}-{program}-{number}"
                    seconds = _timed(python, source, args.lexicon, (program, what, str(out)))
                    shutil.rmtree(out)
                    speeds[program].append(size / seconds)
                    print(f"{what}, round {number}, {program}: {size / seconds:.2f} MB/s", flush=True)
            ours, theirs = (statistics.median(values) for values in speeds.values())
            print(f"{what}: rayrl {ours:.2f} MB/s, datatrove {theirs:.2f} MB/s, {ours / theirs:.2f} times as fast")


def _timed(python: Path, source: Path, lexicon: Path, job: tuple[str, str, str]) -> float:
    """Seconds that the work took, starting the process apart."""
    command = [str(python), __file__, str(source), "--lexicon", str(lexicon), "--job", *job]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(json.loads(done.stdout.splitlines()[-1]))


def rayrl(what: str, source: Path, lexicon: Path, folder: Path) -> float:
    """The workers' own code, task by task, in this process."""
    from rayrl.config.corpus import CorpusConfig
    from rayrl.corpus.pieces import list_pieces
    from rayrl.corpus.reader import THE_SAME
    from rayrl.data.storage import Place
    from rayrl.stages.corpus_dedup import SketchWorker
    from rayrl.stages.corpus_read import ExactWorker, ReadWorker
    from rayrl.stages.corpus_simple import MAKERS
    from rayrl.stages.corpus_work import Phase, StepWorker, WithoutWorker, files_of

    config = CorpusConfig.model_validate(
        {
            "sources": [{"name": "raw", "path": str(source), "encoding": "utf-8", "columns": {"language": "language"}}],
            "extract": {
                "lexicons": [{"path": str(lexicon)}, {"path": "medical-en"}],
                "thresholds": {"en": 0.03},
            },
            "dedup": {},
        }
    )
    folder.mkdir(parents=True)

    def phase(name: str) -> Phase:
        (folder / name).mkdir()
        return Phase(name, str(folder / name), str(folder / "work"), config)

    tasks = list_pieces(config.sources, int(config.read.split_mb * 2**20)).tasks
    reader, sketch = ReadWorker(phase("documents")), SketchWorker(phase("sketches"))
    exact, without = ExactWorker(phase("links")), WithoutWorker(phase("read"), THE_SAME, True)
    steps = [(name, StepWorker(phase(name), *MAKERS[name])) for name in ("extract", "segment")]
    began = time.perf_counter()
    counts = [reader.do(number, [asdict(piece) for piece in pieces]) for number, pieces in enumerate(tasks)]
    shards = files_of(Place(str(folder / "documents")), counts)
    if what == "minhash":
        began = time.perf_counter()
        for number, shard in enumerate(shards):
            sketch.do(number, shard)
        return time.perf_counter() - began
    exact.do(0, {"shards": shards, "parts": 1})
    links = [str(folder / "links" / "00000.parquet")]
    counts = [without.do(number, {"shard": shard, "links": links}) for number, shard in enumerate(shards)]
    shards = files_of(Place(str(folder / "read")), counts)
    for name, step in steps:
        counts = [step.do(number, shard) for number, shard in enumerate(shards)]
        shards = files_of(Place(str(folder / name)), counts)
    return time.perf_counter() - began


def datatrove(what: str, source: Path, lexicon: Path, folder: Path) -> float:
    """A datatrove pipeline in this process."""
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from rayrl.config.corpus import ExtractConfig, SegmentConfig
    from rayrl.corpus.lexicon import Lexicon, Matcher
    from rayrl.corpus.segments import segments

    extract = ExtractConfig.model_validate({"lexicons": [{"path": str(lexicon)}, {"path": "medical-en"}]})
    matcher, cut = Matcher(Lexicon.load(extract)), SegmentConfig()
    least = {"en": 0.03}

    def medical(document: object) -> bool:
        language = document.metadata["language"]  # type: ignore[attr-defined]
        return matcher.density(document.text, language).share >= least.get(language, 0.02)  # type: ignore[attr-defined]

    def split(data: object, rank: int = 0, world_size: int = 1) -> object:
        from datatrove.data import Document

        for document in data:  # type: ignore[attr-defined]
            for number, one in enumerate(segments(document.text, document.metadata["language"], cut)):
                more = {**document.metadata, "before": one.before, "after": one.after}
                yield Document(one.text, f"{document.id}.{number}", metadata=more)

    reader = JsonlReader(str(source.parent), glob_pattern=source.name, compression=None)
    began = time.perf_counter()
    if what == "minhash":
        pipeline = [reader, MinhashDedupSignature(str(folder))]
    else:
        pipeline = [reader, LambdaFilter(medical), split, JsonlWriter(str(folder), compression=None)]
    data = None
    for step in pipeline:
        data = step(data, 0, 1)  # type: ignore[operator]
    for _ in data or ():
        pass
    return time.perf_counter() - began


def _environment() -> Path:
    """datatrove's Python."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "pins"
    if not stamp.is_file() or stamp.read_text() != " ".join(PINS):
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
        stamp.write_text(" ".join(PINS))
    return python


if __name__ == "__main__":
    main()
