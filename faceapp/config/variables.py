"""Settings from the environment, read once, typed and frozen.

Every field of `Settings` is one variable: `FACEAPP_` and the field's name in capitals. A value that does not fit stops
the program at once with a sentence that names the variable and what it takes. A variable that is no setting is passed
over with a warning: it may be a newer version's, or one that Kubernetes sets for a Service of this name. AWS's own
variables (`AWS_ENDPOINT_URL`, `AWS_REGION`, credentials, profiles) mean what they mean to boto3 and are not repeated
here.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypedDict

from faceapp.errors import ConfigError

MIB = 1024 * 1024
PREFIX = "FACEAPP_"
LINK = re.compile(r"(tcp|udp|sctp)://\S*")
"""What Kubernetes sets `<SERVICE>_PORT` to; for a Service `faceapp-web` that is the name of a setting."""


@dataclass(frozen=True)
class Rule:
    """How a variable's text becomes a value: `parse` raises ValueError on what it cannot use."""

    parse: Callable[[str], Any]
    takes: str
    doc: str
    secret: bool = False
    """Not to be shown."""


def _number(convert: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = convert(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _pattern(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return parse


def _whole(default: int, low: int, high: int, doc: str) -> Any:
    return field(
        default=default, metadata={"rule": Rule(_number(int, low, high), f"a whole number, {low} to {high}", doc)}
    )


def _real(default: float, low: float, high: float, doc: str) -> Any:
    return field(
        default=default, metadata={"rule": Rule(_number(float, low, high), f"a number, {low:g} to {high:g}", doc)}
    )


def _choice(default: str, *values: str, doc: str) -> Any:
    return field(default=default, metadata={"rule": Rule(_pattern("|".join(values)), " or ".join(values), doc)})


def _text(default: str, doc: str, *, pattern: str = r"(?s).*", takes: str = "text", secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"rule": Rule(_pattern(pattern), takes, doc, secret)})


class PhotoLimits(TypedDict):
    """The limits on photos, as `images` and the recogniser take them."""

    max_pixels: int
    max_jpeg_pixels: int
    max_side_px: int


class ModelOptions(PhotoLimits):
    """What the recogniser takes."""

    embedder: str
    weights: str
    precision: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of faceapp's settings."""

    prefix: str = _text(
        "faceapp",
        "the first part of every bucket's and queue's name",
        # With one of these in it, its queues would match the patterns of the roles of a stack with a shorter prefix.
        pattern=r"(?!.*-(celeryev|resp-queue)(-|$))[a-z0-9][a-z0-9-]{0,30}[a-z0-9]",
        takes="2 to 32 small letters, digits and hyphens, with no hyphen at either end and no -celeryev or -resp-queue",
    )
    stack: str = _text(
        "",
        "the CloudFormation stack's name; none: the prefix, or faceapp-<prefix> where that begins with a digit",
        pattern=r"([A-Za-z][A-Za-z0-9-]{0,127})?",
        takes="up to 128 letters, digits and hyphens, beginning with a letter",
    )

    web_host: str = _text(
        "127.0.0.1", "the address that the web tier listens on", pattern=r"[0-9A-Za-z.:_-]+", takes="a host"
    )
    web_port: int = _whole(8000, 1, 65535, "the web tier's port")
    web_name: str = _text(
        "",
        "this web server's name among several on one stack, each with response queues of its own; one may go without",
        pattern=r"([a-z][a-z0-9-]{0,19})?",
        takes="up to 20 small letters, digits and hyphens, beginning with a letter",
    )
    web_processes: int = _whole(1, 1, 64, "web processes; each reads a response queue of its own")
    web_connections: int = _whole(1100, 1, 100_000, "requests that one web process holds open at once")
    web_wait_s: float = _real(300.0, 0.1, 3600, "how long POST / waits for an answer")
    web_max_photo_bytes: int = _whole(20 * MIB, 1024, 512 * MIB, "the largest photo accepted")
    web_max_request_bytes: int = _whole(64 * MIB, 1024, 1024 * MIB, "the largest upload accepted in one request")
    web_waiting: int = _whole(
        1000, 1, 100_000, "requests with photos that one web process takes at once; more are answered 503"
    )
    web_upload_s: float = _real(
        60.0, 0.1, 3600, "a request's upload takes no longer, and no longer does the client to take its answer"
    )
    web_upload_bytes: int = _whole(
        128 * MIB, 1024, 1024 * 1024 * MIB, "uploads that one web process holds in memory; others wait to be read"
    )
    web_auth: str = _choice(
        "loopback",
        "loopback",
        "classic",
        "always",
        doc="what needs no API key: POST / from this machine, POST / from programs anywhere, nothing",
    )
    web_rate_per_minute: int = _whole(6000, 0, 1_000_000, "requests a minute for one API key; 0: no limit")
    web_metrics: str = _choice(
        "loopback",
        "off",
        "loopback",
        "private",
        "any",
        doc="who may read the web tier's /metrics: nobody, this machine, private networks too, anybody",
    )
    web_max_files: int = _whole(32, 1, 1000, "photos accepted in one request")

    photo_max_pixels: int = _whole(64_000_000, 10_000, 1_000_000_000, "a photo with more pixels is refused")
    photo_max_jpeg_pixels: int = _whole(
        200_000_000, 10_000, 1_000_000_000, "the same for a JPEG that is decoded small: one that is not progressive"
    )
    photo_max_side_px: int = _whole(20_000, 100, 65_500, "a photo wider or higher is refused")

    worker_processes: int = _whole(0, 0, 256, "worker processes; 0: one a core")
    task_time_limit_s: int = _whole(
        60,
        5,
        3600,
        "a task that runs longer is killed and tried again, but a photo that takes longer to look at has failed",
    )
    queue_age_s: int = _whole(3600, 1, 345_600, "a photo that waited in the queue for longer is not looked at any more")
    worker_memory_mib: int = _whole(1536, 0, 1024 * 1024, "memory that one task may take; 0: no limit")
    queue_wait_s: int = _whole(20, 0, 20, "how long one long poll of a queue waits")

    account: str = _text(
        "",
        "the AWS account that the buckets must belong to; none: not checked",
        pattern=r"(\d{12})?",
        takes="an account's 12 digits",
    )
    worker_image: str = _text(
        "",
        "the image (AMI) that app-tier instances boot; without it the stack has no launch template",
        pattern=r"(ami-[0-9a-f]{8,17})?",
        takes="an AMI's id",
    )
    worker_type: str = _text(
        "c7a.medium", "the app-tier instances' type", pattern=r"[a-z0-9-]+\.[a-z0-9-]+", takes="an instance type"
    )

    embedder: str = _choice("dlib", "dlib", "facenet", doc="the network that describes faces")
    weights: str = _text("", "the facenet embedder's weights file (VGGFace2 state dict)")
    precision: str = _choice(
        "auto", "auto", "fp32", "bf16", doc="the embedder's arithmetic; auto: bf16 where the CPU has it"
    )
    device: str = _text(
        "auto",
        "auto (CUDA when there is one), cpu or cuda:N",
        pattern=r"auto|cpu|cuda(:\d+)?",
        takes="auto, cpu or cuda:N",
    )
    threshold: float = _real(0.0, 0.0, 4.0, "the largest distance that is the same person; 0: the embedder's own")
    nearest: str = _choice(
        "no",
        "no",
        "always",
        doc="always: a face is named after the nearest person, however far; nobody is unknown (for the course)",
    )

    gallery_refresh_s: float = _real(2.0, 0.1, 3600, "how often a worker asks whether the gallery has changed")
    # Of 128 numbers, twice, with a key and an ETag. The default's table, and the next one while it changes, fit into
    # half of worker_memory_mib.
    gallery_max_photos: int = _whole(
        250_000, 1, 100_000_000, "enrolled photos at most; each takes 1.3 KB of a worker's memory"
    )

    scaler_policy: str = _choice("work", "work", "depth", doc="what decides the number of instances")
    scaler_mode: str = _choice("balanced", "fast", "balanced", "eco", doc="the policy work's trade of time for money")
    scaler_max_instances: int = _whole(15, 0, 1000, "there are never more app-tier instances than this")
    scaler_slo_s: float = _real(120.0, 1, 86_400, "an answer is to come within this many seconds")
    scaler_tick_s: float = _real(3.0, 0.1, 60, "how often the scaler looks and decides")
    # Four times what a core of a new server takes (README, "Measured"): assumed only until the first worker tells.
    scaler_service_s: float = _real(0.15, 0.001, 3600, "seconds of an instance a photo, until it was measured")
    scaler_boot_s: float = _real(45.0, 0.1, 3600, "seconds from an instance's start to its first photo, until measured")
    scaler_starts_per_minute: int = _whole(60, 1, 10_000, "instances started in one minute at most")
    scaler_daily_instance_s: int = _whole(0, 0, 1_000_000_000, "instance-seconds a day at most; 0: no budget")
    scaler_cloudwatch: str = _choice(
        "no", "yes", "no", doc="whether CloudWatch is told of dead boots and the budget, for the stack's alarms"
    )
    scaler_subnets: str = _text(
        "",
        "subnets for new instances, tried in turn when one has no capacity; none: the default network's",
        pattern=r"(subnet-[0-9a-f]+(,subnet-[0-9a-f]+)*)?",
        takes="subnet ids with commas between them",
    )
    scaler_types: str = _text(
        "",
        "instance types for new instances, tried in turn when one has no capacity (after the launch template's own)",
        pattern=r"([a-z0-9-]+\.[a-z0-9-]+(,[a-z0-9-]+\.[a-z0-9-]+)*)?",
        takes="instance types with commas between them",
    )
    scaler_host: str = _text("127.0.0.1", "the address of the scaler's status", pattern=r"[\w.:-]+", takes="a host")
    scaler_port: int = _whole(8001, 1, 65535, "the port of the scaler's status and metrics")

    local_boot_min_s: float = _real(2.0, 0, 600, "an embedded instance takes at least this long to boot (make up)")
    local_boot_max_s: float = _real(4.0, 0, 600, "and at most this long (on EC2: 20 to 50)")
    local_stop_grace_s: float = _real(90.0, 0, 3600, "a stopped embedded instance's worker is killed after this long")
    local_instance_processes: int = _whole(1, 1, 64, "worker processes of an embedded instance")
    aws_port: int = _whole(4566, 1, 65535, "the embedded AWS's port (make up)")
    flower_basic_auth: str = _text(
        "",
        "Flower's user and password, asked for instead of the start's credential",
        pattern=r"([^:\s,]+:[^\s,]+)?",
        takes="USER:PASSWORD without spaces and commas",
        secret=True,
    )
    flower_host: str = _text("127.0.0.1", "the address that Flower listens on", pattern=r"[\w.:-]+", takes="a host")
    flower_port: int = _whole(5555, 1, 65535, "Flower's port")
    api_key: str = _text(
        "",
        "the API key that this machine's commands send",
        pattern=r"(fa_[0-9a-f]{8}_[0-9A-Za-z_-]{43})?",
        takes="a key as 'faceapp keys create' prints it",
        secret=True,
    )
    local_key: str = _text(
        "",
        "the credential of one start of 'faceapp up', which makes it and hands it to its parts",
        pattern=r"(fa_[0-9a-f]{8}_[0-9A-Za-z_-]{43})?",
        takes="a key as 'python -m faceapp.security.credential' prints it",
        secret=True,
    )
    log_level: str = _choice("INFO", "DEBUG", "INFO", "WARNING", "ERROR", doc="how much is logged")
    log_format: str = _choice("human", "human", "json", doc="what a log line looks like: for people, or a JSON object")

    @property
    def stack_name(self) -> str:
        """Of the CloudFormation stack. Its name must begin with a letter; those of buckets and queues need not."""
        return self.stack or (self.prefix if self.prefix[0].isalpha() else f"faceapp-{self.prefix}")

    @property
    def in_bucket(self) -> str:
        return f"{self.prefix}-in-bucket"

    @property
    def out_bucket(self) -> str:
        return f"{self.prefix}-out-bucket"

    @property
    def gallery_bucket(self) -> str:
        return f"{self.prefix}-gallery-bucket"

    @property
    def request_queue(self) -> str:
        return f"{self.prefix}-req-queue"

    @property
    def response_queue(self) -> str:
        return f"{self.prefix}-resp-queue"

    @property
    def dead_letter_queue(self) -> str:
        return f"{self.prefix}-dead-letter-queue"

    @property
    def photo_limits(self) -> PhotoLimits:
        return PhotoLimits(
            max_pixels=self.photo_max_pixels,
            max_jpeg_pixels=self.photo_max_jpeg_pixels,
            max_side_px=self.photo_max_side_px,
        )

    @property
    def model_options(self) -> ModelOptions:
        return ModelOptions(
            embedder=self.embedder,
            weights=self.weights,
            precision=self.precision,
            device=self.device,
            **self.photo_limits,
        )

    @property
    def task_soft_limit_s(self) -> int:
        """A task that runs for so long is told to end, and five seconds later it is killed."""
        return max(1, self.task_time_limit_s - 5)

    def largest_distance(self, own: float) -> float:
        """The largest distance that is the same person, for an embedder whose own threshold is `own`."""
        return math.inf if self.nearest == "always" else self.threshold or own

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read `FACEAPP_*`. Raises ConfigError for a value that does not fit.

        What is no setting is passed over; `strange` says which those are.
        """
        known = _variables()
        passed_over = strange(environ)
        values: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX) or text == "" or variable in passed_over:
                continue
            rule: Rule = known[variable].metadata["rule"]
            try:
                values[known[variable].name] = rule.parse(text)
            except ValueError:
                shown = "its value" if rule.secret else repr(text)
                raise ConfigError(f"{variable}={shown} cannot be used: it takes {rule.takes}") from None
        found = cls(**values)
        if found.web_waiting >= found.web_connections:
            raise ConfigError(
                f"FACEAPP_WEB_WAITING={found.web_waiting} cannot be used: it takes less than FACEAPP_WEB_CONNECTIONS "
                f"({found.web_connections}), for probes and refusals need connections, too"
            )
        return found


def strange(environ: Mapping[str, str]) -> dict[str, str]:
    """The `FACEAPP_*` variables that are no settings, each with a clause that says so, and what may have been meant."""
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or text == "":
            continue
        if variable not in _variables():
            near = difflib.get_close_matches(variable, _variables(), n=1, cutoff=0.8)
            meant = f" (did you mean {near[0]}?)" if near else ""
            found[variable] = f"{variable} is not a setting of faceapp{meant}"
        elif variable.endswith("_PORT") and LINK.fullmatch(text):
            found[variable] = f"{variable}={text!r} is what Kubernetes sets for a Service, not a port"
    return found


@cache
def _variables() -> dict[str, Any]:
    return {f"{PREFIX}{each.name.upper()}": each for each in fields(Settings)}


@cache
def settings() -> Settings:
    """This process's settings, read from the environment at the first call."""
    return Settings.from_environ(os.environ)
