"""What others do, behind the same interface: written from their documentation, for comparison.

All of them see the same approximate counts. None of them knows a dead start from a slow one; each gets the same
replacement after five minutes (the default health check grace period of an Auto Scaling group), which flatters those
that have none.
"""

from __future__ import annotations

import math
from collections import deque

from celery_sqs.scaler.policies.base import Decision, Instance, Observation

GRACE_S = 300.0


def reach(observation: Observation, desired: int, max_instances: int, *, reason: str = "") -> Decision:
    """Start or drain what lies between the fleet and `desired`: booting ones go first, then the oldest."""
    booting, ready = observation.phase("booting"), observation.phase("ready")
    stuck = tuple(each.id for each in booting if each.billed_s > GRACE_S)
    desired = max(0, min(desired, max_instances))
    missing = desired - len(booting) - len(ready)
    room = max_instances - len(observation.instances)
    if missing >= 0:
        start = min(missing, room) + len(stuck)
        return Decision(wanted=desired, start=start, replace=stuck, reason=reason)
    order: list[Instance] = [*(each for each in booting if each.id not in stuck)]
    order += sorted(ready, key=lambda each: -each.billed_s)
    return Decision(wanted=desired, drain=(*stuck, *(each.id for each in order))[:-missing], reason=reason)


class NaiveDepth:
    """min(max, depth) instances, and none as soon as the depth is 0: what most projects of this kind do.

    Stops by force: StopInstances on whatever is there, busy or not.
    """

    name = "naive"

    def __init__(self, max_instances: int) -> None:
        self.max_instances = max_instances

    def decide(self, observation: Observation) -> Decision:
        here = len(observation.phase("booting")) + len(observation.phase("ready"))
        depth = observation.counts.visible if observation.counts else None
        desired = here if depth is None else 0 if depth == 0 else max(here, depth)
        return reach(observation, desired, self.max_instances, reason=f"depth {depth}")


class SelfStop:
    """As many instances as messages, and each stops itself after 10 s without one."""

    name = "self-stop"
    idle_s = 10.0

    def __init__(self, max_instances: int) -> None:
        self.max_instances = max_instances

    def decide(self, observation: Observation) -> Decision:
        here = len(observation.phase("booting")) + len(observation.phase("ready"))
        depth = observation.counts.outstanding if observation.counts else 0
        out = reach(observation, max(here, depth), self.max_instances, reason=f"depth {depth}")
        idle = tuple(each.id for each in observation.phase("ready") if (each.idle_s or 0.0) >= self.idle_s)
        return Decision(wanted=out.wanted, start=out.start, replace=out.replace, drain=idle, reason=out.reason)


class TargetTracking:
    """EC2 Auto Scaling's target tracking on the backlog per instance, with its CloudWatch alarms' delays.

    "Scaling policy based on Amazon SQS" (EC2 Auto Scaling user guide) gives the metric, visible messages over instances
    in service, and the target, the acceptable latency over a message's processing time: here half the SLO over the
    service time. "Target tracking scaling policies for Amazon EC2 Auto Scaling": capacity follows the metric in
    proportion, and it scales in later than out. The alarms that it makes: above the target for 3 datapoints of one
    minute, and 10 % below it for 15. With no instance in service the backlog counts as one instance's, and any backlog
    starts the first one, since a group of none has no value. Terminates without a lifecycle hook, so by force.
    """

    name = "aws-target-tracking"
    period_s = 60.0
    out_points = 3
    in_points = 15
    in_share = 0.9
    acceptable_s = 60.0

    def __init__(self, max_instances: int) -> None:
        self.max_instances = max_instances
        self._points: deque[float] = deque(maxlen=self.in_points)
        self._next_s = 0.0
        self._desired = 0

    def decide(self, observation: Observation) -> Decision:
        if observation.counts and observation.now_s >= self._next_s:
            self._next_s = observation.now_s + self.period_s
            self._evaluate(observation, observation.counts.visible)
        return reach(observation, self._desired, self.max_instances, reason=f"desired {self._desired}")

    def _evaluate(self, observation: Observation, visible: int) -> None:
        in_service = max(1, len(observation.phase("ready")))
        backlog = visible / in_service
        target = self.acceptable_s / observation.service_s
        self._points.append(backlog)
        last = list(self._points)
        if len(last) >= self.out_points and min(last[-self.out_points :]) > target:
            wanted = math.ceil(in_service * backlog / target)
            self._desired = min(self.max_instances, max(self._desired, wanted))
        elif self._desired == 0 and len(last) >= self.out_points and min(last[-self.out_points :]) > 0:
            self._desired = 1
        elif len(last) == self.in_points and max(last) < self.in_share * target:
            wanted = math.ceil(in_service * backlog / target)
            self._desired = max(wanted, 0 if visible == 0 else 1)
            self._points.clear()


