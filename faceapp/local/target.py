"""Which AWS a command of the operator's asks: a real account, or the one that `faceapp up` has embedded here.

It never guesses between the two: where both could be meant, it is an error that names the options.
"""

from __future__ import annotations

import json
import os
import urllib.request
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from botocore.exceptions import BotoCoreError

from faceapp.config import Settings, aws
from faceapp.errors import ConfigError, LocalError
from faceapp.local.calls import PATH
from faceapp.local.up import endpoint, environment
from faceapp.security import credential

TIMEOUT_S = 2.0

Wanted = Literal["local", "aws"] | None


def choose(settings: Settings, wanted: Wanted) -> str:
    """Point this process's AWS variables at the AWS that is meant, and say in a few words which it is.

    `wanted` None takes AWS_ENDPOINT_URL's, and without it whichever there is: the embedded AWS or the account whose
    credentials boto3 finds. Raises ConfigError when that is both or neither, LocalError when the embedded AWS is wanted
    and does not answer.
    """
    own_endpoint = os.environ.get("AWS_ENDPOINT_URL")
    settings = replace(settings, local_key=credential.local_key_for(endpoint(settings), settings))
    if wanted != "local" and own_endpoint:
        return f"the AWS at {own_endpoint} (AWS_ENDPOINT_URL)"
    embedded = wanted != "aws" and _embedded_answers(settings)
    if wanted == "local" and not embedded:
        raise LocalError(
            f"No embedded AWS of yours answers at {endpoint(settings)}: is 'faceapp up' running here (and are "
            "FACEAPP_AWS_PORT and the user those that it was started with)?"
        )
    account = "" if wanted == "local" else _account(look_further=not embedded)
    if embedded and account:
        raise ConfigError(
            f"'faceapp up' is running here, and there are credentials for {account}: say which is meant with --local "
            "or --aws."
        )
    if embedded:
        variables = environment(settings)
        os.environ.clear()
        os.environ.update(variables)
        return f"the embedded AWS of 'faceapp up' ({endpoint(settings)})"
    if not account:
        raise ConfigError(
            f"There is no AWS to ask: no 'faceapp up' answers at {endpoint(settings)}, and there are no credentials "
            "(AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) for a real one."
        )
    return account


def _embedded_answers(settings: Settings) -> bool:
    """Whether what listens on the port is ours: only the embedded AWS knows its start's credential and counts calls."""
    access = credential.aws_keys(settings.local_key)["AWS_ACCESS_KEY_ID"]
    request = urllib.request.Request(f"{endpoint(settings)}{PATH}", headers={"Authorization": f"Bearer {access}"})
    if not settings.local_key:
        return False
    try:
        # A proxy of the environment's would look for the loopback somewhere else.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return "calls" in json.load(answer)
    except (OSError, ValueError, TypeError):
        return False


def _account(*, look_further: bool) -> str:
    """The account that boto3 would ask; empty where it finds no credentials. `look_further`: on EC2's metadata too."""
    before = os.environ.get("AWS_EC2_METADATA_DISABLED")
    if not look_further:
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    try:
        session = aws.session()
        credentials = session.get_credentials()
    except BotoCoreError as error:
        raise ConfigError(f"The AWS credentials cannot be used: {error}") from error
    finally:
        if not look_further:
            del os.environ["AWS_EC2_METADATA_DISABLED"]
            if before is not None:
                os.environ["AWS_EC2_METADATA_DISABLED"] = before
    if credentials is None:
        return ""
    profile = f", profile {session.profile_name}" if credentials.method == "shared-credentials-file" else ""
    # Which account is meant can be asked without a region, too; a call of it then says that there is none.
    with suppress(ConfigError):
        profile = f"{profile}, region {aws.region()}"
    return f"AWS (credentials: {credentials.method}{profile})"
