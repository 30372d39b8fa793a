"""Policies: pure decisions about how many instances there should be."""

from __future__ import annotations

from typing import Protocol

from celery_sqs.errors import ConfigurationError
from celery_sqs.scaler.policies.base import BIN_S, BINS, Counts, Decision, Instance, Observation, Policy
from celery_sqs.scaler.policies.depth import Depth, DepthTunables
from celery_sqs.scaler.policies.work import MODES, Work, WorkTunables

__all__ = [
    "BINS",
    "BIN_S",
    "NAMES",
    "Counts",
    "Decision",
    "Instance",
    "Observation",
    "Policy",
    "PolicyOptions",
    "create",
]

NAMES = ("work", "depth")


class PolicyOptions(Protocol):
    """What `create` reads of `ScalerOptions`."""

    @property
    def policy(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def max_instances(self) -> int: ...
    @property
    def slo_s(self) -> float: ...
    @property
    def tick_s(self) -> float: ...


def create(options: PolicyOptions) -> Policy:
    """The policy that the options name, with an empty memory.

    Raises ConfigurationError for a name or mode that does not exist.
    """
    name, mode, most = options.policy, options.mode, options.max_instances
    if name == "work":
        if mode not in MODES:
            raise ConfigurationError(f"there is no mode {mode!r} of the policy work: modes are {', '.join(MODES)}")
        tunables = WorkTunables.of_mode(mode, max_instances=most, slo_s=options.slo_s, tick_s=options.tick_s)
        return Work(tunables)
    if name == "depth":
        return Depth(DepthTunables(max_instances=most))
    raise ConfigurationError(f"there is no policy {name!r}: policies are {', '.join(NAMES)}")
