"""What a stack costs, estimated: idle for a month, a thousand photos more, an hour with all workers.

In US dollars, by the prices of `prices`. Requests a photo are measured (`python -m benchmarks.path`), and so are
requests of an idle stack. Free tiers are not counted, so small stacks cost less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from faceapp.deploy.prices import Prices

HOURS = 730
"""Of a month."""
SPOT_SHARE = 0.35
"""Of the on-demand price: what spot was near, for when EC2 does not say what it is."""

PHOTO_MB = 0.5
S3_PUTS_A_PHOTO, S3_GETS_A_PHOTO = 2.0, 1.0
SQS_REQUESTS_A_PHOTO, EVENTS_A_PHOTO = 3.6, 0.073
"""With Flower listening (docs/broker.md): a worker publishes its tasks' events together."""
WORKER_S_A_PHOTO = 0.035
"""CPU seconds, on one core of an AMD EPYC with avx512_bf16."""
START_S = 45.0
"""From an instance's start to its first photo: it is billed."""
LEAST_S = 60.0
"""EC2 bills a minute at least, and the policy keeps an instance for it."""
IDLE_PUTS_HOUR, IDLE_SQS_HOUR, IDLE_PUBLISHES_HOUR = 600, 1950, 90
"""Of web tier, scaler and Flower with nothing to do, counted at the embedded AWS: the scaler's lease, its looks at the
queue, everybody's long polls, pings over the events' topic. What EC2 and CloudFormation are asked costs nothing."""
NOT_COUNTED = (
    "data sent to the internet (0.09 USD/GB), taxes, support, AMIs' snapshots (0.05 USD/GB-month), CloudWatch Logs "
    "(0.50 USD/GB taken in, with ShipLogs), KMS keys of your own; and free tiers, which make small stacks cheaper"
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """US dollars by service."""

    idle_month: Mapping[str, float]
    """Running, with no photo for a month."""
    thousand_photos: Mapping[str, float]
    """In a burst, in addition; stored as long as KeepDays says."""
    busy_hour: Mapping[str, float]
    """With all workers at work, in addition."""
    workers: int
    source: str
    """Of the prices."""
    notes: tuple[str, ...] = ()


def estimate(parameters: Mapping[str, str], prices: Prices) -> Estimate:
    """For a stack with these parameters (those of the template, all of them), at these prices."""
    web_type, worker_type = parameters["WebType"], parameters["WorkerType"]
    has_web, has_workers = bool(parameters["WebImage"]), bool(parameters["WorkerImage"])
    spot = parameters["WorkerMarket"] == "spot"
    workers = int(parameters["MaxInstances"]) if has_workers else 0
    volume_month = int(parameters["VolumeGiB"]) * prices.volume_gb_month
    worker_hour = _worker_hour(worker_type, prices, spot=spot) + prices.address_hour
    idle = {"S3": 0.0, "SQS": 0.0, "CloudWatch": _alarms(parameters, prices)}
    if has_web:
        idle["EC2 web-instance"] = (prices.instance_hour.get(web_type, 0.0) + prices.address_hour) * HOURS
        idle["EBS"] = volume_month
        idle["S3"] = HOURS * IDLE_PUTS_HOUR * prices.s3_put
        idle["SQS"] = HOURS * IDLE_SQS_HOUR * prices.sqs_request
        idle["SNS"] = HOURS * IDLE_PUBLISHES_HOUR * prices.sns_publish
    if workers and not spot:
        # What was once started is stopped, and keeps its volume.
        idle["EBS"] = idle.get("EBS", 0.0) + workers * volume_month
    keep_days = int(parameters["KeepDays"])
    return Estimate(
        idle_month=idle,
        thousand_photos=_photos(1000, prices, worker_hour if workers else 0.0, keep_days=keep_days),
        busy_hour={"EC2 workers": workers * worker_hour, **({"EBS": workers * volume_month / HOURS} if spot else {})},
        workers=workers,
        source=prices.source,
        notes=(*prices.notes, *_notes(parameters, prices, workers=workers)),
    )


def total(costs: Mapping[str, float]) -> float:
    """The sum."""
    return sum(costs.values())


def _worker_hour(kind: str, prices: Prices, *, spot: bool) -> float:
    on_demand = prices.instance_hour.get(kind, 0.0)
    return prices.spot_hour.get(kind, SPOT_SHARE * on_demand) if spot else on_demand


def _notes(parameters: Mapping[str, str], prices: Prices, *, workers: int) -> Iterator[str]:
    web_type, worker_type = parameters["WebType"], parameters["WorkerType"]
    spot = parameters["WorkerMarket"] == "spot"
    known = {*prices.instance_hour, *(prices.spot_hour if spot else ())}
    if unknown := [each for each in dict.fromkeys((web_type, worker_type)) if each not in known]:
        yield f"No price is known here for {', '.join(unknown)}: not counted."
    if spot and worker_type in known and worker_type not in prices.spot_hour:
        yield f"The spot price, which changes by the hour, is taken as {SPOT_SHARE * 100:.0f} % of the on-demand price."
    if workers and not spot:
        yield f"EBS, idle: with volumes of {workers} workers that were started once and are stopped; spot leaves none."


def _alarms(parameters: Mapping[str, str], prices: Prices) -> float:
    alarms = 3 + (int(parameters["DailyInstanceSeconds"]) > 0)
    return alarms * prices.alarm_month + (prices.metric_month if parameters["WebImage"] else 0.0)


def _photos(count: int, prices: Prices, worker_hour: float, *, keep_days: int) -> dict[str, float]:
    instance_s = START_S + max(LEAST_S, count * WORKER_S_A_PHOTO)
    stored = count * PHOTO_MB / 1000 * prices.s3_gb_month * keep_days / 30
    return {
        "EC2 workers": worker_hour * instance_s / 3600,
        "S3": count * (S3_PUTS_A_PHOTO * prices.s3_put + S3_GETS_A_PHOTO * prices.s3_get) + stored,
        "SQS": count * SQS_REQUESTS_A_PHOTO * prices.sqs_request,
        "SNS": count * EVENTS_A_PHOTO * prices.sns_publish,
    }
