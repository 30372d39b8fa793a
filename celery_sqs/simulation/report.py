"""Numbers for people: what policies made of workloads, a row each, and all workloads together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, geometric_mean

from celery_sqs.quantiles import nearest_rank
from celery_sqs.simulation.world import Bound, Result

HEADER = (
    "policy",
    "workload",
    "messages",
    "mean s",
    "p50",
    "p95",
    "p99",
    "max",
    "missed",
    "billed s",
    "starts",
    "killed",
    "$ / 1,000",
    "x bound",
)
OVERALL_HEADER = (
    "policy",
    "cost / bound",
    "worst",
    "mean s of messages",
    "of workloads",
    "p95",
    "p99",
    "missed",
    "worst",
    "killed",
)


@dataclass(frozen=True)
class Row:
    """One policy on one workload, over all seeds: latencies are pooled, the rest is per run."""

    policy: str
    workload: str
    results: tuple[Result, ...]
    bounds: tuple[Bound, ...]
    """Of the same seeds; empty when they were not asked for."""

    @cached_property
    def _latencies_s(self) -> list[float]:
        return sorted(latency for result in self.results for latency in result.latencies_s)

    @property
    def messages(self) -> int:
        return sum(result.messages for result in self.results)

    @property
    def mean_s(self) -> float:
        return fmean(self._latencies_s or [0.0])

    def quantile_s(self, share: float) -> float:
        """By nearest rank; 0 without any answer."""
        latencies_s = self._latencies_s
        return nearest_rank(latencies_s, share) if latencies_s else 0.0

    @property
    def miss_share(self) -> float:
        return sum(result.misses for result in self.results) / max(1, self.messages)

    @property
    def billed_s(self) -> float:
        return fmean(result.billed_s for result in self.results)

    @property
    def kills(self) -> int:
        return sum(result.kills for result in self.results)

    @property
    def ratio(self) -> float:
        """Billed seconds over the lower bound's, of all seeds together; NaN without bounds."""
        bound_s = sum(bound.billed_s for bound in self.bounds)
        return sum(result.billed_s for result in self.results) / bound_s if bound_s else math.nan

    def cells(self, price_usd_per_h: float) -> tuple[str, ...]:
        """As `HEADER` names them."""
        runs = len(self.results)
        usd = self.billed_s * runs / 3600 * price_usd_per_h
        return (
            self.policy,
            self.workload,
            f"{self.messages / runs:.0f}",
            f"{self.mean_s:.1f}",
            *(f"{self.quantile_s(share):.1f}" for share in (0.5, 0.95, 0.99, 1.0)),
            percent(self.miss_share),
            f"{self.billed_s:.0f}",
            f"{sum(result.launches for result in self.results) / runs:.0f}",
            f"{self.kills / runs:.0f}",
            f"{1000 * usd / max(1, self.messages):.4f}",
            "-" if math.isnan(self.ratio) else f"{self.ratio:.2f}",
        )


@dataclass(frozen=True)
class Overall:
    """One policy on all workloads, each of which counts the same unless it says otherwise."""

    policy: str
    rows: tuple[Row, ...]

    @property
    def ratio(self) -> float:
        """The geometric mean of billed seconds over the bound's."""
        return geometric_mean(row.ratio for row in self.rows)

    @property
    def worst_ratio(self) -> float:
        return max(row.ratio for row in self.rows)

    @property
    def mean_s(self) -> float:
        return fmean(row.mean_s for row in self.rows)

    @property
    def message_mean_s(self) -> float:
        """The mean of all messages, so that each of them counts the same."""
        answered = [len(result.latencies_s) for row in self.rows for result in row.results]
        return sum(sum(result.latencies_s) for row in self.rows for result in row.results) / max(1, sum(answered))

    @property
    def miss_share(self) -> float:
        return fmean(row.miss_share for row in self.rows)

    @property
    def worst_miss_share(self) -> float:
        return max(row.miss_share for row in self.rows)

    @property
    def kills(self) -> int:
        return sum(row.kills for row in self.rows)

    def cost_over(self, other: Overall) -> float:
        """The geometric mean over the workloads of this one's billed seconds over the other's."""
        return geometric_mean(
            mine.billed_s / theirs.billed_s for mine, theirs in zip(self.rows, other.rows, strict=True)
        )

    def mean_over(self, other: Overall) -> float:
        """The geometric mean over the workloads of this one's mean latency over the other's."""
        return geometric_mean(mine.mean_s / theirs.mean_s for mine, theirs in zip(self.rows, other.rows, strict=True))

    def cells(self) -> tuple[str, ...]:
        """As `OVERALL_HEADER` names them."""
        return (
            self.policy,
            f"{self.ratio:.2f}",
            f"{self.worst_ratio:.1f}",
            f"{self.message_mean_s:.1f}",
            f"{self.mean_s:.1f}",
            *(f"{fmean(row.quantile_s(share) for row in self.rows):.1f}" for share in (0.95, 0.99)),
            percent(self.miss_share),
            percent(self.worst_miss_share),
            str(self.kills),
        )


def rows(results: Iterable[Result], bounds: Iterable[Bound] = ()) -> list[Row]:
    """A row for each policy and workload, in the order they first come in, with the bounds of the same seeds."""
    together: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        together.setdefault((result.policy, result.workload), []).append(result)
    least = {(bound.workload, bound.seed): bound for bound in bounds}
    return [
        Row(policy, workload, tuple(runs), tuple(least[workload, run.seed] for run in runs) if least else ())
        for (policy, workload), runs in together.items()
    ]


def overall(rows: Sequence[Row]) -> Mapping[str, Overall]:
    """By policy, its rows together."""
    names = dict.fromkeys(row.policy for row in rows)
    return {name: Overall(name, tuple(row for row in rows if row.policy == name)) for name in names}


def percent(share: float) -> str:
    """'0' only when there is nothing at all."""
    return "0" if share == 0 else f"{100 * share:.2f} %" if share < 0.01 else f"{100 * share:.1f} %"
