"""The clock's numbers with a clock of our own, and both displays as text."""

import io

import pytest
from rich.console import Console

from rayrl.tracking.progress import PhaseClock, Progress, TimeLeft, duration

ROW = {
    "score/questions": 0.31,
    "score/mixed": 0.42,
    "kl/mean_per_sequence": 0.031,
    "kl/coef": 0.05,
    "length/mean": 58.0,
    "time/tokens_per_second": 211.0,
    "time/generate": 7.6,
    "time/update": 4.0,
    "time/step": 12.0,
}


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_phases_add_up_and_the_rest_is_the_coordinators() -> None:
    hands = Hands()
    clock = PhaseClock(hands)
    for name, seconds in (("generate", 5.0), ("update", 3.0), ("generate", 1.0)):
        with clock.phase(name):
            hands.time += seconds
        hands.time += 0.5
    assert clock.take() == {"time/generate": 6.0, "time/update": 3.0, "time/coordinator": 1.5, "time/step": 10.5}
    hands.time += 2
    assert clock.take() == {"time/coordinator": 2.0, "time/step": 2.0}


def test_a_phase_that_fails_is_counted_and_ended() -> None:
    hands = Hands()
    clock = PhaseClock(hands)
    with pytest.raises(KeyError), clock.phase("score"):
        hands.time += 2
        raise KeyError("a source failed")
    assert clock.current is None
    assert clock.take()["time/score"] == 2


def test_a_phase_inside_a_phase_would_count_twice() -> None:
    clock = PhaseClock()
    with clock.phase("update"), pytest.raises(RuntimeError, match="'sync' began inside 'update'"), clock.phase("sync"):
        pass


def test_time_left_is_the_moving_median_of_steps() -> None:
    left = TimeLeft()
    assert left.seconds(10) is None
    for seconds in (2.0, 2.0, 60.0):  # one slow step doesn't move it
        left.add(seconds)
    assert left.seconds(10) == 20.0
    for _ in range(20):  # old steps are forgotten
        left.add(5.0)
    assert left.seconds(10) == 50.0


def test_durations_read_as_said() -> None:
    said = [duration(seconds) for seconds in (7.64, 59.94, 200, 3599.6, 7500)]
    assert said == ["7.6 s", "59.9 s", "3 min 20 s", "1 h 00 min", "2 h 05 min"]


def test_without_a_terminal_one_line_a_phase_and_step() -> None:
    out = io.StringIO()
    with Progress(100, first_step=8, console=Console(file=out, width=40)) as progress:
        with progress.phase("generate"):
            pass
        progress.finish_step(ROW)
        with progress.phase("generate"):
            pass
    assert out.getvalue().splitlines() == [
        "[  9/100]  generate ...",
        "[  9/100]  score mixed 0.420 questions 0.310, KL 0.031, 211 tokens/s, "
        "12.0 s (generate 7.6, update 4.0), about 18 min 12 s left",
        "[ 10/100]  generate ...",
    ]


def test_metrics_that_were_not_measured_are_left_out_of_the_line() -> None:
    out = io.StringIO()
    with Progress(1, console=Console(file=out)) as progress:
        progress.finish_step({"time/step": 2.0})
    assert out.getvalue() == "[1/1]  2.0 s\n"


def test_on_a_terminal_the_panel_shows_where_the_run_is() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=30, color_system=None)
    with Progress(20, console=console) as progress:
        with progress.phase("generate"):
            pass
        progress.finish_step(ROW)
        progress.finish_step({**ROW, "score/mixed": 0.5})
        with progress.phase("sync"):
            console.print(progress._panel())
    shown = out.getvalue()
    for part in (
        "iteration 2/20",
        "about 3 min 36 s left",
        "sync",
        "mixed 0.500 ▲",
        "questions 0.310",
        "0.031",
        "211 tokens/s",
    ):
        assert part in shown, part


def test_switched_off_it_prints_nothing_and_still_counts() -> None:
    out = io.StringIO()
    with Progress(5, enabled=False, console=Console(file=out, force_terminal=True)) as progress:
        with progress.phase("generate"):
            pass
        taken = progress.clock.take()
        progress.finish_step(taken)
    assert out.getvalue() == ""
    assert set(taken) == {"time/generate", "time/coordinator", "time/step"}
