"""What was asked for by options, as the template's parameters; what was not asked for stays as the stack has it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from faceapp.config import Settings, strange
from faceapp.deploy import template
from faceapp.errors import ConfigError
from faceapp.stack.data_tier import VISIBILITY_MARGIN_S

PLAIN = "PlainSettings"
PARAMETERS_OF_SETTINGS = {
    "FACEAPP_TASK_TIME_LIMIT_S": "TaskTimeLimit",
    "FACEAPP_QUEUE_WAIT_S": "LongPoll",
    "FACEAPP_WORKER_IMAGE": "WorkerImage",
    "FACEAPP_WORKER_TYPE": "WorkerType",
    "FACEAPP_SCALER_TYPES": "WorkerTypes",
    "FACEAPP_SCALER_SUBNETS": "Subnets",
    "FACEAPP_SCALER_MAX_INSTANCES": "MaxInstances",
    "FACEAPP_SCALER_POLICY": "Policy",
    "FACEAPP_SCALER_MODE": "Mode",
    "FACEAPP_SCALER_DAILY_INSTANCE_S": "DailyInstanceSeconds",
}
"""Settings that have a parameter of their own."""
SETTINGS_OF_PARAMETERS = {parameter: setting for setting, parameter in PARAMETERS_OF_SETTINGS.items()}
NOT_SET_HERE = {
    "FACEAPP_PREFIX": "the prefix is given by --prefix",
    "FACEAPP_STACK": "the stack's name is given by --stack",
    "FACEAPP_ACCOUNT": "it is the account of the credentials",
    "FACEAPP_WEB_HOST": "it follows from --port",
    "FACEAPP_WEB_PORT": "it follows from --port",
    "FACEAPP_AWS_PORT": "it is for 'faceapp up' only",
    "FACEAPP_API_KEY": "it is a secret of whoever asks the service",
    "FACEAPP_LOCAL_KEY": "it is for 'faceapp up' only",
    "FACEAPP_FLOWER_BASIC_AUTH": "whoever may look at the stack could read the password",
}
VALUE = re.compile(r"[^\s'\"\\$]*")
"""What a line of systemd's environment files takes without quotes."""


def wanted(options: Mapping[str, str | None], settings: Sequence[str], current: Mapping[str, str]) -> dict[str, str]:
    """The parameters that were asked for: `options` by parameter (None: not given) and `settings` as FACEAPP_X=value.

    `current` are the stack's parameters, empty when there is none yet. Raises ConfigError for whatever faceapp would
    not start with, before anything is sent.
    """
    found = {name: value for name, value in options.items() if value is not None}
    known = template.parameters()
    if "Prefix" in found:
        raise ConfigError(f"The parameter Prefix is not set here: {NOT_SET_HERE['FACEAPP_PREFIX']}.")
    plain = _plain(current.get(PLAIN, ""))
    for name, value in _pairs(settings):
        if name in NOT_SET_HERE:
            raise ConfigError(f"{name} is not set here: {NOT_SET_HERE[name]}.")
        if parameter := PARAMETERS_OF_SETTINGS.get(name):
            found.setdefault(parameter, value)
        elif value:
            plain[name] = value
        else:
            plain.pop(name, None)
    after = {**known, **current, **found}
    _check(plain, after)
    if settings:
        found[PLAIN] = " ".join(f"{name}={value}" for name, value in sorted(plain.items()))
    for name, value in found.items():
        template.check(name, value)
    if "TaskTimeLimit" in found and "VisibilityTimeout" not in found:
        found["VisibilityTimeout"] = str(int(found["TaskTimeLimit"]) + VISIBILITY_MARGIN_S)
    return found


def _pairs(settings: Iterable[str]) -> Iterable[tuple[str, str]]:
    for each in settings:
        name, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"--set {each} is no setting: it takes FACEAPP_NAME=value")
        # What is typed here is meant; what an instance finds in its environment may be anybody's.
        if unknown := strange({name: value}).get(name):
            raise ConfigError(f"{unknown}: 'faceapp settings' lists them")
        if not VALUE.fullmatch(value):
            raise ConfigError(f"{name}={value!r} cannot be sent: no spaces, quotes, backslashes or dollar signs")
        yield name, value


def _plain(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (each.partition("=") for each in text.split())}


def _check(plain: Mapping[str, str], parameters: Mapping[str, str]) -> None:
    """The settings as an instance will read them. Raises ConfigError, with the variable's name."""
    environ = {setting: parameters.get(name, "") for name, setting in SETTINGS_OF_PARAMETERS.items()}
    Settings.from_environ({**environ, **plain})


def named(pairs: Iterable[str]) -> dict[str, str]:
    """Parameters that were given as NAME=VALUE. Raises ConfigError."""
    found = {}
    for each in pairs:
        name, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"--parameter {each} is no parameter: it takes NAME=VALUE")
        found[name] = value
    return found
