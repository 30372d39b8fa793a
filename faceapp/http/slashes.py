"""Routes that are there with and without a slash at their end, whichever a client's author wrote.

Not for all of the service's routes: a proxy that closes `/metrics` need not know of `/metrics/`.
"""

from __future__ import annotations

from typing import Any

import flask


class Blueprint(flask.Blueprint):
    """A blueprint whose rules have both spellings; in a `<path:name>` the slash is not the name's."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.url_value_preprocessor(_without_slash)

    def add_url_rule(self, *args: Any, **options: Any) -> None:
        super().add_url_rule(*args, **{"strict_slashes": False, **options})


def _without_slash(_: str | None, values: dict[str, Any] | None) -> None:
    if values and "name" in values:
        values["name"] = values["name"].removesuffix("/")
