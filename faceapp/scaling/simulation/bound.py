"""The least that any policy can be billed for a workload: a mixed-integer program that knows the future.

Every schedule of instances that answers each message within the SLO satisfies the program's constraints, in the steps
of a few seconds that time is cut into, so its optimum is a lower bound; and HiGHS's dual bound is one even when the
time limit stops it earlier. Boots take as long as the fastest one, instances stop at once, the queue is known exactly,
and any instance can work on any part of a message.

Per step of `dt` seconds, with T the end of it: s starts and e stops (whole numbers), m instances at T, B seconds
billed and W seconds of work done so far, b and w those of the step:

  m' = m + s - e, 0 <= m <= N       work due by T <= W <= work arrived by T
  w <= dt (m before, less those started so late that they boot all through the step)
  m before + starts that can be ready before the deadline >= what the arrivals of one step need until then
  b <= dt (m before + s)            b >= dt (m before - e), 0
  m >= the starts within the last billed minimum, since stopping earlier saves nothing; so e <= m before
  B >= W + boot seconds that all starts must have had by T
  B >= billed minimum that all starts must have had by T
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from faceapp.errors import ConfigError
from faceapp.scaling.simulation.workloads import Workload
from faceapp.scaling.simulation.world import Bound, World

MAX_STEPS = 300
MIN_STEP_S = 5.0
TIME_LIMIT_S = 10.0
RELATIVE_GAP = 0.002
INFEASIBLE = 2
"""scipy.optimize.milp's status."""


def lower_bound(workload: Workload, world: World, *, time_limit_s: float = TIME_LIMIT_S) -> Bound:
    """Solve the program for that workload, within about `time_limit_s`.

    Raises ConfigError when no fleet of that size can keep the SLO.
    """
    parts = list(_apart(workload, world))
    solved = [_solve(part, world, time_limit_s * len(part.arrivals_s) / len(workload.arrivals_s)) for part in parts]
    billed_s, found_s = (sum(part[n] for part in solved) for n in (0, 1))
    return Bound(workload=workload.name, seed=workload.seed, billed_s=billed_s, found_s=found_s)


def _apart(workload: Workload, world: World) -> Iterator[Workload]:
    """Cut where an instance is better stopped and started than kept: after the last deadline nothing is to be done for
    two billed minimums, which is what stopping and starting can cost at most."""
    pause_s = world.slo_s + 2 * max(world.min_billed_s, world.boot_min_s)
    arrivals_s, start = workload.arrivals_s, 0
    for n in range(1, len(arrivals_s) + 1):
        if n == len(arrivals_s) or arrivals_s[n] - arrivals_s[n - 1] > pause_s:
            yield replace(workload, arrivals_s=arrivals_s[start:n], service_s=workload.service_s[start:n])
            start = n


def _solve(workload: Workload, world: World, time_limit_s: float) -> tuple[float, float]:
    program = _Program(workload, world)
    answer = milp(
        c=program.cost,
        integrality=program.integrality,
        bounds=Bounds(program.lower, program.upper),
        constraints=program.constraints,
        options={"time_limit": max(1.0, time_limit_s), "mip_rel_gap": RELATIVE_GAP},
    )
    if answer.status == INFEASIBLE:
        raise ConfigError(f"no {world.max_instances} instances can answer {workload.name} within {world.slo_s:g} s")
    found_s = math.inf if answer.fun is None else float(answer.fun)
    dual_s = 0.0 if answer.mip_dual_bound is None else float(answer.mip_dual_bound)
    # The work and one boot, or one billed minimum: a bound that needs no program.
    return max(world.min_billed_s, sum(workload.service_s) + world.boot_min_s, dual_s), found_s


