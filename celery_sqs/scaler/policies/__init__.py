"""Policies: pure decisions about how many instances there should be."""

from __future__ import annotations

from typing import Protocol

from celery_sqs.scaler.policies.base import BIN_S, BINS, Counts, Decision, Instance, Observation, Policy
from celery_sqs.scaler.policies.depth import Depth, DepthTunables
from celery_sqs.scaler.policies.work import MODES, Work, WorkTunables
from celery_sqs.simulation.step import Step, StepTunables
from celery_sqs.simulation.target import Target, TargetTunables
from faceapp.errors import ConfigError

__all__ = [
    "BINS",
    "BIN_S",
    "NAMES",
    "Counts",
    "Decision",
    "Instance",
    "Observation",
    "Policy",
    "PolicySettings",
    "create",
]

NAMES = ("work", "depth", "target", "step")


class PolicySettings(Protocol):
    """What `create` reads of `faceapp.config.Settings`."""

    @property
    def scaler_policy(self) -> str: ...
    @property
    def scaler_mode(self) -> str: ...
    @property
    def scaler_max_instances(self) -> int: ...
    @property
    def scaler_slo_s(self) -> float: ...
    @property
    def scaler_tick_s(self) -> float: ...


def create(settings: PolicySettings) -> Policy:
    """The policy that the settings name, with an empty memory.

    Raises ConfigError for a name or mode that does not exist.
    """
    name, mode, most = settings.scaler_policy, settings.scaler_mode, settings.scaler_max_instances
    if name == "work":
        if mode not in MODES:
            raise ConfigError(f"there is no mode {mode!r} of the policy work: modes are {', '.join(MODES)}")
        tunables = WorkTunables.of_mode(
            mode, max_instances=most, slo_s=settings.scaler_slo_s, tick_s=settings.scaler_tick_s
        )
        return Work(tunables)
    if name == "depth":
        return Depth(DepthTunables(max_instances=most))
    if name == "target":
        return Target(TargetTunables(max_instances=most))
    if name == "step":
        return Step(StepTunables(max_instances=most))
    raise ConfigError(f"there is no policy {name!r}: policies are {', '.join(NAMES)}")
