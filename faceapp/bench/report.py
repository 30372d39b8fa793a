"""A run's books as a table, as JSON and as a plot."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from celery_sqs.plots import Panel, draw
from celery_sqs.quantiles import nearest_rank
from faceapp.bench.load import Run
from faceapp.operations import tables

MIB = 2**20
KINDS = ("right", "wrong", "unchecked", "crossed", "doubled", "refused", "lost", "error", "not sent")
THOUSAND = 1000


def document(run: Run) -> dict[str, Any]:
    """Everything that the table shows, as numbers; None for what is not known."""
    answered = run.answered
    latencies_s = [each.latency_s for each in answered]
    counts = run.counts()
    timed = [each for each in answered if each.queued_s is not None]
    whole_s = sum(each.latency_s for each in timed)
    booting_s = sum(run.booting_s(each) for each in timed)
    queued_s = sum(each.queued_s or 0.0 for each in timed)
    computing_s = sum(each.computing_s for each in timed)
    shares: dict[str, float] | None = None
    if whole_s:
        parts_s = {"booting": booting_s, "queueing": max(0.0, queued_s - booting_s), "computing": computing_s}
        shares = {name: seconds / whole_s for name, seconds in parts_s.items()}
        shares["the rest"] = max(0.0, 1 - sum(shares.values()))
    used = [each.web for each in run.samples if each.web]
    return {
        "url": run.options.url,
        "api": run.options.api,
        "photos": len(run.outcomes),
        "concurrency": run.options.concurrency,
        "answered": len(answered),
        **{kind.replace(" ", "_"): counts[kind] for kind in KINDS},
        "refusals": sum(each.refusals for each in run.outcomes),
        "wall_s": run.wall_s,
        "photos_a_second": len(answered) / run.wall_s if run.wall_s else 0.0,
        "latency_s": _latencies(latencies_s),
        "first_thousand_s": _latencies(latencies_s[:THOUSAND]) if len(latencies_s) > THOUSAND else None,
        "last_thousand_s": _latencies(latencies_s[-THOUSAND:]) if len(latencies_s) > THOUSAND else None,
        "shares": shares,
        "web_rss_mib": {
            "before": run.before.rss_bytes / MIB,
            "peak": max(each.rss_bytes for each in used) / MIB,
            "after": run.after.rss_bytes / MIB,
        }
        if run.before and run.after and used
        else None,
        "web_files": {"before": run.before.files, "after": run.after.files} if run.before and run.after else None,
        "stopped": run.stopped,
        "details": [each.detail for each in run.outcomes if each.detail][:5],
    }


def table(runs: Sequence[Run]) -> RenderableType:
    """A column for each run."""
    columns = [_column(document(run)) for run in runs]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return tables.numbers(("", *(run.options.api for run in runs)), rows)


def plot(runs: Sequence[Run], path: Path) -> None:
    """The photos' way through a run, one below the other: open and answered, workers, how long answers took."""
    run = runs[-1]
    times_s = [each.at_s for each in run.samples]
    came = sorted((each.answered_s, each.latency_s) for each in run.answered)
    longest, middle = [], []
    for n, at_s in enumerate(times_s):
        since_s = times_s[n - 1] if n else 0.0
        these = [
            latency_s
            for _, latency_s in came[bisect.bisect_left(came, (since_s, 0.0)) : bisect.bisect_left(came, (at_s, 0.0))]
        ]
        middle.append(nearest_rank(sorted(these), 0.5) if these else 0.0)
        longest.append(max(these, default=0.0))
    # Where the scaler did not say, it is what it said last.
    ready, known = list[int](), 0
    for sample in run.samples:
        known = known if sample.ready is None else sample.ready
        ready.append(known)
    panels = [
        Panel(
            f"{run.options.api}: photos",
            times_s,
            {"answered": [each.answered for each in run.samples], "open": [each.open for each in run.samples]},
        ),
        Panel("instances that are ready", times_s, {"ready": ready}),
        Panel("seconds to answer, of what came in each second", times_s, {"longest": longest, "median": middle}),
        Panel(
            "web tier: MiB", times_s, {"RSS": [each.web.rss_bytes / MIB if each.web else 0.0 for each in run.samples]}
        ),
    ]
    draw(path, panels)


def _latencies(values_s: Sequence[float]) -> dict[str, float] | None:
    if not values_s:
        return None
    ordered_s = sorted(values_s)
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: nearest_rank(ordered_s, share) for name, share in shares.items()}


def _column(found: dict[str, Any]) -> dict[str, str]:
    def seconds(latencies: dict[str, float] | None) -> str:
        return ", ".join(f"{each:.2f}" for each in latencies.values()) if latencies else "-"

    memory, files, shares = found["web_rss_mib"], found["web_files"], found["shares"] or {}
    return {
        "photos, at once": f"{found['photos']}, {found['concurrency']}",
        "answered 200": str(found["answered"]),
        **{f"  {kind}": str(found[kind]) for kind in ("right", "wrong", "unchecked", "crossed", "doubled")},
        "told to come later (503)": str(found["refusals"]),
        "  and given up": str(found["refused"]),
        "lost": str(found["lost"]),
        "errors": str(found["error"]),
        "not sent": str(found["not_sent"]),
        "photos/s": f"{found['photos_a_second']:.1f}",
        "answer after, s: p50, p90, p99, max": seconds(found["latency_s"]),
        "  of the first thousand": seconds(found["first_thousand_s"]),
        "  of the last thousand": seconds(found["last_thousand_s"]),
        **{f"time {name}": f"{shares[name]:.1%}" if shares else "-" for name in _PARTS},
        "web RSS MiB: before, peak, after": ", ".join(f"{each:.0f}" for each in memory.values()) if memory else "-",
        "web open files: before, after": ", ".join(str(each) for each in files.values()) if files else "-",
    }


_PARTS = ("booting", "queueing", "computing", "the rest")
