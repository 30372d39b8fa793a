"""The least that any policy can be billed for a workload: a dynamic program that knows the future.

The bound holds for each schedule in the simulator's world that answers every message within the SLO. As in the
simulator, the n-th start takes the n-th of the workload's boots (`workloads.boots_s`). The proof:

1. M is the billed minimum. A start that boots for b seconds and is then ready for u seconds is billed max(M, b + u).
   One that is stopped before it is ready is billed M or more. So both are billed at least a + u, where a = min(b, M).
2. Choose any fee c. Let d be the most by which c j exceeds a_1 + ... + a_j, for j from 0 to k. Then k starts are billed
   at least c k - d plus the sum of their u. All fees give bounds, and the best of them is taken.
3. It remains to find the least of c k plus the sum of u. Cut time into steps of h seconds, with h at most half of the
   shortest boot. An instance that is ready in J steps is ready for more than (J - 2) h seconds, so that it costs at
   least c - 2 h + J h. All that are ready in one step run when it begins, so that they are at most N.
4. Each does at most h seconds of work in a step. By the end of a step, no more work is done than has arrived, and no
   less than is due. Messages have no other form: any instance can do any part of them. Work costs nothing by itself, so
   it is never worse to do more of it. This leaves two numbers as a state: instances, and work done.
5. Work is counted in whole steps. What has arrived is rounded up, so the program never has done less than the schedule.

The program sees the billed minimum only as a limit of a, so that it says little about a few messages. Messages that
arrive at least SLO + 2 M - a apart make up for that: an instance that serves n of them, n > 1, is billed n M or more.
So each of them costs M.

For a workload so large that the steps would be too long, the work and the first boot are the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, islice

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from celery_sqs.errors import ConfigurationError
from celery_sqs.simulation.workloads import Workload, boots_s
from celery_sqs.simulation.world import Bound, World

CELLS = 1e8
"""States that the program visits at most: a few seconds of one core."""
TRIAL_CELLS = 2e6
"""The same while the best fee is looked for."""
FEES = 7
MIN_STEP_S = 0.1

Floats = NDArray[np.float64]


def lower_bound(workload: Workload, world: World) -> Bound:
    """What no schedule that keeps the SLO is billed less than.

    Raises ConfigurationError when no fleet of that size can keep the SLO.
    """
    billed_s = 0.0
    if workload.arrivals_s:
        billed_s = max(
            world.min_billed_s * _far_apart(workload, world),
            sum(workload.service_s) + next(_paid_boots_s(workload, world)),
            _by_program_s(workload, world),
        )
    return Bound(workload=workload.name, seed=workload.seed, billed_s=billed_s)


def _paid_boots_s(workload: Workload, world: World) -> Iterator[float]:
    """What each start is billed at least, beside the seconds that it is ready."""
    return (min(boot_s, world.min_billed_s) for boot_s in boots_s(workload.name, workload.seed, world))


def _far_apart(workload: Workload, world: World) -> int:
    """How many messages cost a billed minimum each."""
    apart_s = world.slo_s + 2 * world.min_billed_s - min(world.boot_min_s, world.min_billed_s)
    count, last_s = 0, -math.inf
    for arrival_s in workload.arrivals_s:
        if arrival_s >= last_s + apart_s:
            count, last_s = count + 1, arrival_s
    return count


def _by_program_s(workload: Workload, world: World) -> float:
    """The bound with the best fee, which is found with longer steps; 0 when even those would be too many."""
    shortest_s, longest_s = (min(boot_s, world.min_billed_s) for boot_s in (world.boot_min_s, world.boot_max_s))
    open_s = _most_open_s(workload, world)
    if open_s > 2 * world.slo_s * world.max_instances:
        raise _too_much(workload, world)
    length_s = workload.arrivals_s[-1] + world.slo_s - workload.arrivals_s[0]
    # Both the steps and the work in steps are as many more as the steps are shorter.
    step_s, trial_step_s = (
        max(MIN_STEP_S, math.sqrt(world.max_instances * open_s * length_s / cells)) for cells in (CELLS, TRIAL_CELLS)
    )
    if step_s > shortest_s / 2:
        return 0.0
    fees_s = np.unique(np.linspace(shortest_s, longest_s, FEES))
    best = np.argmax(_with_fees_s(workload, world, fees_s, min(trial_step_s, shortest_s / 2)))
    return float(_with_fees_s(workload, world, fees_s[[best]], step_s)[0])


def _most_open_s(workload: Workload, world: World) -> float:
    """The most work that ever has arrived and is not due yet."""
    arrivals_s, total_s = np.array(workload.arrivals_s), np.cumsum((0.0, *workload.service_s))
    due_s = total_s[np.searchsorted(arrivals_s, arrivals_s - world.slo_s, side="right")]
    return float((total_s[1:] - due_s).max())


def _with_fees_s(workload: Workload, world: World, fees_s: Floats, step_s: float) -> Floats:
    """The bound that each fee gives."""
    least_s = _least_s(workload, world, fees_s, step_s)
    overdrawn_s = [
        _overdrawn_s(workload, world, fee_s, billed_s) for fee_s, billed_s in zip(fees_s, least_s, strict=True)
    ]
    return least_s - overdrawn_s


def _overdrawn_s(workload: Workload, world: World, fee_s: float, billed_s: float) -> float:
    """By how much the fees of the first starts exceed their boots at most. More starts than are looked at would be
    billed more than `billed_s` by their minimums alone."""
    starts = int(billed_s / world.min_billed_s)
    boots = islice(_paid_boots_s(workload, world), starts)
    return max(accumulate((fee_s - boot_s for boot_s in boots), initial=0.0))


def _least_s(workload: Workload, world: World, fees_s: Floats, step_s: float) -> Floats:
    """The least that fees and ready seconds add up to, for each fee.

    Raises ConfigurationError when no schedule keeps the SLO.
    """
    count = np.arange(world.max_instances + 1)
    starts_s = ((fees_s - 2 * step_s)[:, None] * count)[:, :, None]
    running_s = (step_s * count)[None, :, None]
    done = 0
    billed_s = np.full((len(fees_s), len(count), 1), np.inf)  # by fee, instances, and work done beyond `done`
    billed_s[:, 0] = 0.0
    for arrived, due in _work(workload, world, step_s):
        billed_s = running_s + _changed(billed_s, starts_s)
        billed_s = _worked(billed_s, skip=due - done, width=arrived - due + 1)
        done = due
    least_s: Floats = billed_s.min(axis=(1, 2))
    if not np.isfinite(least_s).all():
        raise _too_much(workload, world)
    return least_s


def _work(workload: Workload, world: World, step_s: float) -> Iterator[tuple[int, int]]:
    """At the end of each step, how much work has arrived and how much of it is due, cumulated."""
    arrivals_s, total_s = np.array(workload.arrivals_s), np.cumsum((0.0, *workload.service_s))
    steps = math.ceil((arrivals_s[-1] + world.slo_s - arrivals_s[0]) / step_s)
    ends_s = arrivals_s[0] + step_s * np.arange(1, steps + 1)
    arrived, due = (
        np.ceil(total_s[np.searchsorted(arrivals_s, ends_s - late_s, side="right")] / step_s).astype(int)
        for late_s in (0.0, world.slo_s)
    )
    return zip(arrived.tolist(), due.tolist(), strict=True)


def _changed(billed_s: Floats, starts_s: Floats) -> Floats:
    """After starts, which cost, or stops, which do not."""
    stopped = np.minimum.accumulate(billed_s[:, ::-1], axis=1)[:, ::-1]
    started = np.minimum.accumulate(billed_s - starts_s, axis=1) + starts_s
    changed: Floats = np.minimum(stopped, started)
    return changed


def _worked(billed_s: Floats, *, skip: int, width: int) -> Floats:
    """After a step in which each of m instances did one unit of work, as far as it had arrived: of the units that may
    be done, from `skip` on, `width`.

    More work done is never cheaper, so that a state may stand for one with less work: `billed_s` rises along its
    last axis, and the first column serves for those before it.
    """
    fees, rows, before = billed_s.shape
    padded = np.full((fees, rows, rows - 1 + max(before, skip + width)), np.inf)
    padded[:, :, : rows - 1] = billed_s[:, :, :1]
    padded[:, :, rows - 1 : rows - 1 + before] = billed_s
    # Row m reads its cells m to the left: a view whose rows begin one cell earlier each.
    by_fee, by_row, by_unit = padded.strides
    shifted = padded[:, :, rows - 1 + skip :]
    return as_strided(shifted, (fees, rows, width), (by_fee, by_row - by_unit, by_unit)).copy()


def _too_much(workload: Workload, world: World) -> ConfigurationError:
    return ConfigurationError(f"no {world.max_instances} instances can answer {workload.name} within {world.slo_s:g} s")
