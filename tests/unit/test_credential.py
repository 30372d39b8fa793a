"""The credential of one start: where it is kept, who finds it, and that it shows nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from faceapp.config import Settings
from faceapp.errors import ConfigError
from faceapp.local import up
from faceapp.security import credential
from faceapp.security.key_text import FORM, new_text
from tests.integration.test_cli import faceapp


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder of a prefix."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = tmp_path / "faceapp" / "some-prefix"
    made.mkdir(parents=True)
    return made


def test_commands_find_the_start_that_answers_there(folder: Path) -> None:
    """S3: nobody types anything."""
    key, nobody = new_text(), Settings()
    with credential.kept(folder, key, {"web": 8123, "AWS": 4123}, {"AWS_X": "a b"}):
        for url in ("http://127.0.0.1:8123", "http://localhost:8123/v1", "http://[::1]:4123"):
            assert credential.key_for(url, nobody) == key
        for url in ("http://127.0.0.1:8124", "http://127.0.0.1", "http://example.org:8123", "https://10.0.0.1:8123"):
            assert credential.key_for(url, nobody) == ""
        assert credential.key_for("http://localhost:99999", nobody) == ""
        assert credential.key_for("http://127.0.0.1:8123", Settings(api_key="mine")) == "mine"
        assert credential.local_key_for("http://127.0.0.1:8123", Settings(api_key="mine")) == key
        assert {each.name for each in folder.iterdir()} == set(credential.FILES)
        assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}
        assert (folder / credential.CURL).read_text() == f'header = "Authorization: Bearer {key}"\n'
        assert (folder / credential.AWS).read_text() == "export AWS_X='a b'\n"
    assert list(folder.iterdir()) == []
    assert credential.key_for("http://127.0.0.1:8123", nobody) == ""


def test_what_a_killed_start_left_is_replaced_and_what_is_damaged_is_passed_over(folder: Path) -> None:
    for text in (
        "",
        "{",
        "[]",
        '{"key": 1, "ports": {"web": 8123}}',
        '{"ports": []}',
        '{"key": "x", "ports": {"a": 8123}}',
    ):
        (folder / credential.START).write_text(text)
        assert credential.key_for("http://127.0.0.1:8123", Settings()) == ""
    (folder / f"{credential.START}.part").write_text("left")
    key = new_text()
    with credential.kept(folder, key, {"web": 8123}, {}):
        assert json.loads((folder / credential.START).read_text())["key"] == key
        assert credential.key_for("http://127.0.0.1:8123", Settings()) == key


def test_a_start_that_cannot_write_all_of_it_leaves_none_of_it(folder: Path) -> None:
    (folder / f"{credential.AWS}.part").mkdir()
    with pytest.raises((IsADirectoryError, PermissionError)), credential.kept(folder, new_text(), {"web": 8123}, {}):
        pass
    assert not any((folder / name).exists() for name in credential.FILES)


def test_a_shell_that_reads_the_file_looks_at_the_right_start() -> None:
    """The prefix and the ports are in it as well as AWS's variables, and nothing else of the start's settings."""
    settings = Settings(prefix="mine", web_port=8123, aws_port=4123, scaler_port=8124, flower_port=5123)
    exported = up.for_a_shell(up.environment(settings))
    ours = {name: value for name, value in exported.items() if name.startswith("FACEAPP_")}
    assert Settings.from_environ(ours) == settings
    assert ours.keys() == {"FACEAPP_PREFIX", *(f"FACEAPP_{each}_PORT" for each in ("WEB", "AWS", "SCALER", "FLOWER"))}
    assert exported["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4123"


def test_each_start_has_another_and_nothing_is_told_by_the_access_key() -> None:
    keys = [new_text() for _ in range(100)]
    assert all(FORM.fullmatch(key) for key in keys)
    made = [credential.aws_keys(key) for key in keys]
    assert len({each["AWS_ACCESS_KEY_ID"] for each in made}) == len(set(keys)) == 100
    for key, each in zip(keys, made, strict=True):
        assert len(each["AWS_ACCESS_KEY_ID"]) == 32
        assert each["AWS_ACCESS_KEY_ID"].isalnum()
        assert each["AWS_ACCESS_KEY_ID"] not in (key, each["AWS_SECRET_ACCESS_KEY"])
        assert credential.aws_keys(key) == each


def test_the_settings_show_neither_it_nor_flowers_password() -> None:
    """S14."""
    key = new_text()
    done = faceapp("settings", FACEAPP_LOCAL_KEY=key, FACEAPP_FLOWER_BASIC_AUTH="me:hidden")
    assert "FACEAPP_LOCAL_KEY=(set)" in done.stdout
    assert "FACEAPP_FLOWER_BASIC_AUTH=(set)" in done.stdout
    assert key not in done.stdout
    assert "hidden" not in done.stdout
    settings = Settings(local_key=key, flower_basic_auth="me:hidden")
    assert key not in repr(settings)
    assert "hidden" not in repr(settings)
    for variable in ("FACEAPP_LOCAL_KEY", "FACEAPP_FLOWER_BASIC_AUTH"):
        with pytest.raises(ConfigError, match="its value cannot be used") as caught:
            Settings.from_environ({variable: "no good"})
        assert "no good" not in str(caught.value)


def test_a_new_one_is_printed_for_what_is_started_by_hand() -> None:
    command = [sys.executable, "-m", "faceapp.security.credential"]
    printed = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)]
    assert all(FORM.fullmatch(each) for each in printed)
    assert printed[0] != printed[1]
