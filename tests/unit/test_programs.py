"""What the tests say where a program that they need is not installed."""

from __future__ import annotations

import pytest

from tests.support.programs import needs


def test_what_is_not_installed_is_skipped_and_in_ci_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """T1: some tests were skipped in CI as well, where nobody reads why."""
    assert needs("no-such-program", "sh").endswith("/sh")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
        needs("no-such-program")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is missing"):
        needs("no-such-program")
