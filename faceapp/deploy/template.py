"""The template as CloudFormation takes it, and the parameters that it has."""

from __future__ import annotations

import re
from typing import Any

import yaml

from faceapp import stack
from faceapp.errors import ConfigError, DeployError

MOST_BYTES = 51_200
"""CloudFormation's limit for a template that is sent along (a longer one would have to lie in S3)."""


class _Loader(yaml.SafeLoader):
    """Takes CloudFormation's short forms (!Ref ...) for what stands behind them."""


def _plain(loader: Any, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


_Loader.add_multi_constructor("!", _plain)


def body() -> str:
    """The template's text; without its comments when it is too long with them. Raises DeployError."""
    text = stack.template()
    if len(text.encode()) > MOST_BYTES:
        text = without_comments(text)
    if len(text.encode()) > MOST_BYTES:
        raise DeployError(f"The template has more than {MOST_BYTES} bytes, which is all that CloudFormation takes.")
    return text


def without_comments(text: str) -> str:
    """The YAML without the lines that are comments; those in a block of text (user data) stay."""
    within: set[int] = set()
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.ScalarToken) and token.style in ("|", ">"):
            within.update(range(token.start_mark.line + 1, token.end_mark.line))
    lines = text.splitlines(keepends=True)
    return "".join(line for number, line in enumerate(lines) if number in within or not line.lstrip().startswith("#"))


def parameters() -> dict[str, str]:
    """The template's parameters with their defaults."""
    return {name: str(each["Default"]) for name, each in _declared().items()}


def check(name: str, value: str) -> None:
    """Raises ConfigError when the template does not take this value, or has no such parameter."""
    declared = _declared()
    if name not in declared:
        raise ConfigError(f"The template has no parameter {name}; it has {', '.join(sorted(declared))}.")
    rules = declared[name]
    takes = rules.get("ConstraintDescription", "")
    if "AllowedValues" in rules:
        allowed = [str(each) for each in rules["AllowedValues"]]
        fits, takes = value in allowed, " or ".join(allowed)
    elif rules["Type"] == "Number":
        low, high = rules.get("MinValue", 0), rules.get("MaxValue", float("inf"))
        fits, takes = value.isdecimal() and low <= int(value) <= high, f"a whole number, {low} to {high}"
    else:
        fits = bool(re.fullmatch(rules.get("AllowedPattern", "(?s).*"), value))
    if not fits:
        raise ConfigError(f"{name}={value!r} cannot be used: it takes {takes}")


def _declared() -> dict[str, dict[str, Any]]:
    return _section("Parameters")


def resources() -> dict[str, dict[str, Any]]:
    """The template's resources by logical name."""
    return _section("Resources")


def _section(name: str) -> dict[str, dict[str, Any]]:
    text = stack.template()
    found: dict[str, dict[str, Any]] = yaml.load(text, Loader=_Loader)[name]  # nosec B506 # it is a SafeLoader
    return found
