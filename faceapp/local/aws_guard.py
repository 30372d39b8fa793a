"""Who may use the embedded AWS: programs of this machine that know the start's access key. A WSGI middleware.

Everything that the service keeps is behind this port, and a page in a browser here reaches it. So besides the door's
rule (celery_sqs.door) a request must name the access key's id, which is random for each start, and a browser gets
nothing at all. The signature itself is not computed anew: who knows the id knows the secret, too, and it would cost
each call.

Which service a request is for is moto's to find out, in more than one way; `Services` is asked with what it found.
"""

from __future__ import annotations

import hmac
import html
import json
import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from celery_sqs.door import reason_against

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SERVICES = frozenset(
    [
        "autoscaling",
        "cloudformation",
        "cloudwatch",
        "ec2",
        "elb",
        "elbv2",
        "iam",
        "logs",
        "s3",
        "sns",
        "sqs",
        "ssm",
        "sts",
    ]
)
"""What the stacks and their commands use, by moto's names. Of the others some start containers (Batch, Lambda)."""
RESOURCES = frozenset(
    {"AutoScaling", "CloudWatch", "EC2", "ElasticLoadBalancingV2", "IAM", "Logs", "S3", "SNS", "SQS", "SSM"}
)
"""What a CloudFormation template may make: `AWS::<one of these>::...`."""

SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/,\s]+)/\d{8}/[a-z0-9-]+/[a-z0-9-]+/aws4_request,.*", re.DOTALL)
BEARER = re.compile(r"Bearer (\S+)")
"""For what is not AWS's: the counter of calls."""
KEPT_BACK = ("access-control-", "content-security-policy", "x-content-type-options")
HEADERS = [("Content-Security-Policy", "sandbox; default-src 'none'"), ("X-Content-Type-Options", "nosniff")]
"""An object opened in a browser runs nothing, whatever it is."""

NOT_FROM_HERE = "The embedded AWS answers programs of this machine only. {reason}"
NO_PAGES = "The embedded AWS answers no browsers."
UNKNOWN = (
    "The embedded AWS answers only who has the access key of its start: 'faceapp up' prints where it is, and faceapp's "
    "commands find it by themselves."
)


class Guard:
    """Lets through to `app` what names one of `key_ids`, and comes from a program of this machine.

    `is_issued` says whether an access key is one that was handed out here: to who named one of `key_ids` before.
    """

    def __init__(
        self, app: WSGIApplication, key_ids: Collection[str], *, is_issued: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._app, self._key_ids, self._is_issued = app, [each.encode() for each in key_ids], is_issued

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [each for each in headers if not each[0].lower().startswith(KEPT_BACK)]
            return start_response(status, kept + HEADERS, *rest)

        if sentence := self.refusal(environ):
            return refuse(environ, answer, sentence)
        return self._app(environ, answer)

    def refusal(self, environ: WSGIEnvironment) -> str:
        """Why a request may not pass, as a sentence; empty for one that may."""
        headers = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name.startswith("HTTP_")]
        version = environ["SERVER_PROTOCOL"]
        reason = reason_against(peer=environ.get("REMOTE_ADDR"), version=version, headers=headers, pages=False)
        if reason:
            return NOT_FROM_HERE.format(reason=reason.value)
        if environ["REQUEST_METHOD"] == "OPTIONS" or any(name.startswith(("SEC-", "ORIGIN")) for name, _ in headers):
            return NO_PAGES
        key_id = key_id_of(environ)
        named = key_id.encode(errors="replace")
        # All of them, so that the time tells nothing.
        known = sum([hmac.compare_digest(named, each) for each in self._key_ids]) or self._is_issued(key_id)
        return "" if known else UNKNOWN


def issued_by_sts(key_id: str) -> bool:
    """Whether the embedded STS made this access key, for somebody who took a role."""
    from moto.sts.models import sts_backends

    backends = (each for account in sts_backends.values() for each in account.values())
    return any(each.get_assumed_role_from_access_key(key_id) for each in backends)


def key_id_of(environ: WSGIEnvironment) -> str:
    """The id of the access key that a request names: in its signature, in a presigned address, or alone; else empty."""
    authorization: str = environ.get("HTTP_AUTHORIZATION", "")
    if authorization:
        found = SIGNED.fullmatch(authorization) or BEARER.fullmatch(authorization)
        return found[1] if found else ""
    query: dict[str, list[str]] = parse_qs(environ.get("QUERY_STRING", ""))
    for name, end in (("X-Amz-Credential", "/"), ("AWSAccessKeyId", None)):
        if len(query.get(name, ())) == 1:
            return query[name][0].partition(end)[0] if end else query[name][0]
    return ""


class Services:
    """Makes moto's applications: of the services in SERVICES its own, of any other one that refuses."""

    def __init__(self, create: Callable[[Any], Any]) -> None:
        self._create = create

    def __call__(self, service: str) -> Any:
        if service in SERVICES:
            return self._create(service)
        sentence = f"The embedded AWS has no {service}: it has what faceapp's stack uses."
        return lambda environ, start_response: refuse(environ, start_response, sentence)


def refuse(environ: WSGIEnvironment, start_response: StartResponse, sentence: str) -> Iterable[bytes]:
    """403, in the form in which clients of AWS find the sentence."""
    kind = environ.get("CONTENT_TYPE") or ""
    if kind.startswith("application/x-amz-json"):
        body = json.dumps({"__type": "AccessDenied", "message": sentence})
    else:
        body = f"<Error><Code>AccessDenied</Code><Message>{html.escape(sentence, quote=False)}</Message></Error>"
        if kind.startswith("application/x-www-form-urlencoded"):
            body, kind = f"<ErrorResponse>{body}</ErrorResponse>", "text/xml"
        else:
            kind = "application/xml"
    data = body.encode()
    start_response("403 Forbidden", [("Content-Type", kind), ("Content-Length", str(len(data)))])
    return [data]
