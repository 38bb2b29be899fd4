"""What the coordinator costs with many roles: PPO steps over simulated roles, a table.

    python scripts/simulate.py                                     8, 32, 128 and 512 roles, steps of about 60 s: 20 min
    python scripts/simulate.py --roles 8 32 --step-s 6             quicker: every duration is shorter by the same factor
    python scripts/simulate.py --roles 512 --rate sigma=1.2 engine_tokens_per_s=800

The coordinator and all that it uses are the real ones; roles are ranks inside few real Ray actors that sleep for the
time that their rates state (actors/simulation.py). Overhead is a step's wall time less the longest chain of stated work
(actors/simulated_run.py). It is an upper bound: the simulated ranks' processes run on the same cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from actors.simulated_run import Fleet, SimulatedRun, StepCost
from actors.simulation import Rates
from cluster.session import connect

RATES_STEP_S = 60.0
"""About what a step takes at speed 1."""
STORE_MB = 400
COLUMNS = (
    "roles", "engines, policy, critic, reference, reward", "step s", "stated s", "overhead s", "worst s",
    "of 60 s", "policy[0] to engines s", "driver CPU s", "looks at progress",
)  # fmt: skip
PHASES = ("generate", "score", "update", "sync", "between")


def measure(roles: int, rates: Rates, steps: int, ranks_per_host: int) -> tuple[list[StepCost], float]:
    """The costs of `steps` steps after the first, and how often a rank was asked how far it is in each."""
    with tempfile.TemporaryDirectory() as temporary:
        run = SimulatedRun(Path(temporary) / "run", Fleet.of(roles), rates, steps + 1, ranks_per_host)
        run.run()
        costs, checks = run.costs()
        run.close()
    return costs, checks / (steps + 1)


def slope(roles: Sequence[int], seconds: Sequence[float]) -> float:
    """Exponent of the growth: the least-squares slope of log seconds over log roles."""
    x, y = [math.log(n) for n in roles], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def row(roles: int, costs: Sequence[StepCost], checks: float) -> list[str]:
    """Medians over the steps, in the order of COLUMNS."""
    overhead = median(cost.overhead_s for cost in costs)
    return [
        str(roles),
        " ".join(str(ranks) for ranks in dataclasses.astuple(Fleet.of(roles))),
        f"{median(cost.wall_s for cost in costs):.2f}",
        f"{median(cost.critical_s for cost in costs):.2f}",
        f"{overhead:.3f}",
        f"{max(cost.overhead_s for cost in costs):.3f}",
        f"{overhead / RATES_STEP_S:.2%}",
        f"{median(cost.fan_out_s for cost in costs):.2f}",
        f"{median(cost.driver_cpu_s for cost in costs):.2f}",
        f"{checks:.0f}",
    ]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))


def given_rates(settings: Sequence[str], speed: float) -> Rates:
    """Rates with `name=value` changes. Raises SystemExit for a name that there isn't."""
    types = {field.name: type(field.default) for field in dataclasses.fields(Rates)}
    changed = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in types:
            raise SystemExit(f"no rate is called {name!r}; there are {', '.join(types)}")
        changed[name] = types[name](value)
    return Rates(**{"speed": speed, **changed})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--step-s", type=float, default=RATES_STEP_S, help="about how long a step shall take")
    parser.add_argument("--steps", type=int, default=3, help="steps measured, after one that isn't")
    parser.add_argument("--ranks-per-host", type=int, default=64, help="simulated ranks in one process")
    parser.add_argument("--rate", nargs="*", default=[], metavar="NAME=VALUE", help="fields of Rates")
    arguments = parser.parse_args()
    rates = given_rates(arguments.rate, RATES_STEP_S / arguments.step_s)
    rows, phases, overheads = [], [], []
    with connect("local", object_store_mb=STORE_MB):
        for roles in arguments.roles:
            costs, checks = measure(roles, rates, arguments.steps, arguments.ranks_per_host)
            rows.append(row(roles, costs, checks))
            by_phase = [f"{median(cost.by_phase.get(phase, 0.0) for cost in costs):.3f}" for phase in PHASES]
            phases.append([str(roles), *by_phase])
            overheads.append(median(cost.overhead_s for cost in costs))
            print(f"{roles} roles: overhead {overheads[-1]:.3f} s a step, load {os.getloadavg()[0]:.1f}", flush=True)
    print_table(COLUMNS, rows)
    print_table(("overhead of", *(f"{phase} s" for phase in PHASES)), phases)
    if len(overheads) > 1:
        print(f"\noverhead grows with roles to the power {slope(arguments.roles, overheads):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