class _Program:
    """The matrices. Columns: s, e, m, B, W, boot seconds and billed minimum for each step, the last four cumulated."""

    def __init__(self, workload: Workload, world: World) -> None:
        # No start is worth anything much before the first arrival.
        origin_s = workload.arrivals_s[0] - world.boot_max_s - MIN_STEP_S
        length_s = workload.arrivals_s[-1] + world.slo_s + world.min_billed_s - origin_s
        self._world = world
        self._dt = max(MIN_STEP_S, length_s / MAX_STEPS)
        self._n = n = math.ceil(length_s / self._dt) + 1
        ends_s = origin_s + self._dt * np.arange(1, n + 1)
        total_s = np.concatenate([[0.0], np.cumsum(workload.service_s)])
        arrived, due = (
            total_s[np.searchsorted(workload.arrivals_s, ends_s - late_s, side="right")]
            for late_s in (0.0, world.slo_s)
        )
        endless = np.full(3 * n, np.inf)
        self.cost = np.eye(7 * n)[4 * n - 1]
        self.integrality = np.concatenate([np.ones(2 * n), np.zeros(5 * n)])
        self.lower = np.concatenate([np.zeros(4 * n), due, np.zeros(2 * n)])
        self.upper = np.concatenate([np.full(3 * n, world.max_instances), endless[:n], arrived, endless[n:]])
        self.constraints = [*self._flow(), *self._cover(np.diff(arrived, prepend=0.0))]

    def _flow(self) -> list[LinearConstraint]:
        dt, world, inf = self._dt, self._world, np.inf
        one, before = self._shifted(0, 1), self._shifted(1, 2)
        change = one - before
        # A start within a step is at the earliest at its beginning: steps that end within the shortest boot from there
        # are all boot. And it is at the latest at its end: from there on, whole steps are boot or billed minimum.
        booting = self._shifted(1, int(world.boot_min_s / dt + 1e-9))
        return [
            self._rows({"s": -one, "e": one, "m": change}, 0, 0),
            self._rows({"s": dt * booting, "m": -dt * before, "W": change}, -inf, 0),
            self._rows({"s": -dt * one, "m": -dt * before, "B": change}, -inf, 0),
            self._rows({"e": dt * one, "m": -dt * before, "B": change}, 0, inf),
            self._rows({"B": change}, 0, inf),
            self._rows({"W": change}, 0, inf),
            self._rows({"m": one, "s": -self._shifted(0, int(world.min_billed_s / dt + 1e-9))}, 0, inf),
            self._rows({"e": -one, "m": before}, 0, inf),
            self._rows({"boot": change, "s": -self._spent(world.boot_min_s)}, 0, 0),
            self._rows({"least": change, "s": -self._spent(world.min_billed_s)}, 0, 0),
            self._rows({"B": one, "W": -one, "boot": -one}, 0, inf),
            self._rows({"B": one, "least": -one}, 0, inf),
        ]

    def _cover(self, work_s: np.ndarray[Any, Any]) -> list[LinearConstraint]:
        """What arrives in one step needs so many instances between then and its deadline, there or started in time."""
        world, dt = self._world, self._dt
        window_s = world.slo_s + dt
        starts = int((window_s - world.boot_min_s) / dt) + 1
        matrix = {"m": self._shifted(1, 2), "s": self._shifted(-starts, 1)}
        return [self._rows(matrix, np.ceil(work_s / window_s), np.inf)]

    def _spent(self, limit_s: float) -> sparse.csr_array:
        """Row t, column u: the seconds of step t that are surely among the first `limit_s` after a start in step u."""
        whole = int(limit_s / self._dt + 1e-9)
        rest_s = limit_s - whole * self._dt
        return sparse.csr_array(self._dt * self._shifted(1, whole + 1) + rest_s * self._shifted(whole + 1, whole + 2))

    def _shifted(self, first: int, end: int) -> sparse.csr_array:
        """Row t sums the columns t - first, t - first - 1, ... down to t - (end - 1)."""
        if end <= first:
            return sparse.csr_array((self._n, self._n))
        offsets = range(first, end)
        band: Any = [np.ones(self._n - abs(k)) for k in offsets]
        return sparse.csr_array(sparse.diags_array(band, offsets=[-k for k in offsets], shape=(self._n, self._n)))

    def _rows(self, blocks: dict[str, Any], low: Any, high: Any) -> LinearConstraint:
        empty = sparse.csr_array((self._n, self._n))
        names = ("s", "e", "m", "B", "W", "boot", "least")
        return LinearConstraint(sparse.hstack([blocks.get(name, empty) for name in names], format="csr"), low, high)
