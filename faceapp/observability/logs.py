"""Where log lines go and what they look like: one a line on standard error, for people or as JSON.

`bind` gives every further line of a request or a task what it is about (its request id). JSON is the standard library's
formatter and forty lines here: a log library would bring a dependency and leave the same decisions (which fields, which
loggers) to be made.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import Any

from faceapp.config import Settings, strange
from faceapp.security.key_text import FORM

logger = logging.getLogger(__name__)

NARRATORS = (
    "boto3",
    "kombu.transport.SQS",
    # A line for each message received; the worker's own says what matters.
    "celery.worker.strategy",
)
"""They tell of each call that went well: heard only at DEBUG."""

TELLTALES = (
    # Requests with session tokens, answers with people's names.
    "botocore",
    "urllib3",
    # What a photo's header says.
    "PIL",
    # The result of each task, with the names of who is on the photo.
    "celery.app.trace",
)
"""What they tell below WARNING must not be in a log at any level."""

SERVERS = ("gunicorn.error", "tornado.general")
"""They quote requests that they cannot read, with keys and names in them."""
QUOTES = re.compile(r"(Invalid request|Malformed HTTP message|Error handling request)\b")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A request id that a client may choose."""

_context: ContextVar[Mapping[str, str]] = ContextVar("faceapp_log_context", default=MappingProxyType({}))


def configure(settings: Settings, *, service: str = "faceapp") -> None:
    """Set the root logger up, once, for a process of this service; warnings become lines, too."""
    formatter = JsonFormatter(service) if settings.log_format == "json" else HumanFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    quiet = TELLTALES if settings.log_level == "DEBUG" else TELLTALES + NARRATORS
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in SERVERS:
        logging.getLogger(name).addFilter(unquote)
    _tell_strange_variables()


@cache
def _tell_strange_variables() -> None:
    # Once a process: a worker sets its logging up twice.
    for clause in strange(os.environ).values():
        logger.warning("%s: it is passed over", clause)


def unquote(record: logging.LogRecord) -> bool:
    """A logging filter: of a server's line about a request that it cannot read, only the error's kind stays."""
    if found := QUOTES.match(record.getMessage()):
        error = sys.exc_info()[0]
        record.msg, record.args = f"{found[1]}: {error.__name__ if error else 'unknown'}", ()
    return True


def is_request_id(text: str) -> bool:
    """Whether a client may choose `text` for its request's id. An API key is none: it would be in every line."""
    return REQUEST_ID.fullmatch(text) is not None and FORM.search(text) is None


def without_keys(text: str) -> str:
    """`text` with the secrets taken out of API keys: an address that somebody made up may have one in it."""
    return FORM.sub(r"fa_\1_(secret)", text)


def bind(**fields: str) -> None:
    """Add fields to every further line of this request or task: of this thread or greenlet, until `unbind`."""
    _context.set({**_context.get(), **fields})


def unbind() -> None:
    """The request or the task is over."""
    _context.set(MappingProxyType({}))


def request_id() -> str:
    """The request id that was bound; empty outside of a request."""
    return _context.get().get("request_id", "")


class HumanFormatter(logging.Formatter):
    """A readable line, with the request id at its end unless the message has it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return without_keys(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        line, request = super().formatMessage(record), request_id()
        return f"{line} [{request}]" if request and request not in record.message else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: `time` in UTC, then who says what, then what was bound.

    A line's own fields come from `extra={"fields": {...}}`. Other extras stay out: Celery's hold tasks' results.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_context.get(),
            **getattr(record, "fields", {}),
            "process": record.processName,
            "pid": record.process,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return without_keys(json.dumps(line, default=str))
