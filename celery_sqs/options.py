"""The options of an application on SQS."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote

from celery import Celery

from celery_sqs.aws import Aws
from celery_sqs.errors import ConfigurationError
from celery_sqs.flower.options import FlowerOptions
from celery_sqs.hooks import Hooks
from celery_sqs.queues.temporary import LONGEST_NAME
from celery_sqs.scaler.options import ScalerOptions
from celery_sqs.transport import priorities
from celery_sqs.transport.offload import LIMIT_BYTES, PREFIX


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
    messages_bucket: str = ""
    """The S3 bucket for messages that are larger than `largest_message_bytes`; the results' where it is empty. Its
    lifecycle rule must not remove them while a queue may still have the message."""
    messages_prefix: str = PREFIX
    largest_message_bytes: int = LIMIT_BYTES
    """What the work queues take (their MaximumMessageSize), 1,024 to 1,048,576."""
    priority_steps: tuple[int, ...] = ()
    """Which priorities (0 to 9, 0 is the highest, as with Redis) begin a queue of their own: (0, 3, 6, 9) makes four of
    every work queue. The first is 0, and the queue's own. Without any, `priority` has no effect."""
    results_elsewhere: bool = False
    """The application keeps its results itself: one that a reply cannot carry is answered as None."""
    bucket_owner: str = ""
    """The account (12 digits) that the buckets must belong to."""
    connections: int = Aws.connections
    """That one AWS client keeps."""
    client_config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of botocore's Config for every AWS client."""
    used_tag: str = Aws.used_tag
    """The key of the tag by which temporary queues say when they were used last."""
    sweep: bool = False
    """Let one of the workers delete, now and then, the temporary queues that killed processes left behind."""
    hooks: Hooks = field(default_factory=Hooks)
    scaler: ScalerOptions = field(default_factory=ScalerOptions)
    flower: FlowerOptions = field(default_factory=FlowerOptions)

    def __post_init__(self) -> None:
        given: object = self.queues
        if isinstance(given, str):
            raise ConfigurationError(f"queues is a text: write ({given!r},)")
        if self.endpoint_url and not re.match("https?://", self.endpoint_url):
            raise ConfigurationError(f"endpoint_url is {self.endpoint_url!r}: it begins with http:// or https://")
        for bucket in (self.results_bucket, self.messages_bucket):
            if not re.fullmatch("[A-Za-z0-9._-]*", bucket):
                raise ConfigurationError(f"{bucket!r} is no bucket's name: it takes letters, digits, dots and hyphens")
        if not self.queues:
            raise ConfigurationError("An application has at least one work queue: queues=('orders',)")
        if not 0 <= self.wait_s <= 20:
            raise ConfigurationError(f"wait_s is {self.wait_s}, and SQS takes 0 to 20")
        if not 1024 <= self.largest_message_bytes <= 2**20:
            raise ConfigurationError(
                f"largest_message_bytes is {self.largest_message_bytes}, and SQS takes 1024 to 2**20"
            )
        self._check_names()
        priorities.check(self.priority_steps, self.queues)

    def _check_names(self) -> None:
        longest = LONGEST_NAME - len(f"-{self.replies}-{'0' * 12}")
        if len(self.prefix) > longest or not re.fullmatch(r"[A-Za-z0-9_-]*", self.prefix):
            raise ConfigurationError(
                f"the prefix {self.prefix!r} cannot begin a queue's name: it takes up to {longest} of A-Z, a-z, 0-9, "
                "hyphen and underscore"
            )
        for name in self.queues:
            if not re.fullmatch(r"[!-~]+", name):
                raise ConfigurationError(f"the queue's name {name!r} takes printable ASCII characters, and no spaces")

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
    def queue_names(self) -> tuple[str, ...]:
        """The work queues' whole names, with one for each priority step."""
        return self.names_of(self.queues)

    def names_of(self, queues: Sequence[str]) -> tuple[str, ...]:
        """The same for some of the work queues."""
        steps = [each for name in queues for each in priorities.queues_of(name, self.priority_steps)]
        return tuple(self.queue_name_prefix + each for each in steps)

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
            config=self.client_config,
        )

    def transport_options(self) -> dict[str, Any]:
        """Celery's `broker_transport_options`."""
        named = {theirs: getattr(self, ours) for theirs, ours in TRANSPORT_NAMES.items()}
        own = {
            "queue_name_prefix": self.queue_name_prefix,
            "messages_bucket": self.messages_bucket or self.results_bucket,
            # The pause after a poll that brought nothing: it has waited already, or SQS has refused it.
            "polling_interval": 0.5,
            "fetch_message_attributes": ["ApproximateReceiveCount", "SentTimestamp"],
            "supports_fanout": True,
            # The messages are JSON: base64 inside base64 would be three quarters more bytes.
            "sqs_base64_encoding": False,
            "body_encoding": "utf-8",
            "refuse": self.hooks.refuse,
        }
        return {name: value for name, value in {**named, **own}.items() if value not in ("", None, (), {})}


TRANSPORT_NAMES: Mapping[str, str] = {
    "work_queues": "queues",
    "create_queues": "create_queues",
    "region": "region",
    "endpoint_url": "endpoint_url",
    "client-config": "client_config",
    "wait_time_seconds": "wait_s",
    "visibility_timeout": "visibility_s",
    "extend_visibility": "extend_visibility",
    "max_deliveries": "max_deliveries",
    "priority_steps": "priority_steps",
    "largest_message_bytes": "largest_message_bytes",
    "messages_bucket": "messages_bucket",
    "messages_prefix": "messages_prefix",
    "bucket_owner": "bucket_owner",
    "connections": "connections",
    "used_tag": "used_tag",
    "sweep": "sweep",
}
"""Transport options and the options here that they are."""


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
        "queues": [app.conf.task_default_queue],
    }
    merged = {**plain, **named, **_from_url(app), **given}
    lists = {name: tuple(merged[name]) for name in ("queues", "priority_steps") if name in merged}
    return Options(**{**merged, **lists})


def _from_url(app: Celery) -> dict[str, str]:
    """What the broker's URL says about AWS, as the transport reads it."""
    with app.connection_for_write() as unconnected:
        found = {"access_key_id": unconnected.userid, "secret_access_key": unconnected.password}
        if unconnected.hostname is not None:
            port = "" if unconnected.port is None else f":{unconnected.port}"
            secure = app.conf.broker_transport_options.get("is_secure")
            found["endpoint_url"] = f"{'https' if secure else 'http'}://{unconnected.hostname}{port}"
    return {name: value for name, value in found.items() if value}
