"""Near-duplicates: sketches, candidates and groups through real files, and neighbours among vectors."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrl.config.corpus import EncoderConfig
from rayrl.corpus import minhash
from rayrl.corpus.embed import NGrams, make_encoder, unit_length
from rayrl.corpus.groups import groups, links
from rayrl.corpus.minhash import place_of
from rayrl.corpus.neighbours import centres, into_cells, near_pairs
from rayrl.corpus.records import texts
from rayrl.corpus.shingles import flat, mixed, shingles


def test_shingles_by_hand() -> None:
    assert len(shingles("头痛三天", "zh")) == 2  # 头痛三 痛三天
    assert len(shingles("abababab", "en")) == 2  # ababa babab
    assert len(shingles("My knee hurts", "en")) == 7  # mykneehurts: 11 letters
    assert len(shingles("头痛", "zh")) == len(shingles("flu", "en")) == 1
    assert len(shingles("?! …\n", "zh")) == len(shingles("", "en")) == 0


def test_case_spacing_and_punctuation_do_not_count() -> None:
    assert (shingles("MY knee\nhurts!", "en") == shingles("my-knee hurts", "en")).all()
    assert (shingles("头痛，三天。", "zh") == shingles("头痛三天", "zh")).all()
    found = shingles("头痛三天头痛三天", "zh")
    assert (found[1:] > found[:-1]).all() and len(found) == 4  # 头痛三 痛三天 三天头 天头痛


def test_other_characters_and_another_order_are_other_shingles() -> None:
    for one, other in (("abcde", "abced"), ("abcde", "bcdea"), ("aaaaa", "aaaab")):
        assert not np.intersect1d(shingles(one, "en"), shingles(other, "en")).size
    assert len(np.unique(mixed(np.arange(10_000, dtype=np.uint64)))) == 10_000


def test_sets_one_behind_the_other() -> None:
    hashes, offsets = flat([np.array([1, 2], np.uint64), np.array([], np.uint64), np.array([5], np.uint64)])
    assert hashes.tolist() == [1, 2, 5] and offsets.tolist() == [0, 2, 2, 3]
    assert flat([])[1].tolist() == [0]


def sets_of(similarity: float, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of hashes whose union has `size` and whose Jaccard similarity is as near as can be."""
    both = rng.integers(0, 1 << 63, size, dtype=np.uint64)
    shared = round(similarity * size)
    cut = (size + shared) // 2
    return both[:cut], both[cut - shared :]


def test_the_estimate_is_the_jaccard_similarity() -> None:
    rng = np.random.default_rng(0)
    exact = np.repeat([0.0, 0.2, 0.4, 0.6, 0.9, 1.0], 60)
    pairs = [sets_of(one, 200, rng) for one in exact]
    left, right = ((minhash.signatures(side) & 0xFF).astype(np.uint8) for side in zip(*pairs, strict=True))
    errors = minhash.estimate(left, right) - exact
    assert np.abs(errors).mean() < 0.025  # a standard deviation of sqrt(J (1 - J) / 256) is 0.03 at most
    assert np.abs(errors.reshape(6, 60).mean(axis=1)).max() < 0.012
    assert np.abs(errors).max() < 0.13


def test_pairs_share_a_band_as_often_as_the_formula_says() -> None:
    rng = np.random.default_rng(1)
    for similarity in (0.3, 0.4, 0.5):
        pairs = [sets_of(similarity, 200, rng) for _ in range(300)]
        left, right = (minhash.signatures(side) for side in zip(*pairs, strict=True))
        equal = (left == right).reshape(300, minhash.BANDS, -1).all(axis=2).any(axis=1).mean()
        assert equal == pytest.approx(1 - (1 - similarity**4) ** minhash.BANDS, abs=0.08)


