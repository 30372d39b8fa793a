"""Policies: pure decisions about how many instances there should be."""

from faceapp.scaling.policies.base import BIN_S, BINS, Counts, Decision, Instance, Observation, Policy

__all__ = ["BINS", "BIN_S", "Counts", "Decision", "Instance", "Observation", "Policy"]
