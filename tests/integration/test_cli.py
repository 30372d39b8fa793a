"""The command line: what each command says, and one sentence for everything that goes wrong."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import torch

from faceapp.cli.common import warn_of_plain_http
from faceapp.config import Settings
from faceapp.operations.client import Client
from tests.support.services import PATIENCE_S, users_environ

NOBODY = "http://127.0.0.1:1"


def faceapp(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `faceapp` as a user does."""
    command = [sys.executable, "-m", "faceapp", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=users_environ(**environ))


def test_a_look_at_the_settings_that_breaks_says_where(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`faceapp web` ended with status 1 and said nothing."""

    services = import_module("faceapp.cli.services")

    def broken() -> None:
        raise ValueError("for a test")

    monkeypatch.setattr(services, "_check", broken)
    with pytest.raises(SystemExit, match="1"):
        services._check_apart()
    assert "ValueError: for a test" in capfd.readouterr().err


def test_help_lists_the_commands() -> None:
    done = faceapp("--help")
    assert done.returncode == 0
    for command in ("up", "web", "worker", "people", "recognize", "settings"):
        assert f"\n  {command} " in done.stdout


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "boto3", "celery", "flask", "moto", "rich"}
    code = f"import sys, faceapp.cli; print(*{heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "\n"


@pytest.mark.parametrize("command", ["enrol", "forget"])
@pytest.mark.parametrize(("name", "sentence"), [("", "The name is empty."), ("..", "neither a letter nor a digit")])
def test_a_name_that_makes_no_path_is_refused_before_anything_is_asked(
    command: str, name: str, sentence: str, tmp_path: Path
) -> None:
    """`faceapp people enrol ""` was answered 405, Method Not Allowed."""
    photos = [tmp_path / "a.jpg"] if command == "enrol" else []
    for photo in photos:
        photo.write_bytes(b"x")
    done = faceapp("people", "--url", NOBODY, command, name, *photos)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_settings_lists_every_variable_with_its_value_and_what_it_takes() -> None:
    done = faceapp("settings", FACEAPP_WEB_PORT="9001")
    assert done.returncode == 0
    assert "FACEAPP_WEB_PORT=9001\n    the web tier's port (a whole number, 1 to 65535)\n" in done.stdout
    for each in fields(Settings):
        assert f"FACEAPP_{each.name.upper()}=" in done.stdout


@pytest.mark.parametrize("command", [["settings"], ["up"], ["web"], ["worker"], ["recognize", "--local", "x.jpg"]])
def test_a_setting_that_cannot_be_used_stops_every_command(command: list[str]) -> None:
    done = faceapp(*command, FACEAPP_WEB_PORT="http")
    assert done.returncode == 2
    assert done.stderr == "Error: FACEAPP_WEB_PORT='http' cannot be used: it takes a whole number, 1 to 65535\n"


@pytest.mark.parametrize(
    "command",
    [["people", "--url", NOBODY, "list"], ["people", "--url", NOBODY, "forget", "ann"]],
)
def test_a_service_that_is_not_there_is_one_sentence(command: list[str]) -> None:
    done = faceapp(*command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: Nothing answers at {NOBODY}: is faceapp running there?")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [["people", "list"], ["recognize", "PHOTO"], ["bench", "load", "--images", "DIR"]])
def test_the_service_is_looked_for_where_faceapp_up_has_it(
    command: list[str], samples: dict[str, Path], tmp_path: Path
) -> None:
    """Each command finds the start of its environment, and says how to name another one."""
    photo = samples["obama.jpg"]
    shutil.copy(photo, tmp_path)
    given = [{"PHOTO": str(photo), "DIR": str(tmp_path)}.get(each, each) for each in command]
    done = faceapp(*given, FACEAPP_WEB_PORT="9", XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "Error: Nothing answers at http://127.0.0.1:9: is faceapp running there?" in done.stderr
    assert "FACEAPP_WEB_PORT" in done.stderr


def test_a_photo_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = faceapp("recognize", "--url", NOBODY, tmp_path / "none.jpg")
    assert done.returncode == 1
    assert done.stderr == f"Error: {tmp_path}/none.jpg cannot be read: No such file or directory.\n"


def test_a_gallery_goes_with_local_only(tmp_path: Path) -> None:
    done = faceapp("recognize", "--gallery", tmp_path, "photo.jpg")
    assert done.returncode == 2
    assert "--gallery goes with --local" in done.stderr


def test_a_folder_without_people_is_one_sentence(tmp_path: Path) -> None:
    for folder, sentence in ((tmp_path, "holds no folders of photos"), (tmp_path / "none", "is not a folder")):
        for command in (["up", "--people"], ["people", "--url", NOBODY, "import"]):
            done = faceapp(*command, folder)
            assert done.returncode == 1
            assert f"Error: {folder} {sentence}" in done.stderr
            assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("variable", ["FACEAPP_WEB_PORT", "FACEAPP_AWS_PORT"])
def test_a_taken_port_is_one_sentence_and_starts_nothing(variable: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        port, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        ports = {"FACEAPP_WEB_PORT": str(other), "FACEAPP_AWS_PORT": str(other), variable: str(port)}
        done = faceapp("up", XDG_STATE_HOME=str(tmp_path), **ports)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: Port {port} on 127.0.0.1 cannot be used (Address already in use")
    assert done.stderr.endswith(f"choose another with {variable}.\n")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_recognising_locally_needs_no_service(samples: dict[str, Path]) -> None:
    done = faceapp("recognize", "--local", samples["obama3.jpg"], samples["astronaut.png"])
    assert done.stdout == "obama\neileen_collins\n", done.stderr
    assert done.returncode == 0


@pytest.mark.slow
def test_a_folder_is_a_gallery_and_a_stranger_is_unknown(samples: dict[str, Path], tmp_path: Path) -> None:
    for name, photo in (("joe", "biden.jpg"), ("barack", "obama.jpg")):
        (tmp_path / name).mkdir()
        shutil.copy(samples[photo], tmp_path / name)
    (tmp_path / "joe" / "broken.jpg").write_text("no photo")
    done = faceapp("recognize", "--local", "--gallery", tmp_path, samples["obama3.jpg"], samples["astronaut.png"])
    assert done.stdout == "barack\nunknown\n"
    assert "broken.jpg is not used" in done.stderr


@pytest.mark.slow
def test_a_course_gallery_of_another_network_is_one_sentence(samples: dict[str, Path], tmp_path: Path) -> None:
    torch.save([[torch.zeros(1, 512)], ["ann"]], tmp_path / "data.pt")
    done = faceapp("recognize", "--local", "--gallery", tmp_path / "data.pt", samples["obama3.jpg"])
    assert done.returncode == 1
    assert "set FACEAPP_EMBEDDER=facenet and FACEAPP_WEIGHTS" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://192.0.2.1:9", True),
        ("http://faceapp.invalid", True),
        ("http://127.0.0.1.example.org", True),
        ("https://faceapp.invalid", False),
        ("http://127.0.0.1:9", False),
        ("http://localhost", False),
        ("http://[::1]:9", False),
    ],
)
def test_a_key_that_others_can_read_on_its_way_is_warned_of(
    url: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """S12"""
    key = f"fa_{'0' * 8}_{'x' * 43}"
    assert not Client(url).exposes_key
    warn_of_plain_http(Client(url, key=key))
    said = capsys.readouterr().err
    assert ("plain HTTP" in said) is warned
    assert key not in said


def test_the_commands_warn_of_plain_http() -> None:
    """S12"""
    done = faceapp("people", "--url", "http://127.0.0.2.invalid:1", "list", FACEAPP_API_KEY=f"fa_{'0' * 8}_{'x' * 43}")
    assert done.returncode == 1
    assert done.stderr.startswith("Warning: the API key goes to http://127.0.0.2.invalid:1 over plain HTTP")