def corpus() -> tuple[list[dict[str, object]], set[tuple[int, int]]]:
    """300 random texts in two languages, and 40 copies of some with a few characters replaced."""
    rng = random.Random(7)

    def one(chinese: bool) -> str:
        alphabet = [chr(0x4E00 + n) for n in range(2000)] if chinese else list("abcdefghijklmnopqrstuvwxyz      ")
        return "".join(rng.choices(alphabet, k=rng.randint(60, 200)))

    rows = [{"text": one(n % 2 == 0), "language": "zh" if n % 2 == 0 else "en"} for n in range(300)]
    planted = set()
    for original in rng.sample(range(300), 40):
        text = list(rows[original]["text"])
        for at in rng.sample(range(len(text)), len(text) // 25):
            text[at] = rng.choice(text)
        planted.add((original, len(rows)))
        rows.append({"text": "".join(text), "language": rows[original]["language"]})
    rows += [{"text": "？！", "language": "zh"}, {"text": "…", "language": "zh"}]
    return rows, planted


def near(folder: Path, rows: list[dict[str, object]], cuts: list[int], threshold: float = 0.4) -> set[tuple[int, int]]:
    """Pairs of rows that are found through files, as the stage does it, with shards that end at `cuts`."""
    folder.mkdir()
    edges = [0, *cuts, len(rows)]
    names: dict[str, list[str]] = {"sketch": [], "candidates": [], "half": [], "similar": []}

    def write(kind: str, table: pa.Table) -> None:
        names[kind].append(str(folder / f"{kind}{len(names[kind])}.parquet"))
        pq.write_table(table, names[kind][-1], row_group_size=50)

    shards = range(len(edges) - 1)
    for shard in shards:
        write("sketch", minhash.sketches(texts(rows[edges[shard] : edges[shard + 1]])))
    for band in range(minhash.BANDS):
        write("candidates", minhash.candidates(names["sketch"], band))
    for shard in shards:
        write("half", minhash.with_signatures(names["candidates"], names["sketch"][shard], shard))
    for shard in shards:
        write("similar", minhash.similar(names["half"], names["sketch"][shard], shard, threshold))
    pairs = minhash.read_pairs(names["similar"])
    numbers = np.array(edges)[pairs >> 32] + (pairs & 0xFFFFFFFF)
    return {(a, b) for a, b in numbers.tolist()}


def test_planted_pairs_and_nothing_else_whatever_the_cut_into_shards(tmp_path: Path) -> None:
    rows, planted = corpus()
    assert near(tmp_path / "one", rows, []) == planted
    assert near(tmp_path / "three", rows, [100, 250]) == planted
    assert near(tmp_path / "uneven", rows, [1, 1, 341]) == planted
    assert near(tmp_path / "strict", rows, [100, 250], threshold=1.0) == set()


def test_candidates_are_linked_with_the_first_of_a_band_and_the_one_before(tmp_path: Path) -> None:
    same = {"text": "头痛三天了，请问应该吃什么药？", "language": "zh"}
    rows = [same, {"text": "今天天气很好，我们去公园。", "language": "zh"}, same, same, same]
    for number, part in enumerate((rows[:3], rows[3:])):
        pq.write_table(minhash.sketches(texts(part)), tmp_path / str(number))
    found = minhash.candidates([str(tmp_path / "0"), str(tmp_path / "1")], 5)
    third, fourth = (int(place_of(1, np.array([row]))[0]) for row in (0, 1))
    assert found.to_pylist() == [
        {"a": a, "b": b} for a, b in ((0, 2), (0, third), (0, fourth), (2, third), (third, fourth))
    ]
    assert minhash.candidates([], 0).num_rows == 0


def test_sketches_of_nothing() -> None:
    assert minhash.sketches(texts([])).num_rows == 0
    (row,) = minhash.sketches(texts([{"text": "？！", "language": "zh"}])).to_pylist()
    assert row["chars"] == 2 and row["band0"] is None and row["band63"] is None


def test_groups_are_chains_of_pairs() -> None:
    places, labels = groups(np.array([[1, 5], [5, 9], [2, 7], [9, 11]]))
    assert places.tolist() == [1, 2, 5, 7, 9, 11]
    assert [labels.tolist()[i] == labels[0] for i in range(6)] == [True, False, True, False, True, True]


def write_measures(folder: Path, shards: list[list[tuple[float | None, int]]]) -> list[str]:
    """Sketch files with these (quality, characters)."""
    files = []
    for number, rows in enumerate(shards):
        table = minhash.sketches(texts([{"text": "痛" * chars, "language": "zh", "quality": q} for q, chars in rows]))
        files.append(str(folder / f"{number}.parquet"))
        pq.write_table(table, files[-1], row_group_size=2)
    return files


def test_the_best_of_a_group_stays(tmp_path: Path) -> None:
    files = write_measures(
        tmp_path,
        [
            [(0.900, 10), (0.904, 20), (0.5, 99), (None, 30), (None, 30)],
            [(0.8, 500), (0.1, 1), (0.9, 5), (None, 40)],
        ],
    )
    second = int(place_of(1, np.zeros(1))[0])
    pairs = np.array(
        [
            *([0, 1], [1, 2], [2, second]),  # the same quality in hundredths: the longer one
            [3, 4],  # equal in all: the first
            *([second + 1, second + 2], [second + 2, second + 3]),  # the best quality, though it is short
        ]
    )
    table, sizes = links(pairs, files)
    found = {(row["shard"], row["row"]): (row["kept_shard"], row["kept_row"]) for row in table.to_pylist()}
    assert found == {
        **{(0, 0): (0, 1), (0, 2): (0, 1), (1, 0): (0, 1)},
        (0, 4): (0, 3),
        **{(1, 1): (1, 2), (1, 3): (1, 2)},
    }
    assert [(row["shard"], row["row"]) for row in table.to_pylist()] == sorted(found)
    assert sizes == {"groups of 4": 1, "groups of 2": 1, "groups of 3": 1}


def test_large_groups_and_none(tmp_path: Path) -> None:
    files = write_measures(tmp_path, [[(None, 10)] * 12])
    table, sizes = links(np.array([[n, n + 1] for n in range(11)]), files)
    assert table.num_rows == 11 and set(table["kept_row"].to_pylist()) == {0}
    assert sizes == {"groups of 10 or more": 1}
    assert links(np.empty((0, 2), np.int64), files)[0].num_rows == 0


def vectors(number: int, copies: int, seed: int, dimensions: int = 64) -> np.ndarray:
    """Random directions, and behind them copies of the first ones, a cosine of about 0.96 away."""
    rng = np.random.default_rng(seed)
    first = unit_length(rng.normal(size=(number, dimensions)))
    near = first[:copies] + rng.normal(size=(copies, dimensions)) * 0.3 / np.sqrt(dimensions)
    return np.concatenate([first, unit_length(near)])


def pairs_through_files(folder: Path, found: np.ndarray, cells: int, threshold: float) -> set[tuple[int, int]]:
    middle = centres(found, cells, seed=0)
    files = []
    for number, part in enumerate(np.array_split(np.arange(len(found)), 3)):
        files.append(str(folder / f"{cells}-{number}.parquet"))
        pq.write_table(into_cells(found[part], part, middle), files[-1], row_group_size=100)
    return {(row["a"], row["b"]) for cell in range(cells) for row in near_pairs(files, cell, threshold).to_pylist()}


def test_one_cell_finds_what_comparing_all_finds(tmp_path: Path) -> None:
    found = vectors(1300, 100, seed=0)
    found[7] = 0
    cosines = np.triu(found @ found.T, k=1)
    expected = {(a, b) for a, b in np.argwhere(cosines >= 0.9).tolist()}
    assert 95 < len(expected) <= 100
    assert pairs_through_files(tmp_path, found, 1, 0.9) == expected


def test_four_cells_lose_few_near_vectors(tmp_path: Path) -> None:
    found = vectors(800, 200, seed=1)
    planted = {(n, 800 + n) for n in range(200)}
    pairs = pairs_through_files(tmp_path, found, 4, 0.9)
    assert len(pairs & planted) >= 190 and pairs <= planted
    assert pairs == pairs_through_files(tmp_path, found, 4, 0.9)


def test_equal_vectors_reach_a_threshold_of_one(tmp_path: Path) -> None:
    found = vectors(20, 0, seed=2)
    assert pairs_through_files(tmp_path, np.concatenate([found, found[:3]]), 1, 1.0) == {(0, 20), (1, 21), (2, 22)}
    assert pairs_through_files(tmp_path, np.zeros((3, 64), np.float32), 1, 0.5) == set()


def test_very_many_equal_vectors_make_one_group_of_few_pairs(tmp_path: Path) -> None:
    different = vectors(40, 10, seed=3)
    found = np.concatenate([different, np.repeat(different[:1], 2000, axis=0), np.repeat(different[1:2], 30, axis=0)])
    pairs = np.array(sorted(pairs_through_files(tmp_path, found, 1, 0.9)))
    assert len(pairs) < 1 << 20  # of two million
    _, labels = groups(pairs)
    assert sorted(np.bincount(labels).tolist()) == [2] * 8 + [32, 2002]


def test_the_built_in_encoder_s_cosine_is_near_the_sets() -> None:
    rows, planted = corpus()
    encode = make_encoder(EncoderConfig(dimensions=4096))
    assert isinstance(encode, NGrams)
    made = encode([str(row["text"]) for row in rows], [str(row["language"]) for row in rows])
    assert made.dtype == np.float32 and np.linalg.norm(made[:-2], axis=1) == pytest.approx(1)
    assert not made[-2:].any()
    errors = []
    for a, b in [*planted, *((n, n + 2) for n in range(0, 100, 4))]:
        one, other = (set(shingles(str(rows[n]["text"]), str(rows[n]["language"])).tolist()) for n in (a, b))
        errors.append(made[a] @ made[b] - len(one & other) / np.sqrt(len(one) * len(other)))
    assert np.std(errors) < 1.5 / np.sqrt(4096) and abs(np.mean(errors)) < 0.01


def test_vllm_is_an_encoder_in_a_process_of_its_own() -> None:
    """A text that is longer than the model's window is cut, and the rest isn't looked at."""
    pytest.importorskip("vllm", reason="needs vLLM (pip install 'rayrl[cpu]')")
    script = (
        "import json\n"
        "from rayrl.config.corpus import EncoderConfig\n"
        "from rayrl.corpus.embed import make_encoder\n"
        "from rayrl.models.builtin import resolve_model\n"
        "encode = make_encoder(EncoderConfig(kind='vllm', model=resolve_model('tiny-random')))\n"
        "vectors = encode(['head ache', 'my knee', 'head ache', 'fever ' * 4000, 'fever ' * 5000], ['en'] * 5)\n"
        "print(json.dumps((vectors @ vectors.T).tolist()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    cosines = np.array(json.loads(done.stdout.splitlines()[-1]))
    assert cosines.diagonal() == pytest.approx(1.0, abs=1e-5)
    assert cosines[0, 2] == pytest.approx(1.0, abs=1e-4) and cosines[3, 4] == pytest.approx(1.0, abs=1e-4)
    assert abs(cosines[0, 1]) < 0.9
