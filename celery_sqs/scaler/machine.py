"""One worker instance as EC2 describes it, and what its tags remember.

Everything that must outlive the scaler is in tags, as seconds of EC2's own clock: a mark is about the present run of an
instance when it is not older than the run. So no mark has to be removed, and no clock of ours is asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from celery_sqs.errors import ConfigurationError

STACK = "stack"
TIER = "tier"
STARTED = "started"
"""When the scaler started it. EC2's LaunchTime says the same, except in an emulator that keeps the first one."""
READY = "ready"
"""When its worker was first heard from; with a second word when that was too late to say how long it booted."""
DRAINING = "draining"
"""When it was told to finish and stop."""
FAILED = "failed"
"""When its boot was given up, and how many boots in a row had come to nothing then."""
TEMPLATE = "template"
"""The launch template's version that it was made from."""
EC2S_TEMPLATE = "aws:ec2launchtemplate:version"
"""The same, as EC2 itself notes it (no emulator does)."""

NAME = "Name"
"""The one tag that is EC2's own habit, and has no namespace."""
BY_HAND_S = 300
"""A LaunchTime this much later than `STARTED` means that somebody else started the instance."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An instance that carries our stack's tag."""

    id: str
    name: str
    state: str
    """pending, running, stopping or stopped."""
    run_s: int
    """Unix second, by EC2's clock, at which its present (or last) run began."""
    age_s: float
    """Seconds since then."""
    number: int | None = None
    """n of a worker's name; None for any other name."""
    nameless: bool = False
    """A worker whose name is still to come: the scaler ended between creating it and naming it."""
    foreseen: bool = False
    """No worker, and known to be there: nobody has to be told of it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """By the constants above, without their namespace."""
    spot: bool = False

    @property
    def ours(self) -> bool:
        """Whether the scaler may start and stop it."""
        return self.number is not None

    @property
    def billed(self) -> bool:
        return self.state in ("pending", "running")

    @property
    def ready(self) -> bool:
        return self.mark_s(READY) >= self.run_s

    @property
    def boot_s(self) -> float | None:
        """Seconds from the start to the worker's first sign of life; None when nobody heard that."""
        measured = " " not in self.tags.get(READY, " ")
        return float(self.mark_s(READY) - self.run_s) if self.ready and measured else None

    @property
    def failed(self) -> bool:
        """Whether the last boot came to nothing."""
        return self.mark_s(FAILED) >= self.run_s

    @property
    def draining(self) -> bool:
        """Whether it was told to stop, in this run."""
        return self.failed or self.mark_s(DRAINING) >= self.run_s

    @property
    def last_mark_s(self) -> int:
        return max(self.mark_s(tag) for tag in (STARTED, READY, DRAINING, FAILED))

    @property
    def dead_boots(self) -> int:
        """How many boots in a row had come to nothing when its own did."""
        return _number(self.tags.get(FAILED, "").partition(" ")[2])

    @property
    def template(self) -> int:
        """The launch template's version that it was made from; 0 when nobody knows (it was made by hand)."""
        return _number(self.tags.get(TEMPLATE) or self.tags.get(EC2S_TEMPLATE, ""))

    def outdated(self, latest: int) -> bool:
        """Whether it was made from an older version of the launch template than `latest` (0: not known)."""
        return self.ours and 0 < self.template < latest

    def mark_s(self, tag: str) -> int:
        """The second that a mark names; 0 when there is none."""
        return _number(self.tags.get(tag, ""))


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How a fleet's instances are named and tagged on EC2."""

    stack: str
    """The value of the tag `<namespace>:stack`, which tells one fleet's instances from another's."""
    namespace: str = "celery-sqs"
    """What the keys of the tags begin with, before a colon."""
    name: str = "worker-{n}"
    """Of an instance; {n} is its number."""
    tier: str = "workers"
    """The value of the tag `<namespace>:tier`: an instance with it and without a name is a worker."""
    others: tuple[str, ...] = ()
    """Names of instances that carry the stack's tag and are no workers."""

    def __post_init__(self) -> None:
        if self.name.count("{n}") != 1:
            raise ConfigurationError(
                f"The instances' name {self.name!r} has no {{n}} in it, or several: 'worker-{{n}}'"
            )

    def tag(self, name: str) -> str:
        """The key on EC2 of one of this module's tags."""
        return name if name == NAME else f"{self.namespace}:{name}"

    def name_of(self, number: int) -> str:
        return self.name.replace("{n}", str(number))

    def number_of(self, name: str) -> int | None:
        """n of a worker's name; None for any other name."""
        found = _pattern(self.name).fullmatch(name)
        return int(found[1]) if found else None

    def named(self, machine: Machine, name: str) -> Machine:
        """The machine under another name."""
        tags = {**machine.tags, NAME: name}
        return replace(machine, name=name, number=self.number_of(name), nameless=False, tags=tags)

    def _own(self, tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
        """What our tags say; a tag of somebody else's may have one of their names, without the namespace."""
        start, ours = f"{self.namespace}:", {each["Key"]: each["Value"] for each in tags}
        own = {key.removeprefix(start): value for key, value in ours.items() if key.startswith(start)}
        return own | {key: ours[key] for key in (NAME, EC2S_TEMPLATE) if key in ours}

    def machine(self, described: Mapping[str, Any], *, now_s: float) -> Machine:
        """An element of DescribeInstances, at `now_s` by EC2's clock."""
        tags = self._own(described.get("Tags", ()))
        launched: datetime = described["LaunchTime"]
        launched_s, started_s = int(launched.timestamp()), _number(tags.get(STARTED, ""))
        run_s = started_s if started_s and launched_s <= started_s + BY_HAND_S else launched_s
        name = tags.get(NAME, "")
        return Machine(
            id=described["InstanceId"],
            name=name,
            number=self.number_of(name),
            nameless=not name and tags.get(TIER) == self.tier,
            foreseen=name in self.others,
            state=described["State"]["Name"],
            run_s=run_s,
            age_s=max(0.0, now_s - run_s),
            tags=tags,
            spot=described.get("InstanceLifecycle") == "spot",
        )


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"([1-9]\d{0,5})".join(map(re.escape, name.split("{n}"))))


def dead_boots(machines: Iterable[Machine]) -> int:
    """How many boots in a row have come to nothing, since the last that succeeded."""
    machines = list(machines)
    last_success_s = max((each.mark_s(READY) for each in machines), default=0)
    streaks = [each.dead_boots for each in machines if each.mark_s(FAILED) >= last_success_s]
    return max(streaks, default=0)


def orphans(machines: Iterable[Machine]) -> dict[str, str]:
    """Instances with our tag that the scaler will not touch, or that should not be: a reason by id."""
    machines = list(machines)
    names = Counter(each.name for each in machines if each.ours)
    found = {}
    for each in machines:
        if not each.ours and not each.nameless and not each.foreseen:
            found[each.id] = f"is named {each.name!r}, which is no worker's name"
        elif names[each.name] > 1:
            found[each.id] = f"shares the name {each.name} with another"
    return found


def free_numbers(machines: Iterable[Machine], count: int) -> list[int]:
    """The `count` lowest n that no machine's name has."""
    taken = {each.number for each in machines}
    found: list[int] = []
    number = 1
    while len(found) < count:
        if number not in taken:
            found.append(number)
        number += 1
    return found


@lru_cache(maxsize=4096)
def _number(text: str) -> int:
    first = text.partition(" ")[0]
    return int(first) if first.isdecimal() else 0
