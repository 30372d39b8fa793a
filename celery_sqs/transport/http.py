"""kombu's asynchronous calls to SQS, which come to an end, and of which a refusal is none."""

from __future__ import annotations

import logging
import math
import os
import time
from typing import Any

import pycurl
from kombu.asynchronous.aws.connection import AsyncHTTPSConnection
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from vine import promise

from celery_sqs.aws import DEFAULTS
from celery_sqs.clocks import sent_s

logger = logging.getLogger(__name__)

CLOCKS_AGREE_S = 2.0
CLOCK = "celery-sqs:clock"
"""In a received message: add it to this machine's time.monotonic() for the time by SQS, which the message's times are
by. A worker's own clock may be minutes away."""


def _clock_s(date: str | None) -> float:
    """What time it is by SQS, which answered at `date`, less this machine's monotonic clock (s).

    The answer says whole seconds, so a clock that agrees with it is believed.
    """
    own_s = time.time()
    sqs_s = sent_s(date)
    return (own_s if abs(sqs_s - own_s) <= CLOCKS_AGREE_S else sqs_s) - time.monotonic()


class HTTPConnection(AsyncHTTPSConnection):
    """kombu's, whose requests come to an end, and trust the authorities that boto3 does."""

    def getrequest(self) -> Any:
        # kombu tells curl nothing of its time limit (celery/kombu#2488): a poll whose connection went dead would be the
        # queue's last.
        request = super().getrequest()
        request.on_prepare = promise(self._prepare)
        # As bytes: pycurl takes text for ASCII, so that no poll would work where the folder of the installation has any
        # other letter in its name. And the authorities that boto3 would trust, since the two must not differ.
        request.ca_certs = os.fsencode(os.environ.get("AWS_CA_BUNDLE") or request.ca_certs)
        return request

    def _prepare(self, curl: Any) -> None:
        curl.setopt(pycurl.CONNECTTIMEOUT, DEFAULTS["connect_timeout"])
        curl.setopt(pycurl.TIMEOUT, math.ceil(self.timeout))


class AsyncConnection(AsyncSQSConnection):
    """kombu's asynchronous SQS calls, with time for the longest long poll and no way out for a refusal."""

    def get_http_connection(self) -> AsyncHTTPSConnection:
        # kombu allows every request 20 s, just when the longest long poll answers.
        return HTTPConnection(timeout=DEFAULTS["read_timeout"], http_client=self._httpclient)

    def _on_list_ready(self, parent: Any, markers: Any, operation: str, response: Any) -> Any:
        # kombu raises on 4xx, which throttling and a token that has just run out are, into the event loop: that logs
        # it, or ends by it, and the queue is never polled again (celery/kombu#931, which was mended for 5xx only).
        try:
            answer = super()._on_list_ready(parent, markers, operation, response)
        except Exception as error:
            logger.warning("SQS refused %s: %s", operation, error)
            return []
        messages = answer.get("Messages", ()) if answer else ()
        for each in messages:
            # kombu's curl client puts an answer's headers to the request's.
            each[CLOCK] = _clock_s(response.response.request.headers.get("Date"))
        return answer
