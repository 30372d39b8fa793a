"""Who may do what: API keys, their roles and their rates, and requests that another site's page is behind.

Looked at before anything of a request's body. Everything under /v1 needs a key, also on this machine: a proxy or a
tunnel that adds no header cannot be told from a program here. `faceapp up` makes an admin's key at each start and hands
it to the page and the commands (FACEAPP_LOCAL_KEY). `POST /` needs none from this machine (celery_sqs.door says what
that is); `FACEAPP_WEB_AUTH` can open it to programs anywhere (`classic`), or to nobody (`always`).

Browsers send no header of ours by themselves and this service sets no cookies, so no other page can use somebody's key.
What needs none is refused when a browser says that another site's page asks.
"""

from __future__ import annotations

import math
import re
import threading
import time
from functools import cache

import flask

from celery_sqs.door import Reason, is_other_page, reason_against
from faceapp.config import Settings
from faceapp.errors import CrossSite, KeyInvalid, RateLimited, RoleMissing, Unauthorized
from faceapp.http.problems import Problem
from faceapp.observability import logs
from faceapp.security.key_text import ROLES as KEY_ROLES
from faceapp.security.keys import ADMIN, ENROL, RECOGNISE, Key, Keyring, owned
from faceapp.storage import Storage

CLASSIC = "POST /"
ROLES = {
    CLASSIC: RECOGNISE,
    "POST /v1/recognitions": RECOGNISE,
    "GET /v1/recognitions/{request_id}": RECOGNISE,
    "DELETE /v1/recognitions/{request_id}": RECOGNISE,
    "GET /v1/scaler": RECOGNISE,
    "GET /v1/people": ENROL,
    "GET /v1/people/{name}": ENROL,
    "PUT /v1/people/{name}": ENROL,
    "DELETE /v1/people/{name}": ADMIN,
    "GET /v1/people/{name}/photos/{photo_id}": ENROL,
    "DELETE /v1/people/{name}/photos/{photo_id}": ADMIN,
}
"""The least role that an operation needs. One that is neither here nor public needs an admin's."""
PUBLIC = {
    "GET /",
    "GET /static/{filename}",
    "GET /docs",
    "GET /docs/{asset}",
    "GET /openapi.json",
    "GET /healthz",
    "GET /readyz",
    # It has a rule of its own (FACEAPP_WEB_METRICS).
    "GET /metrics",
}
CHALLENGE = 'Bearer realm="faceapp"'
MINUTE_S = 60.0


class Rates:
    """How often each key was used: a bucket of tokens for each, which holds a minute's worth. Any thread may ask.

    `per_minute` is what one process lets through; 0: everything.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, key_id: str, now_s: float) -> float:
        """Take a token at `now_s` (of time.monotonic): 0, or the seconds until there is one."""
        if not self._per_minute:
            return 0.0
        most, per_s = max(1.0, self._per_minute), self._per_minute / MINUTE_S
        with self._lock:
            tokens, at_s = self._buckets.get(key_id, (most, now_s))
            tokens = min(most, tokens + (now_s - at_s) * per_s)
            taken = tokens >= 1
            self._buckets.pop(key_id, None)
            self._buckets[key_id] = (tokens - taken, now_s)
            self._drop_full(now_s, full_s=most / per_s)
        return 0.0 if taken else (1 - tokens) / per_s

    def _drop_full(self, now_s: float, *, full_s: float) -> None:
        """Forget buckets that were not used for `full_s`, in which they fill up: they are as good as new ones."""
        # The least recently used one is the first; the last was used just now.
        while now_s - self._buckets[oldest := next(iter(self._buckets))][1] > full_s:
            del self._buckets[oldest]


class Auth:
    """The door of one app."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self.settings = settings
        self.keyring = Keyring(storage)
        self.rates = Rates(settings.web_rate_per_minute / settings.web_processes)

    def check(self, request: flask.Request) -> None:
        """Let the request pass, or raise.

        Raises Unauthorized, KeyInvalid, RoleMissing, CrossSite or RateLimited (as Problem, with the headers that belong
        to it), and StorageUnavailable or KeysUnreadable when a key is given and nobody can tell whose it is.
        """
        flask.g.role = RECOGNISE
        operation = operation_of(request)
        if request.method == "OPTIONS" and is_other_page(request.headers, host=request.headers.get("Host", "")):
            raise CrossSite
        if operation is None or operation in PUBLIC:
            return
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (own := owned(text.strip(), self.settings.local_key)):
            # The machine's own, which no rate holds up.
            logs.bind(key=own.id)
            flask.g.role = own.role
        elif scheme.lower() == "bearer":
            self._check_key(self._known(text.strip()), ROLES.get(operation, ADMIN))
        elif not self._needs_none(request, operation):
            raise Problem(Unauthorized(), members={}, headers={"WWW-Authenticate": CHALLENGE})

    def _known(self, text: str) -> Key:
        key = self.keyring.find(text)
        if key is None:
            raise Problem(KeyInvalid(), members={}, headers={"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'})
        return key

    def _check_key(self, key: Key, role: str) -> None:
        logs.bind(key=key.id)
        flask.g.role = key.role
        if not key.may(role):
            raise Problem(
                RoleMissing(f"This API key has the role {key.role!r}; this needs {role!r}."),
                members={"role": role},
                headers={"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{role}"'},
            )
        if wait_s := self.rates.wait_s(key.id, time.monotonic()):
            raise Problem(RateLimited(), members={}, headers={"Retry-After": str(math.ceil(wait_s))})

    def _needs_none(self, request: flask.Request, operation: str) -> bool:
        """Whether the request may pass without a key. Raises CrossSite for one that another site's page is behind."""
        if self.settings.web_auth == "always":
            return False
        reason = reason_of(request)
        if reason is Reason.PAGE:
            raise CrossSite
        if operation != CLASSIC:
            return False
        return reason is None or (
            self.settings.web_auth == "classic" and not is_other_page(request.headers, host="", pages=False)
        )


def may(role: str) -> bool:
    """Whether who asks has a key of this role, or of one that may more. Who needs no key has RECOGNISE."""
    return KEY_ROLES.index(flask.g.role) >= KEY_ROLES.index(role)


def register(app: flask.Flask, storage: Storage) -> None:
    """Check every request of `app`; to be called after the trail's and the problems' `register`, before others'."""
    app.extensions["faceapp-auth"] = auth = Auth(app.config["FACEAPP"], storage)
    app.before_request(lambda: auth.check(flask.request))


def reason_of(request: flask.Request, **options: bool) -> Reason | None:
    """Why a request is not from here, None when nothing says so; `options` as in celery_sqs.door.reason_against."""
    version = request.environ.get("SERVER_PROTOCOL", "")
    return reason_against(peer=request.remote_addr, version=version, headers=request.headers, **options)


def operation_of(request: flask.Request) -> str | None:
    """`GET /v1/people/{name}`, as the API's description has it; None for what is answered 404 or 405, or is OPTIONS."""
    # A browser that asks whether another site's page may (a preflight, which never has a key) is told nothing.
    if request.url_rule is None or request.method == "OPTIONS":
        return None
    return f"{'GET' if request.method == 'HEAD' else request.method} {path_of(request.url_rule.rule)}"


@cache
def path_of(rule: str) -> str:
    """Flask's `/v1/people/<path:name>` as `/v1/people/{name}`."""
    return re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule)
