"""Score normalisation: hand-worked numbers, omissions, resume."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl.algorithms.score_normalise import BatchWhiten, NoNormalise, RunningStd, make_normaliser

quick = settings(max_examples=60, deadline=None, derandomize=True)
scores = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=6)


def test_running_std_by_hand():
    normalise = make_normaliser("running_std", None)
    # 1 3: mean 2, squares 1 + 1 = 2, std sqrt(2 / 1). The mean stays in.
    assert normalise([1.0, 3.0]) == pytest.approx([1 / math.sqrt(2), 3 / math.sqrt(2)])
    # 1 3 5 7: mean 4, squares 9 + 1 + 1 + 9 = 20, std sqrt(20 / 3) = 2.581989
    assert normalise([5.0, 7.0]) == pytest.approx([1.936492, 2.711088], abs=1e-6)
    assert isinstance(normalise, RunningStd)


def test_batch_whiten_by_hand():
    normalise = make_normaliser("batch_whiten", None)
    assert isinstance(normalise, BatchWhiten)
    assert normalise([1.0, 2.0, 3.0]) == [-1, 0, 1]  # mean 2, std sqrt(2 / 2)
    assert normalise([10.0, 20.0, 30.0]) == [-1, 0, 1]


def test_no_normalisation():
    normalise = make_normaliser("none", None)
    assert isinstance(normalise, NoNormalise)
    assert normalise([1.5, None, -2.0]) == [1.5, None, -2.0]


def test_clip_bounds_the_magnitude():
    assert make_normaliser("none", 2.0)([1.0, 3.0, -5.0, None]) == [1, 2, -2, None]
    # 0 0 0 4: mean 1, squares 3 + 9 = 12, std 2: normalised -0.5 -0.5 -0.5 1.5
    assert make_normaliser("batch_whiten", 1.0)([0.0, 0.0, 0.0, 4.0]) == [-0.5, -0.5, -0.5, 1]


@pytest.mark.parametrize("how", ["none", "running_std", "batch_whiten"])
def test_omitted_scores_stay_and_do_not_count(how):
    with_gaps, without = make_normaliser(how, 5.0), make_normaliser(how, 5.0)
    assert with_gaps([None, None]) == [None, None]
    assert with_gaps([]) == []
    first, second = with_gaps([1.0, None, 3.0, None]), without([1.0, 3.0])
    assert first == [second[0], None, second[1], None]
    assert with_gaps.state_dict() == without.state_dict()


@pytest.mark.parametrize("batch", [[0.1] * 3, [5.0], [0.0, 0.0]])
def test_one_score_or_equal_scores_are_divided_by_1(batch):
    # Three times 0.1 has a standard deviation of 1e-17 after rounding; dividing by it would give 1e16.
    assert make_normaliser("running_std", None)(batch) == batch
    assert make_normaliser("batch_whiten", None)(batch) == pytest.approx([0.0] * len(batch), abs=1e-12)


def test_equal_scores_over_many_batches_are_divided_by_1():
    normalise = make_normaliser("running_std", None)
    for count in (1, 3, 7, 2):
        assert normalise([0.1] * count) == [0.1] * count


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("how", ["none", "running_std", "batch_whiten"])
def test_a_score_that_is_not_a_number_is_refused_and_not_counted(how, bad):
    normalise = make_normaliser(how, None)
    before = normalise.state_dict()
    with pytest.raises(ValueError, match=f"score 1 of 2 is {bad}; a reward must be a finite number"):
        normalise([1.0, bad])
    assert normalise.state_dict() == before


@quick
@given(st.lists(scores, min_size=1, max_size=5))
def test_running_std_is_that_of_all_scores_so_far(batches):
    normalise = RunningStd(None)
    for batch in batches:
        normalise(batch)
    seen = np.concatenate(batches)
    assert normalise.count == len(seen)
    assert normalise.mean == pytest.approx(seen.mean(), abs=1e-9)
    expected = seen.std(ddof=1) if len(seen) > 1 else 0.0
    if expected > 1e-6:
        assert normalise.std == pytest.approx(expected, rel=1e-6)


@quick
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8).filter(lambda x: len(set(x)) > 1), st.floats(0.01, 100))
def test_normalised_scores_ignore_scale_and_keep_order(batch, scale):
    for how in ("running_std", "batch_whiten"):
        once = make_normaliser(how, None)([float(x) for x in batch])
        scaled = make_normaliser(how, None)([scale * x for x in batch])
        assert scaled == pytest.approx(once, rel=1e-6, abs=1e-9)
        assert [once.index(x) for x in sorted(once)] == [batch.index(x) for x in sorted(batch)]


@quick
@given(scores, scores)
def test_resume_gives_the_same_bits(first, second):
    straight = RunningStd(None)
    straight(first)
    resumed = RunningStd(None)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    assert resumed(second) == straight(second)
    assert resumed.state_dict() == straight.state_dict()


def test_errors():
    with pytest.raises(ValueError, match="unknown score normalisation 'minmax'; choose none"):
        make_normaliser("minmax", None)
    with pytest.raises(ValueError, match="score normaliser is 'none' and this run's is 'running_std'"):
        RunningStd(None).load_state_dict(NoNormalise(None).state_dict())
