"""What an EC2 instance does with what it is told about itself. systemd's units run `python -m faceapp.stack.instance`.

`identify` asks the instance metadata service which instance this is, writes that down for the other units and starts
its tier's target. `watch` waits for EC2 to take a spot instance back, and stops the worker then: it drains.

The metadata service speaks HTTP on a link-local address (version 2, with a token for each session, is the only one that
these instances allow); AWS_EC2_METADATA_SERVICE_ENDPOINT names another, as it does for boto3. Standard library only:
each second of this is one of the boot.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

from faceapp.config import settings
from faceapp.errors import DeployError
from faceapp.observability import logs

logger = logging.getLogger(__name__)

ENDPOINT = "http://169.254.169.254"
TIMEOUT_S = 2.0
"""It is answered by the host under the instance, in milliseconds."""
TOKEN_S = 21_600
UP_WITHIN_S = 60.0
"""The service may answer later than the network is up, and the Name is given after the instance was created."""
NOTICE_S = 5.0
"""How often AWS recommends to look for a notice; it comes 120 s before the end."""
AGAIN_S = 0.5
TIERS = ("app", "web")
SAFE = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""What may stand in a host name, and in a file of variables without being quoted."""


class Metadata:
    """The instance metadata service, version 2. Raises DeployError when it does not answer."""

    def __init__(self, endpoint: str = "") -> None:
        self._place = urlsplit(endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
        self._token = ""  # nosec B105 # none yet

    def get(self, path: str) -> str | None:
        """What is under `latest/meta-data/`; None when there is no such thing."""
        status, text = self._get(path)
        if status == 401:  # the token has run out
            self._token = ""  # nosec B105 # none yet
            status, text = self._get(path)
        if status == 404:
            return None
        if status != 200:
            raise DeployError(f"The metadata service answers {path} with status {status}.")
        return text

    def _get(self, path: str) -> tuple[int, str]:
        if not self._token:
            status, text = self._ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)})
            if status != 200:
                raise DeployError(f"The metadata service gives no token (status {status}).")
            self._token = text
        return self._ask("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._place.hostname or "", self._place.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise DeployError(f"The metadata service does not answer: {error}") from error
        finally:
            connection.close()


def identify(metadata: Metadata, *, within_s: float = UP_WITHIN_S) -> dict[str, str]:
    """The variables that the other units start with. Raises DeployError when the instance is none of ours."""
    give_up_s = time.monotonic() + within_s
    tier = _patiently(lambda: metadata.get(f"tags/instance/{quote('faceapp:tier')}"), give_up_s)
    name = _patiently(lambda: metadata.get("tags/instance/Name"), give_up_s)
    if tier is None:
        raise DeployError("This instance has no tag faceapp:tier, or its tags are not allowed in its metadata.")
    if tier not in TIERS:
        raise DeployError(f"The tag faceapp:tier is {tier!r}: it is {' or '.join(TIERS)}.")
    id, region = metadata.get("instance-id") or "", metadata.get("placement/region") or ""
    if name is None:
        logger.warning("this instance was given no Name: it goes by its id")
    found = {
        "INSTANCE_ID": id,
        "INSTANCE_NAME": name or id,
        "INSTANCE_TIER": tier,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "PUBLIC_NAME": metadata.get("public-hostname") or "",
        "PUBLIC_ADDRESS": metadata.get("public-ipv4") or "",
        "PRIVATE_ADDRESS": metadata.get("local-ipv4") or "",
    }
    for variable, value in found.items():
        if value and not SAFE.fullmatch(value):
            raise DeployError(f"{variable} would be {value!r}: letters, digits, dots, _ and - can be used.")
    return found


def _patiently(ask: Callable[[], str | None], give_up_s: float) -> str | None:
    """Ask until there is an answer; None (or the DeployError) when there is none in time."""
    while True:
        failure = None
        try:
            if answer := ask():
                return answer
        except DeployError as error:
            failure = error
        if time.monotonic() + AGAIN_S > give_up_s:
            if failure:
                raise failure
            return None
        time.sleep(AGAIN_S)


def write(variables: dict[str, str], file: Path) -> None:
    """Write a file of variables for systemd: all of it or nothing."""
    new = file.with_suffix(".new")
    new.write_text("".join(f"{name}={value}\n" for name, value in variables.items()), "ascii")
    new.replace(file)


def watch(metadata: Metadata, unit: str, *, every_s: float = NOTICE_S) -> None:
    """Return when EC2 has given notice and the unit was told to stop; at once when this is no spot instance."""
    if _patiently(lambda: metadata.get("instance-life-cycle"), time.monotonic() + UP_WITHIN_S) != "spot":
        logger.info("this is no spot instance: EC2 will not take it back")
        return
    advised, silent = False, False
    while True:
        try:
            if notice := metadata.get("spot/instance-action"):
                break
            # It may come to nothing, so it is no reason to leave: what the worker holds is safe in the queue anyway.
            if not advised and metadata.get("events/recommendations/rebalance"):
                advised = True
                logger.warning("EC2 may soon take this instance back")
            silent = False
        except DeployError as error:
            if not silent:
                logger.warning("%s", error.detail)
            silent = True
        time.sleep(every_s)
    logger.warning("EC2 takes this instance back (%s): %s is stopped", _said(notice), unit)
    systemctl("stop", unit)


def _said(notice: str) -> str:
    try:
        said = json.loads(notice)
        return f"{said['action']} at {said['time']}"
    except (KeyError, TypeError, ValueError):
        return notice[:200]


def systemctl(verb: str, unit: str) -> None:
    """Have systemd begin it. Raises DeployError when it refuses."""
    # Not waited for: a target's units come after the one that runs this, and a drain may outlast it.
    command = ["systemctl", verb, "--no-block", unit]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        raise DeployError(f"'{' '.join(command)}' failed: {str(said).strip()}") from error


def main(arguments: list[str] | None = None) -> None:
    """Ends the process with status 1 and a line in the log when it comes to nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m faceapp.stack.instance", description="What an EC2 instance is, and does"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    identifying = commands.add_parser("identify", help="write down which instance this is, and start its tier")
    identifying.add_argument("--file", type=Path, required=True, help="the file of variables")
    watching = commands.add_parser("watch", help="stop a unit when EC2 takes this spot instance back")
    watching.add_argument("--stop", metavar="UNIT", required=True)
    options = parser.parse_args(arguments)
    logs.configure(settings(), service="faceapp-instance")
    try:
        if options.command == "watch":
            watch(Metadata(), options.stop)
            return
        found = identify(Metadata())
        write(found, options.file)
        logger.info(
            "this is %s (%s) of the %s tier", found["INSTANCE_NAME"], found["INSTANCE_ID"], found["INSTANCE_TIER"]
        )
        systemctl("start", f"faceapp-{found['INSTANCE_TIER']}.target")
    except DeployError as error:
        logger.error("%s", error.detail)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