class Keda:
    """KEDA's aws-sqs-queue scaler with the HPA that it drives.

    "AWS SQS Queue" (KEDA): visible and in-flight messages over `queueLength` (5). "ScaledObject specification" (KEDA):
    polled every `pollingInterval` (30 s) while there are none, and the last one goes `cooldownPeriod` (300 s) after the
    queue was last active. "Horizontal Pod Autoscaling" (Kubernetes): looks every 15 s, leaves a tenth of difference
    alone, may add the larger of 4 pods and 100 % in 15 s, and removes what none of its recommendations within
    `stabilizationWindowSeconds` (300 s) asked for. A pod is an instance here, and its termination is a drain.
    """

    sync_s = 15.0
    tolerance = 0.1
    step_pods = 4

    def __init__(
        self,
        max_instances: int,
        *,
        name: str = "keda",
        queue_length: int = 5,
        polling_s: float = 30.0,
        stabilization_s: float = 300.0,
        cooldown_s: float = 300.0,
    ) -> None:
        self.name = name
        self.max_instances = max_instances
        self.queue_length = queue_length
        self.polling_s = polling_s
        self.stabilization_s = stabilization_s
        self.cooldown_s = cooldown_s
        self._desired = 0
        self._active_s = -math.inf
        self._poll_s = self._sync_s = 0.0
        self._asked: deque[tuple[float, int]] = deque()

    def decide(self, observation: Observation) -> Decision:
        now_s = observation.now_s
        if observation.counts:
            messages = observation.counts.visible + observation.counts.in_flight
            if now_s >= self._poll_s:
                self._poll_s = now_s + self.polling_s
                self._poll(now_s, messages)
            if now_s >= self._sync_s and self._desired:
                self._sync_s = now_s + self.sync_s
                self._sync(now_s, messages)
        return reach(observation, self._desired, self.max_instances, reason=f"desired {self._desired}")

    def _poll(self, now_s: float, messages: int) -> None:
        """KEDA itself: from none to one, and from whatever is left to none."""
        if messages > 0:
            self._active_s = now_s
            self._desired = max(1, self._desired)
        elif now_s - self._active_s >= self.cooldown_s:
            self._desired = 0
            self._asked.clear()

    def _sync(self, now_s: float, messages: int) -> None:
        """The HPA: everything from one up."""
        here = self._desired
        ratio = messages / self.queue_length / here
        asked = here if abs(ratio - 1) <= self.tolerance else math.ceil(messages / self.queue_length)
        asked = max(1, min(asked, self.max_instances))
        self._asked.append((now_s, asked))
        while self._asked[0][0] < now_s - self.stabilization_s:
            self._asked.popleft()
        if asked > here:
            self._desired = min(asked, max(2 * here, here + self.step_pods))
        else:
            self._desired = min(here, max(most for _, most in self._asked))


class Knative:
    """The Knative Pod Autoscaler on the messages in the system, as if they were its requests.

    "Additional autoscaling configuration for Knative Pod Autoscaler" (Knative): a stable window of 60 s; a panic window
    of a tenth of it, entered at 200 % of what is ready and left after a stable window without a reason, with no scaling
    in meanwhile; at most halved at a time; the last pod goes after a stable window without traffic and a grace period
    of 30 s. Ticks every 2 s there, with the scaler here. The target is ten requests a pod at 70 %: the default of a
    hundred is for web servers, and one (containerConcurrency: 1) asks for every instance at each burst.
    """

    name = "knative"
    stable_s = 60.0
    panic_s = 6.0
    panic_share = 2.0
    grace_s = 30.0
    target = 10 * 0.7
    max_scale_down_rate = 2.0

    def __init__(self, max_instances: int) -> None:
        self.max_instances = max_instances
        self._seen: deque[tuple[float, int]] = deque()
        self._panicked_s = -math.inf
        self._panic_pods = 0
        self._busy_s = -math.inf

    def decide(self, observation: Observation) -> Decision:
        now_s = observation.now_s
        here = len(observation.phase("booting")) + len(observation.phase("ready"))
        if observation.counts:
            messages = observation.counts.visible + observation.counts.in_flight
            self._seen.append((now_s, messages))
            if messages:
                self._busy_s = now_s
        while self._seen and self._seen[0][0] < now_s - self.stable_s:
            self._seen.popleft()
        desired = self._desired(now_s, here, len(observation.phase("ready"))) if self._seen else here
        return reach(observation, desired, self.max_instances, reason=f"desired {desired}")

    def _desired(self, now_s: float, here: int, ready: int) -> int:
        stable = self._pods(now_s - self.stable_s)
        panic = self._pods(now_s - self.panic_s)
        if panic >= self.panic_share * max(1, ready) or (ready == 0 and panic > 0):
            self._panicked_s = now_s
        if now_s - self._panicked_s < self.stable_s:
            self._panic_pods = max(self._panic_pods, panic, stable, here)
            return self._panic_pods
        self._panic_pods = 0
        if now_s - self._busy_s >= self.stable_s + self.grace_s:
            return 0
        return max(1 if here else 0, stable, math.floor(ready / self.max_scale_down_rate))

    def _pods(self, since_s: float) -> int:
        seen = [messages for at_s, messages in self._seen if at_s >= since_s]
        return math.ceil(sum(seen) / max(1, len(seen)) / self.target)
