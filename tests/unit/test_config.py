"""Settings from the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest

from faceapp.config import Settings, strange
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
        ("FACEAPP_PREFIX", "last-", "small letters, digits and hyphens"),
        ("FACEAPP_PREFIX", "faceapp-celeryev-x", "no -celeryev or -resp-queue"),
        ("FACEAPP_PREFIX", "faceapp-resp-queue", "no -celeryev or -resp-queue"),
        ("FACEAPP_ACCOUNT", "1234", "12 digits"),
        ("FACEAPP_STACK", "1225754101", "beginning with a letter"),
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


KUBERNETES = {
    "FACEAPP_SERVICE_HOST": "10.0.0.1",
    "FACEAPP_SERVICE_PORT": "8000",
    "FACEAPP_PORT": "tcp://10.0.0.1:8000",
    "FACEAPP_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "FACEAPP_PORT_8000_TCP_PROTO": "tcp",
    "FACEAPP_WEB_SERVICE_HOST": "10.0.0.2",
    "FACEAPP_WEB_PORT": "tcp://10.0.0.2:8000",
}
"""What it sets in every container for the Services faceapp and faceapp-web."""


def test_what_kubernetes_sets_is_passed_over() -> None:
    """R14"""
    assert Settings.from_environ({**KUBERNETES, "FACEAPP_PREFIX": "mine"}) == Settings(prefix="mine")
    assert strange(KUBERNETES).keys() == KUBERNETES.keys()


def test_a_newer_versions_setting_is_passed_over_and_a_mistake_is_named() -> None:
    """C11: an upgrade can be taken back without changing the environment."""
    environ = {"FACEAPP_WEB_PROT": "8001", "FACEAPP_COMES_LATER": "x", "FACEAPP_EMPTY": "", "WEB_PORT": "x"}
    assert Settings.from_environ(environ) == Settings()
    assert strange(environ) == {
        "FACEAPP_WEB_PROT": "FACEAPP_WEB_PROT is not a setting of faceapp (did you mean FACEAPP_WEB_PORT?)",
        "FACEAPP_COMES_LATER": "FACEAPP_COMES_LATER is not a setting of faceapp",
    }
    with pytest.raises(ConfigError, match="FACEAPP_WEB_PORT='tcp' cannot be used"):
        Settings.from_environ({**environ, "FACEAPP_WEB_PORT": "tcp"})


def faceapp(*command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **KUBERNETES, "FACEAPP_COMES_LATER": "x", "FACEAPP_LOG_FORMAT": "json"}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=240)


def test_a_command_says_what_it_passes_over() -> None:
    """R14, C11"""
    done = faceapp("-m", "faceapp", "settings")
    assert done.returncode == 0, done.stderr
    assert "FACEAPP_WEB_PORT=8000\n" in done.stdout
    assert "Warning: FACEAPP_COMES_LATER is not a setting of faceapp: it is passed over." in done.stderr.splitlines()
    assert len(done.stderr.splitlines()) == len(KUBERNETES) + 1


def test_a_service_logs_what_it_passes_over_once_and_in_its_format() -> None:
    """R14, C11"""
    twice = (
        "from faceapp import config; from faceapp.observability import logs; "
        "[logs.configure(config.settings(), service='x') for _ in range(2)]"
    )
    done = faceapp("-c", twice)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["level"] for line in told} == {"WARNING"}
    assert {line["message"].partition(" ")[0].partition("=")[0] for line in told} == {
        *KUBERNETES,
        "FACEAPP_COMES_LATER",
    }
    assert len(told) == len(KUBERNETES) + 1


@pytest.mark.parametrize("each", fields(Settings), ids=lambda each: each.name)
def test_every_default_is_one_that_the_variable_takes(each: object) -> None:
    name: str = each.name  # type: ignore[attr-defined]
    default = getattr(Settings(), name)
    if default == "":
        return
    assert getattr(Settings.from_environ({f"FACEAPP_{name.upper()}": str(default)}), name) == default


@pytest.mark.parametrize(
    ("environ", "stack"),
    [
        ({}, "faceapp"),
        ({"FACEAPP_PREFIX": "mine"}, "mine"),
        ({"FACEAPP_PREFIX": "1225754101"}, "faceapp-1225754101"),
        ({"FACEAPP_PREFIX": "1225754101", "FACEAPP_STACK": "Course"}, "Course"),
    ],
)
def test_a_prefix_may_begin_with_a_digit_and_the_stacks_name_does_not(environ: dict[str, str], stack: str) -> None:
    """G2: a student's ID of ten digits was refused."""
    assert Settings.from_environ(environ).stack_name == stack
