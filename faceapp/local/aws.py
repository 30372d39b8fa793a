"""The embedded AWS: moto's server on the loopback, as a process of its own (`python -m faceapp.local.aws --port N`).

The server is that of the framework's own tests (celery_sqs.testing.server).

It answers only who has its start's access key (aws_guard.py), which is derived from FACEAPP_LOCAL_KEY. Without one it
makes a key and prints it.

It keeps everything in memory. `faceapp.local.state` keeps the gallery for the next start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from typing import Any

from celery_sqs.testing import server
from faceapp.config import settings
from faceapp.errors import ConfigError
from faceapp.security.credential import aws_keys, fresh


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Says `listening on http://127.0.0.1:PORT` as soon as it does."""
    parser = argparse.ArgumentParser(prog="python -m faceapp.local.aws", description="AWS, embedded, on 127.0.0.1")
    parser.add_argument("--port", type=int, default=4566, help="0 takes a free one (default: %(default)s)")
    port = parser.parse_args(arguments).port
    try:
        given = settings().local_key
        keys = aws_keys(given) if given else fresh()
        told = "" if given else "".join(f"\nexport {name}={value}" for name, value in keys.items())
        serve(port=port, key_ids=[keys["AWS_ACCESS_KEY_ID"]], told=told)
    except ConfigError as error:
        sys.exit(error.detail)
    except OSError as error:
        sys.exit(f"The embedded AWS cannot listen on port {port}: {error.strerror or error}")


def serve(*, port: int, key_ids: Collection[str], told: str = "") -> None:
    """Serve those who name one of `key_ids`; `told` is said besides, once it listens."""

    def guarded() -> Any:
        from faceapp.local.aws_guard import Guard, issued_by_sts
        from faceapp.local.calls import CountCalls

        return Guard(CountCalls(make_app()), key_ids, is_issued=issued_by_sts)

    server.serve(guarded, port=port, told=told)


def make_app() -> Any:
    """moto's WSGI application, with the services that faceapp's stack uses, and its CloudFormation mended."""
    from moto.moto_server.werkzeug_app import create_backend_app

    from celery_sqs.testing import fast_moto
    from faceapp.local import change_sets, cloudformation
    from faceapp.local.aws_guard import Services

    cloudformation.mend()
    change_sets.mend()
    return fast_moto.make_app(Services(create_backend_app))


if __name__ == "__main__":
    main()
