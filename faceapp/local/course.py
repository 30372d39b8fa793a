"""`faceapp up --course ID`: the settings that a course's grader expects, at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from faceapp.config import Settings
from faceapp.errors import ConfigError

DEFAULTS: Mapping[str, Any] = {
    # One instance for each outstanding message, up to 15, and none seconds after the last.
    "scaler_policy": "depth",
    "scaler_max_instances": 15,
    # The grader has no API key, and posts to / only.
    "web_auth": "classic",
}


def for_course(settings: Settings, course_id: str, environ: Mapping[str, str]) -> Settings:
    """The settings with the ID as the prefix and the course's defaults, but for what `environ` sets itself.

    Raises ConfigError for what is no ID, and when FACEAPP_PREFIX names another prefix.
    """
    if not re.fullmatch(r"[0-9]{10}", course_id):
        raise ConfigError(f"--course={course_id} cannot be used: it takes a student ID of ten digits")
    if environ.get("FACEAPP_PREFIX") not in (None, "", course_id):
        raise ConfigError(
            f"--course={course_id} and FACEAPP_PREFIX={settings.prefix} name two prefixes: leave out one of them"
        )
    course = {name: value for name, value in DEFAULTS.items() if not environ.get(f"FACEAPP_{name.upper()}")}
    return replace(settings, prefix=course_id, **course)
