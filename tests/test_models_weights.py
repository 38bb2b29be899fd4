"""Buckets of named tensors: what goes in comes out, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayrl.models.weights import ALIGNMENT_BYTES, Bucket, Entry, pack, views

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)


def make_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def assert_round_trip(named: list[tuple[str, torch.Tensor]], buckets: list[Bucket]) -> None:
    back = [pair for bucket in buckets for pair in bucket.tensors()]
    assert [name for name, _ in back] == [name for name, _ in named]
    for (_, got), (_, want) in zip(back, named, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want)


def test_layout_worked_by_hand() -> None:
    """Three bf16 numbers are 6 bytes, so the next tensor starts at 64; it takes 80 bytes, so a third would pass 200."""
    named = [
        ("a", torch.ones(3, dtype=torch.bfloat16)),
        ("b", torch.zeros(4, 5)),
        ("c", torch.arange(4, dtype=torch.int64)),
    ]
    first, second = pack(named, bucket_bytes=200)
    assert first.entries == (Entry("a", "bfloat16", (3,), 0), Entry("b", "float32", (4, 5), 64))
    assert first.data.nbytes == 192 and first.data.dtype == np.uint8
    assert second.entries == (Entry("c", "int64", (4,), 0),)
    assert_round_trip(named, [first, second])


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES), st.integers(0, 9)), max_size=8), st.integers(1, 600))
def test_any_tensors_in_any_buckets_come_back(
    specs: list[tuple[tuple[int, ...], torch.dtype, int]], bucket_bytes: int
) -> None:
    named = [(f"t{i}", make_tensor(*spec)) for i, spec in enumerate(specs)]
    buckets = list(pack(named, bucket_bytes))
    assert_round_trip(named, buckets)
    for bucket in buckets:
        assert all(entry.offset % ALIGNMENT_BYTES == 0 for entry in bucket.entries)
        assert len(bucket.entries) == 1 or bucket.data.nbytes <= bucket_bytes + ALIGNMENT_BYTES


def test_a_tensor_larger_than_a_bucket_goes_alone() -> None:
    named = [("small", torch.ones(2)), ("large", torch.arange(1000.0)), ("after", torch.ones(3))]
    buckets = list(pack(named, bucket_bytes=256))
    assert [len(bucket.entries) for bucket in buckets] == [1, 1, 1]
    assert_round_trip(named, buckets)


def test_views_of_other_memory_are_copied_and_read_in_place() -> None:
    """A transposed parameter is packed in its own order, and later changes to it don't reach the bucket."""
    weight = torch.arange(6.0).view(2, 3)
    (bucket,) = pack([("w", weight.T)], bucket_bytes=1 << 20)
    weight.zero_()
    ((_, got),) = bucket.tensors()
    assert got.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    buffer = torch.from_numpy(bucket.data)
    ((_, view),) = views(bucket.entries, buffer)
    assert view.data_ptr() == buffer.data_ptr()


def test_buckets_are_made_one_at_a_time() -> None:
    """A sync of a large model must not hold all of it twice."""
    taken: list[str] = []

    def source() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(6):
            taken.append(f"t{i}")
            yield f"t{i}", torch.zeros(64)

    buckets = pack(source(), bucket_bytes=512)
    next(buckets)
    assert len(taken) == 3  # two fit, and the third showed that the bucket was full
    assert sum(math.prod(e.shape) for b in buckets for e in b.entries) == 4 * 64


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
def test_nothing_packs_to_nothing(bucket_bytes: int) -> None:
    assert list(pack([], bucket_bytes)) == []
