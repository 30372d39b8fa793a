"""The gate: which messages a worker takes. Ours fit into the request queue's 1,024 bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Any

from faceapp.schema import REQUEST_ID

LONGEST_TASK_S = 3600.0
"""The most that FACEAPP_TASK_TIME_LIMIT_S takes: a message carries its sender's, who may be set otherwise."""
LONGEST_ERASE_S = LONGEST_TASK_S + 60
"""A photo is erased once more when every task that may have it has ended."""
RECOGNIZE, ENROL = "faceapp.recognize", "faceapp.enrol"
FORGET, ERASE = "faceapp.forget", "faceapp.erase"
TASK_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PLAIN_TEXT = ("lang", "argsrepr", "kwargsrepr", "root_id", "parent_id", "shadow", "origin", "request_id", "traceparent")
"""Headers that are a text, or nothing."""
NOTHING = ("eta", "expires", "group", "group_index", "stamped_headers", "stamps", "chord")
"""Headers that no task here has: none is to wait in a worker, or is one of several."""


def refusal(body: str, *, tasks: Container[str]) -> str:
    """Why the message `body` cannot be given to a worker that has `tasks`; empty when it can.

    Celery believes a message: it deletes one that it does not understand, gives a wrong one a process of its pool, and
    may end by one whose headers have other types than its own. Who may write to the queue must not be able to do that.
    """
    try:
        _check(json.loads(body), tasks)
    except RecursionError:
        return "it is nested too deeply"
    except _Refused as error:
        return str(error)
    except ValueError:
        return "it is not JSON"
    return ""


class _Refused(Exception):
    """What is wrong, as a clause whose subject is the message."""


def _check(envelope: Any, tasks: Container[str]) -> None:
    headers = envelope.get("headers") if isinstance(envelope, dict) else None
    task = headers.get("task") if isinstance(headers, dict) else None
    if not isinstance(headers, dict) or not isinstance(task, str):
        raise _Refused("it is no Celery task")
    _need(task in tasks, f"its task {task[:64]!r} is none of ours")
    _check_headers(headers)
    _check_properties(envelope.get("properties"))
    content = envelope.get("content-type"), envelope.get("content-encoding")
    _need(content == ("application/json", "utf-8"), "its content is not JSON in UTF-8")
    _need(isinstance(envelope.get("body"), str), "its arguments are no text")
    try:
        call = json.loads(envelope["body"])
    except ValueError:
        raise _Refused("its arguments are not JSON") from None
    _need(isinstance(call, list) and len(call) == 3, "its body is not arguments, named arguments and options")
    _check_call(task, *call)


def _check_headers(headers: dict[str, Any]) -> None:
    id, limits = headers.get("id"), headers.get("timelimit")
    _need(isinstance(id, str) and TASK_ID.fullmatch(id), "its id is no id")
    for name in PLAIN_TEXT:
        _need(headers.get(name) is None or isinstance(headers[name], str), f"its header {name} is no text")
    for name in NOTHING:
        _need(not headers.get(name), f"it has the header {name}")
    for name in ("retries", "replaced_task_nesting"):
        _need(headers.get(name) is None or (type(headers[name]) is int and headers[name] == 0), f"it has {name}")
    _need(headers.get("ignore_result") in (None, False, True), "its header ignore_result is neither true nor false")
    if limits is not None:
        _need(isinstance(limits, list) and len(limits) == 2, "its time limits are not two")
        fit = [each is None or (type(each) in (int, float) and 0 < each <= LONGEST_TASK_S) for each in limits]
        _need(all(fit), f"its time limits are not within {LONGEST_TASK_S:g} s")


def _check_properties(properties: Any) -> None:
    _need(isinstance(properties, dict), "it has no properties")
    for name in ("reply_to", "correlation_id"):
        _need(properties.get(name) is None or isinstance(properties[name], str), f"its {name} is no text")
    _need(properties.get("body_encoding") in (None, "utf-8"), "its body is encoded")
    _need(isinstance(properties.get("delivery_info"), dict), "its delivery_info is no object")
    _need(type(properties.get("priority", 0)) is int, "its priority is no number")


def _check_call(task: str, arguments: Any, named: Any, options: Any) -> None:
    _need(isinstance(arguments, list) and isinstance(named, dict), "its arguments are no list or object")
    # Celery would publish what they say, under the worker's name.
    _need(options is None or (isinstance(options, dict) and not any(options.values())), "it is to call other tasks")
    if task in (RECOGNIZE, ENROL, FORGET, ERASE):
        _need(arguments and _is_id(arguments[0]) and not named, "its argument is not one request id")
    if task in (RECOGNIZE, ENROL) or (task == ERASE and len(arguments) != 2):
        _need(len(arguments) == 1, "its argument is not one request id")
    if task == ERASE and len(arguments) == 2:
        fits = type(arguments[1]) is int and 0 < arguments[1] <= LONGEST_ERASE_S
        _need(fits, "its arguments are no request id and seconds")
    if task == FORGET and len(arguments) > 1:
        fits = len(arguments) == 3 and type(arguments[1]) is int and arguments[1] in (1, 2)
        _need(fits and (arguments[2] == "" or _is_id(arguments[2])), "its arguments are no order and place")


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and REQUEST_ID.fullmatch(value) is not None


def _need(condition: Any, clause: str) -> None:
    if not condition:
        raise _Refused(clause)
