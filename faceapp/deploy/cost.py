"""What a stack costs, estimated: idle for a month, a thousand photos more, an hour with all workers.

List prices in US dollars of us-east-1 (N. Virginia), Linux, on demand, as they were known in January 2025: AWS changes
them, and its price pages are the truth. Spot prices change by the hour; a third of the on-demand price is what they
were near. Other regions cost up to half as much again. Requests a photo are measured (`python -m benchmarks.path`), and
so are requests of an idle stack. Free tiers are not counted, so small stacks cost less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

PRICES_OF = "us-east-1, January 2025"
HOURS = 730
"""Of a month."""

INSTANCE_HOUR = {
    "t3.micro": 0.0104,
    "t3.small": 0.0208,
    "t3.medium": 0.0416,
    "t3a.micro": 0.0094,
    "t3a.small": 0.0188,
    "t3a.medium": 0.0376,
    "t4g.small": 0.0168,
    "t4g.medium": 0.0336,
    "c6a.large": 0.0765,
    "c6i.large": 0.085,
    "c7i.large": 0.08925,
    "c7a.medium": 0.05132,
    "c7a.large": 0.10264,
    "c7a.xlarge": 0.20528,
    "c7g.medium": 0.0363,
    "m7a.medium": 0.05796,
}
SPOT_SHARE = 0.35
PUBLIC_ADDRESS_HOUR = 0.005
VOLUME_GB_MONTH = 0.08
S3_GB_MONTH = 0.023
S3_PUT, S3_GET = 0.005 / 1000, 0.0004 / 1000
SQS_REQUEST = 0.40 / 1e6
SNS_PUBLISH = 0.50 / 1e6
ALARM_MONTH, METRIC_MONTH = 0.10, 0.30

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
    notes: tuple[str, ...] = ()


def estimate(parameters: Mapping[str, str]) -> Estimate:
    """For a stack with these parameters (those of the template, all of them)."""
    web_type, worker_type = parameters["WebType"], parameters["WorkerType"]
    has_web, has_workers = bool(parameters["WebImage"]), bool(parameters["WorkerImage"])
    spot = parameters["WorkerMarket"] == "spot"
    workers = int(parameters["MaxInstances"]) if has_workers else 0
    volume_month = int(parameters["VolumeGiB"]) * VOLUME_GB_MONTH
    unknown = [each for each in (web_type, worker_type) if each not in INSTANCE_HOUR]
    worker_hour = INSTANCE_HOUR.get(worker_type, 0.0) * (SPOT_SHARE if spot else 1) + PUBLIC_ADDRESS_HOUR
    idle = {"S3": 0.0, "SQS": 0.0, "CloudWatch": _alarms(parameters)}
    if has_web:
        idle["EC2 web-instance"] = (INSTANCE_HOUR.get(web_type, 0.0) + PUBLIC_ADDRESS_HOUR) * HOURS
        idle["EBS"] = volume_month
        idle["S3"] = HOURS * IDLE_PUTS_HOUR * S3_PUT
        idle["SQS"] = HOURS * IDLE_SQS_HOUR * SQS_REQUEST
        idle["SNS"] = HOURS * IDLE_PUBLISHES_HOUR * SNS_PUBLISH
    if workers and not spot:
        # What was once started is stopped, and keeps its volume.
        idle["EBS"] = idle.get("EBS", 0.0) + workers * volume_month
    return Estimate(
        idle_month=idle,
        thousand_photos=_photos(1000, worker_hour if workers else 0.0, keep_days=int(parameters["KeepDays"])),
        busy_hour={"EC2 workers": workers * worker_hour, **({"EBS": workers * volume_month / HOURS} if spot else {})},
        workers=workers,
        notes=tuple(_notes(unknown, volumes=0 if spot else workers)),
    )


def total(costs: Mapping[str, float]) -> float:
    """The sum."""
    return sum(costs.values())


def _notes(unknown: Sequence[str], *, volumes: int) -> Iterator[str]:
    if unknown:
        yield f"No price is known here for {', '.join(unknown)}: not counted."
    if volumes:
        yield f"EBS, idle: with volumes of {volumes} workers that were started once and are stopped; spot leaves none."


def _alarms(parameters: Mapping[str, str]) -> float:
    alarms = 3 + (int(parameters["DailyInstanceSeconds"]) > 0)
    return alarms * ALARM_MONTH + (METRIC_MONTH if parameters["WebImage"] else 0.0)


def _photos(count: int, worker_hour: float, *, keep_days: int) -> dict[str, float]:
    instance_s = START_S + max(LEAST_S, count * WORKER_S_A_PHOTO)
    stored_gb = count * PHOTO_MB / 1000
    return {
        "EC2 workers": worker_hour * instance_s / 3600,
        "S3": count * (S3_PUTS_A_PHOTO * S3_PUT + S3_GETS_A_PHOTO * S3_GET) + stored_gb * S3_GB_MONTH * keep_days / 30,
        "SQS": count * SQS_REQUESTS_A_PHOTO * SQS_REQUEST,
        "SNS": count * EVENTS_A_PHOTO * SNS_PUBLISH,
    }
