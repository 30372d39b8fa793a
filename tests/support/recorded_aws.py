"""The embedded AWS with a record of who asked for what: `python -m tests.support.recorded_aws RECORD WHO...`.

The record is a line of JSON for each call.

Who asks is the access key's id, so each service's process has one of its own. Recorded here and not in the clients,
because Celery's workers talk to SQS through a client that boto3 knows nothing of.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from faceapp.local import aws, calls

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Recorder(calls.CountCalls):
    """Counts, as it always does, and writes each call down."""

    record: IO[str]

    def __init__(self, app: WSGIApplication) -> None:
        super().__init__(app)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        credential = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if credential is None:
            return super().__call__(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        service, operation = calls.identify(environ)
        line = {
            "who": credential[1],
            "service": service,
            "operation": operation,
            "path": environ["PATH_INFO"],
            "if_match": environ.get("HTTP_IF_MATCH", ""),
            # Photos stay out.
            "body": body.decode(errors="replace") if service != "s3" or operation == "DeleteObjects" else "",
        }

        def answer(status: str, *rest: Any) -> Any:
            self.record.write(json.dumps({**line, "status": int(status.split()[0])}) + "\n")
            self.record.flush()
            return start_response(status, *rest)

        return super().__call__(environ, answer)


if __name__ == "__main__":
    setattr(calls, "CountCalls", Recorder)  # noqa: B010 - mypy forbids =
    with Path(sys.argv[1]).open("w") as Recorder.record:
        aws.serve(port=0, key_ids=sys.argv[2:])
