"""Settings from the environment."""

from __future__ import annotations

from dataclasses import fields

import pytest

from faceapp.config import Settings
from faceapp.errors import ConfigError


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environ({}) == Settings()


def test_values_are_parsed_and_an_empty_one_is_the_default() -> None:
    environ = {"FACEAPP_PREFIX": "mine", "FACEAPP_WEB_PORT": "9000", "FACEAPP_THRESHOLD": "", "HOME": "/"}
    assert Settings.from_environ(environ) == Settings(prefix="mine", web_port=9000)


@pytest.mark.parametrize(
    ("variable", "value", "takes"),
    [
        ("FACEAPP_WEB_PORT", "eighty", "a whole number, 1 to 65535"),
        ("FACEAPP_WEB_PORT", "0", "a whole number, 1 to 65535"),
        ("FACEAPP_THRESHOLD", "-1", "a number, 0 to 4"),
        ("FACEAPP_THRESHOLD", "nan", "a number, 0 to 4"),
        ("FACEAPP_EMBEDDER", "arcface", "dlib or facenet"),
        ("FACEAPP_DEVICE", "cuda:x", "auto, cpu or cuda:N"),
        ("FACEAPP_PREFIX", "-first", "small letters, digits and hyphens"),
        ("FACEAPP_PREFIX", "My_App", "small letters, digits and hyphens"),
        ("FACEAPP_PREFIX", "a" * 33, "small letters, digits and hyphens"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_would_fit(variable: str, value: str, takes: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environ({variable: value})
    assert variable in caught.value.detail
    assert value in caught.value.detail
    assert takes in caught.value.detail


def test_a_variable_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="FACEAPP_WEB_PROT is not a setting"):
        Settings.from_environ({"FACEAPP_WEB_PROT": "8000"})


@pytest.mark.parametrize("each", fields(Settings), ids=lambda each: each.name)
def test_every_default_is_one_that_the_variable_takes(each: object) -> None:
    name: str = each.name  # type: ignore[attr-defined]
    default = getattr(Settings(), name)
    if default == "":
        return
    assert getattr(Settings.from_environ({f"FACEAPP_{name.upper()}": str(default)}), name) == default
