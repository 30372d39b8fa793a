"""The options of an application on SQS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote

from celery import Celery

from celery_sqs.aws import Aws
from celery_sqs.errors import ConfigurationError
from celery_sqs.flower.options import FlowerOptions
from celery_sqs.hooks import Hooks
from celery_sqs.scaler.options import ScalerOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an application is called on AWS, and how its parts behave. Times are in seconds.

    A queue's name on SQS is `<prefix>-<name>` (`separator` is the hyphen); topics and reply queues begin with the
    prefix, too. `queues` are the work queues' names without it, the first being Celery's default queue; the names may
    end with `.fifo`.

    Raises ConfigurationError for values that cannot be used.
    """

    prefix: str
    queues: tuple[str, ...] = ("celery",)
    separator: str = "-"
    create_queues: bool = True
    """Make work queues that are not there. Without it they must exist, as where a role may not make any."""
    region: str = ""
    endpoint_url: str = ""
    access_key_id: str = ""
    """With `secret_access_key`: as whom AWS is asked; without it, as boto3 finds."""
    secret_access_key: str = field(default="", repr=False)
    wait_s: int = 20
    """How long one poll of a queue waits for messages; SQS takes 0 to 20."""
    visibility_s: int = 60
    """Of queues that are made here: a message that is held for longer comes again, unless that is extended."""
    extend_visibility: bool = True
    """Keep a message out of others' sight for as long as its task is held, up to SQS's 12 hours."""
    max_deliveries: int | None = None
    """Of every work queue, by its redrive policy: 0 where it has none. None: each queue is asked."""
    replies: str = "replies"
    """The reply queues' names begin with `<prefix>-<replies>`."""
    results_bucket: str = ""
    """The S3 bucket for what must be found later: states, results by id, groups, chords. Without one, results reach
    the process that asked, and nobody else."""
    results_prefix: str = "celery-results/"
    results_elsewhere: bool = False
    """The application keeps its results itself: one that a reply cannot carry is answered as None."""
    bucket_owner: str = ""
    """The account (12 digits) that the buckets must belong to."""
    connections: int = Aws.connections
    """That one AWS client keeps."""
    used_tag: str = Aws.used_tag
    """The key of the tag by which temporary queues say when they were used last."""
    sweep: bool = False
    """Let one of the workers delete, now and then, the temporary queues that killed processes left behind."""
    hooks: Hooks = field(default_factory=Hooks)
    scaler: ScalerOptions = field(default_factory=ScalerOptions)
    flower: FlowerOptions = field(default_factory=FlowerOptions)

    def __post_init__(self) -> None:
        if not self.queues:
            raise ConfigurationError("An application has at least one work queue: queues=('orders',)")
        if not 0 <= self.wait_s <= 20:
            raise ConfigurationError(f"wait_s is {self.wait_s}, and SQS takes 0 to 20")

    @property
    def queue_name_prefix(self) -> str:
        """What every queue's name begins with."""
        return f"{self.prefix}{self.separator}" if self.prefix else ""

    @property
    def broker_url(self) -> str:
        """Celery's `broker_url`."""
        if not self.access_key_id:
            return "sqs://"
        return f"sqs://{quote(self.access_key_id, safe='')}:{quote(self.secret_access_key, safe='')}@"

    @property
    def aws(self) -> Aws:
        """Where AWS is asked, and as whom."""
        return Aws(
            region=self.region,
            endpoint_url=self.endpoint_url,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            used_tag=self.used_tag,
            bucket_owner=self.bucket_owner,
            connections=self.connections,
        )

    def transport_options(self) -> dict[str, Any]:
        """Celery's `broker_transport_options`."""
        given: dict[str, Any] = {
            "queue_name_prefix": self.queue_name_prefix,
            "work_queues": list(self.queues),
            "create_queues": self.create_queues,
            "wait_time_seconds": self.wait_s,
            "visibility_timeout": self.visibility_s,
            "extend_visibility": self.extend_visibility,
            # The pause after a poll that brought nothing: it has waited already, or SQS has refused it.
            "polling_interval": 0.5,
            "fetch_message_attributes": ["ApproximateReceiveCount", "SentTimestamp"],
            "supports_fanout": True,
            # The messages are JSON: base64 inside base64 would be three quarters more bytes.
            "sqs_base64_encoding": False,
            "body_encoding": "utf-8",
            "connections": self.connections,
            "used_tag": self.used_tag,
            "refuse": self.hooks.refuse,
        }
        optional = {
            "region": self.region,
            "endpoint_url": self.endpoint_url,
            "max_deliveries": self.max_deliveries,
            "bucket_owner": self.bucket_owner,
        }
        return given | {name: value for name, value in optional.items() if value not in ("", None)}


TRANSPORT_NAMES: Mapping[str, str] = {
    "wait_time_seconds": "wait_s",
    "visibility_timeout": "visibility_s",
    "region": "region",
    "endpoint_url": "endpoint_url",
    "create_queues": "create_queues",
    "max_deliveries": "max_deliveries",
    "connections": "connections",
    "used_tag": "used_tag",
    "bucket_owner": "bucket_owner",
    "sweep": "sweep",
}
"""Transport options that are options of ours by another name, or by the same."""


def of(app: Celery) -> Options:
    """The options with which `app` was configured; for one that uses settings alone, what its settings say."""
    found = getattr(app, "sqs_options", None)
    return found if isinstance(found, Options) else _from_settings(app)


def _from_settings(app: Celery) -> Options:
    transport = dict(app.conf.broker_transport_options or {})
    results = dict(app.conf.result_backend_transport_options or {})
    own = {each.name for each in fields(Options)}
    named = {ours: transport[theirs] for theirs, ours in TRANSPORT_NAMES.items() if theirs in transport}
    given = {name: value for name, value in results.items() if name in own}
    begins = str(transport.get("queue_name_prefix", ""))
    plain = {
        "prefix": begins.removesuffix("-"),
        "separator": "-" if begins.endswith("-") else "",
        "queues": tuple(transport.get("work_queues") or [app.conf.task_default_queue]),
    }
    return Options(**{**plain, **named, **_from_url(app), **given})


def _from_url(app: Celery) -> dict[str, str]:
    """What the broker's URL says about AWS, as the transport reads it."""
    with app.connection_for_write() as unconnected:
        found = {"access_key_id": unconnected.userid, "secret_access_key": unconnected.password}
        if unconnected.hostname is not None:
            port = "" if unconnected.port is None else f":{unconnected.port}"
            secure = app.conf.broker_transport_options.get("is_secure")
            found["endpoint_url"] = f"{'https' if secure else 'http'}://{unconnected.hostname}{port}"
    return {name: value for name, value in found.items() if value}
