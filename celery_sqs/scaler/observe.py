"""Which instance is booting, ready or draining, out of EC2's states, the tags' marks and the workers' events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from celery_sqs.scaler.machine import Machine
from celery_sqs.scaler.policies.base import Counts, Instance
from celery_sqs.scaler.workers import SILENT_S, Workers

ZERO_S = 15.0
"""Without events: the counts must agree on zero for so long before anybody counts as idle."""
DESERTED_S = 20.0
"""A worker that said goodbye comes back within this time (a restart), or its instance is stopped."""
PATIENCE_S = 15.0
"""The first event takes no longer than this, unless events do not arrive at all."""

Phase = Literal["booting", "ready", "draining"]


class Phases:
    """The phases of instances, from one tick to the next.

    When events do not arrive, an instance counts as ready after the usual boot time, and as idle once the counts have
    agreed on zero for a while.
    """

    def __init__(self, workers: Workers, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers, self._clock = workers, clock
        self._began_s = clock()
        self._zero_from_s: float | None = None

    def instances(self, machines: Sequence[Machine], counts: Counts | None, *, boot_s: float) -> tuple[Instance, ...]:
        """What a policy sees: the workers' instances that are billed."""
        self._note_zero(counts)
        billed = [each for each in machines if each.ours and each.billed]
        for each in billed:
            self._workers.expect_new(each.name, age_s=each.age_s)
        return tuple(
            Instance(
                id=each.id,
                phase=self._phase(each, boot_s=boot_s),
                billed_s=each.age_s,
                idle_s=self._idle_s(each),
            )
            for each in billed
        )

    def newly_ready(self, machines: Sequence[Machine], *, measured: bool) -> list[str]:
        """Those whose workers were heard from and whose tags do not say so yet; `measured`: heard coming up."""
        return [
            each.id
            for each in machines
            if each.ours
            and each.billed
            and not each.ready
            and self._workers.heard_s(each.name) is not None
            and self._workers.online_heard(each.name) == measured
        ]

    def deserted(self, machines: Sequence[Machine]) -> list[str]:
        """Those that run on although their workers said goodbye: a spot notice, or somebody stopped the worker."""
        return [
            each.id
            for each in machines
            if each.ours
            and each.state == "running"
            and each.ready
            and not each.draining
            and (self._workers.left_s(each.name) or 0.0) > DESERTED_S
        ]

    def _phase(self, machine: Machine, *, boot_s: float) -> Phase:
        if machine.draining:
            return "draining"
        heard_s = self._workers.heard_s(machine.name)
        if machine.ready or heard_s is not None:
            if self._workers.left_s(machine.name) is not None:
                return "draining"
            return "booting" if self._silent(heard_s) else "ready"
        blind = not self._workers.path_alive and self._clock() - self._began_s > PATIENCE_S
        return "ready" if blind and machine.state == "running" and machine.age_s > boot_s else "booting"

    def _silent(self, heard_s: float | None) -> bool:
        """Whether a worker that was there should have been heard from since."""
        return self._workers.path_alive_s > SILENT_S and (heard_s is None or heard_s > SILENT_S)

    def _note_zero(self, counts: Counts | None) -> None:
        if counts is None or counts.outstanding:
            self._zero_from_s = None
        elif self._zero_from_s is None:
            self._zero_from_s = self._clock()

    def _idle_s(self, machine: Machine) -> float | None:
        if self._workers.path_alive:
            return self._workers.idle_s(machine.name)
        zero_s = 0.0 if self._zero_from_s is None else self._clock() - self._zero_from_s
        return zero_s if zero_s >= ZERO_S else None
