"""What the template has: its parameters, and what it makes."""

from __future__ import annotations

import re
from typing import Any

import yaml

from faceapp.errors import ConfigError
from faceapp.stack import data_tier as stack


class _Loader(yaml.SafeLoader):
    """Takes CloudFormation's short forms (!Ref ...) for what stands behind them."""


def _plain(loader: Any, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


_Loader.add_multi_constructor("!", _plain)


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
