"""deploy/units: what systemd says to them, and their commands as real processes against the embedded AWS."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from faceapp.config import Settings
from faceapp.stack import data_tier as deployment
from tests.support.aws import plain_client
from tests.support.imds import Service, metadata_service
from tests.support.programs import needs
from tests.support.services import REPOSITORY, free_port, wait_until
from tests.support.units import COMMON, DEPLOY, SERVICES, UNITS, Instance, entries, plain, values

EXPOSURE = 2.0
"""systemd's own measure, from 0 to 10: 9.6 is a service that restricts nothing, below 2 is its best word."""
NEWER = ("RestartSteps", "RestartMaxDelaySec")
"""Since systemd 254, Debian 13. An older one says that it does not know them, and pauses two seconds each time."""
IMAGE = "ami-12c6146b"
STOPPED = {"faceapp-web.service": 300 + 5, "faceapp-worker.service": 60 + 20, "faceapp-nginx.service": 300 + 5}
"""Seconds that a service may need for what it has begun: the web tier's wait, a task's limit and a long poll."""


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [needs("systemd-analyze"), *arguments]
    environ = {"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{UNITS}:", "SYSTEMD_COLORS": "0"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)


def test_systemd_takes_every_unit() -> None:
    done = analyze("verify", *(str(each) for each in [*SERVICES, *UNITS.glob("*.target")]))
    # T1: programs of an instance need not be on this machine, nginx among them.
    theirs = r"Command (/opt/\S+|/usr/sbin/nginx) is not executable: No such file"
    fine = re.compile(rf"Unknown key.*({'|'.join(NEWER)})|{theirs}|^$")
    assert [line for line in done.stderr.splitlines() if not fine.search(line)] == []


@pytest.mark.parametrize("service", [each.name for each in SERVICES])
def test_every_service_is_locked_in(service: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", str(UNITS / service))
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout


def test_the_check_of_exposure_can_fail(tmp_path: Path) -> None:
    open_unit = tmp_path / "open.service"
    open_unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", str(open_unit)).returncode != 0


def test_no_service_writes_to_the_system() -> None:
    assert ("Service", "ProtectSystem", "strict") in entries(COMMON)
    assert {
        each.name: values(each.name, "ReadWritePaths") for each in SERVICES if values(each.name, "ReadWritePaths")
    } == {"faceapp-tls.service": ["/etc/faceapp/tls"]}


def test_the_common_part_overrides_nothing_that_a_unit_says() -> None:
    common = {(section, key) for section, key, _ in entries(COMMON)} - {("Service", "Environment")}
    for service in SERVICES:
        assert not common & {(section, key) for section, key, _ in entries(service)}, service.name


def test_what_needs_no_credentials_does_not_reach_the_metadata_service() -> None:
    """S12: it has those of the instance's role."""
    [denied] = values("faceapp-nginx.service", "IPAddressDeny")
    assert denied.split() == ["169.254.169.254", "fd00:ec2::254"]
    assert values("faceapp-tls.service", "PrivateNetwork") == ["yes"]


def test_each_role_has_a_user_of_its_own() -> None:
    users = {
        each.name.removeprefix("faceapp-").removesuffix(".service"): values(each.name, "User") for each in SERVICES
    }
    assert users == {
        "worker": ["faceapp"],
        "web": ["faceapp"],
        "scaler": ["faceapp-scaler"],
        "flower": ["faceapp-flower"],
        "nginx": ["faceapp-nginx"],
        "tls": ["faceapp-nginx"],
        "logs": ["faceapp-logs"],
        # systemd takes their commands from root only; they have none of root's capabilities.
        "instance": [],
        "spot": [],
    }
    for service in SERVICES:
        allowed = ["CAP_NET_BIND_SERVICE"] if service.name == "faceapp-nginx.service" else [""]
        assert values(service.name, "CapabilityBoundingSet") == allowed, service.name
    added = (DEPLOY / "image" / "provision.sh").read_text()
    assert {user for [user] in filter(None, users.values())} == set(
        re.findall(r"faceapp[\w-]*", added.partition("for user in ")[2].partition(";")[0])
    )


@pytest.mark.parametrize("service", STOPPED)
def test_a_service_may_finish_what_it_has_begun(service: str) -> None:
    assert values(service, "KillMode") == ["mixed"]
    assert int(values(service, "TimeoutStopSec")[0]) > STOPPED[service]


def test_a_drain_fits_into_a_spot_notice() -> None:
    assert int(values("faceapp-worker.service", "TimeoutStopSec")[0]) < 120 - 5


def test_every_unit_that_a_target_wants_is_there() -> None:
    for target in UNITS.glob("*.target"):
        for _, key, value in entries(target):
            ours = [each for each in value.split() if each.startswith("faceapp-")] if key in ("Wants", "After") else []
            assert all((UNITS / each).exists() for each in ours), (target.name, ours)


@pytest.fixture(scope="module")
def imds() -> Iterator[Service]:
    with metadata_service() as service:
        yield service


@pytest.fixture(scope="module")
def deployed(system: Settings, aws_endpoint: str) -> Settings:
    """A stack with a launch template, whose roles' ARNs the embedded AWS knows."""
    settings = dataclasses.replace(system, prefix=f"t{uuid.uuid4().hex[:8]}", worker_image=IMAGE)
    deployment.apply(settings, client=plain_client("cloudformation", aws_endpoint))
    return settings


@pytest.fixture
def instance(tmp_path: Path, aws_endpoint: str, imds: Service, deployed: Settings) -> Instance:
    """An instance after its user data were written and faceapp-instance.service has run. It has no keys: its services
    get their credentials from the metadata service, the scaler and Flower their roles with those."""
    made = Instance(tmp_path)
    for folder in (made.etc / "tls", made.run, tmp_path / "run-nginx", tmp_path / "bin"):
        folder.mkdir(parents=True)
    variables = {
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": aws_endpoint,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url,
        "SHIP_LOGS": "no",
        "FACEAPP_PREFIX": deployed.prefix,
        "FACEAPP_QUEUE_WAIT_S": "2",
        "FACEAPP_WORKER_PROCESSES": "1",
        "FACEAPP_WEB_PORT": str(free_port()),
        "FACEAPP_SCALER_PORT": str(free_port()),
        "FACEAPP_FLOWER_PORT": str(free_port()),
    }
    (made.etc / "faceapp.env").write_text(plain(variables))
    for role in ("scaler", "flower"):
        text = f"[default]\nrole_arn = arn:aws:iam::123456789012:role/{deployed.prefix}-{role}\n"
        (made.etc / f"aws-{role}.config").write_text(f"{text}credential_source = Ec2InstanceMetadata\n")
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/systemctl.log\n')
    systemctl.chmod(0o755)
    done = made.once(
        "faceapp-instance.service",
        PATH=f"{systemctl.parent}:/usr/bin:/bin",
        AWS_EC2_METADATA_SERVICE_ENDPOINT=imds.url,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "systemctl.log").read_text() == "start --no-block faceapp-app.target\n"
    return made


def port(instance: Instance, name: str, service: str) -> int:
    return int(instance.environ(service)[name])


def answers(url: str, *, context: ssl.SSLContext | None = None) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.system
def test_the_worker_comes_up_under_its_instances_name_and_drains(instance: Instance) -> None:
    with instance.service("faceapp-worker.service") as worker:
        wait_until(
            lambda: "celery@app-tier-instance-3 ready." in worker.said() or worker.process.poll() is not None,
            timeout_s=240,
            what="the worker",
        )
        assert worker.process.poll() is None, worker.said()
        assert worker.stop(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in worker.said().splitlines() if line.startswith("{")]
    assert {each["service"] for each in lines} == {"faceapp-worker"}
    assert not [each for each in lines if each["level"] in ("ERROR", "CRITICAL")]


@pytest.mark.system
def test_a_worker_without_its_model_fails_so_that_systemd_tries_again(instance: Instance) -> None:
    with instance.service("faceapp-worker.service", FACEAPP_EMBEDDER="facenet", FACEAPP_WEIGHTS="nowhere.pt") as worker:
        assert worker.process.wait(240) == 1
        assert "the worker cannot work" in worker.said()
        assert "ready." not in worker.said()


@pytest.mark.system
@pytest.mark.parametrize(
    ("service", "port_name", "path"),
    [
        ("faceapp-web.service", "FACEAPP_WEB_PORT", "/readyz"),
        ("faceapp-scaler.service", "FACEAPP_SCALER_PORT", "/status"),
        ("faceapp-flower.service", "FACEAPP_FLOWER_PORT", "/healthcheck"),
    ],
)
def test_a_service_comes_up_and_ends_when_told(instance: Instance, service: str, port_name: str, path: str) -> None:
    url = f"http://127.0.0.1:{port(instance, port_name, service)}{path}"
    with instance.service(service) as running:
        wait_until(lambda: answers(url) or running.process.poll() is not None, timeout_s=240, what=service)
        assert running.process.poll() is None, running.said()
        assert running.stop(signal.SIGTERM) == 0, running.said()


@pytest.mark.system
def test_scaler_and_flower_take_their_own_roles(instance: Instance, deployed: Settings) -> None:
    who = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])"
    for role in ("scaler", "flower"):
        environ = instance.environ(f"faceapp-{role}.service")
        python = instance.here("/opt/faceapp/venv/bin/python")
        done = subprocess.run([python, "-c", who], env=environ, capture_output=True, text=True, timeout=240)
        assert f":assumed-role/{deployed.prefix}-{role}/" in done.stdout, done.stderr


@pytest.mark.system
def test_a_spot_notice_stops_the_worker(instance: Instance, imds: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(imds.answers, "instance-life-cycle", "spot")
    monkeypatch.setitem(imds.answers, "spot/instance-action", '{"action": "stop", "time": "2026-11-22T08:22:00Z"}')
    done = instance.once(
        "faceapp-spot.service",
        PATH=f"{instance.folder}/bin:/usr/bin:/bin",
        AWS_EC2_METADATA_SERVICE_ENDPOINT=imds.url,
    )
    assert done.returncode == 0, done.stderr
    said = (instance.folder / "systemctl.log").read_text().splitlines()
    assert said[1:] == ["stop --no-block faceapp-worker.service"]


@pytest.mark.parametrize(("switch", "status"), [("yes", 0), ("no", 1), ("", 1)])
def test_logs_are_shipped_by_a_switch(tmp_path: Path, switch: str, status: int) -> None:
    instance = Instance(tmp_path)
    for folder in (instance.etc, instance.run):
        folder.mkdir()
    (instance.etc / "faceapp.env").write_text(f"SHIP_LOGS={switch}\n")
    (instance.run / "instance.env").touch()
    condition = instance.command("faceapp-logs.service", key="ExecCondition")
    assert subprocess.run(condition, env=instance.environ("faceapp-logs.service")).returncode == status


def test_every_service_that_logs_is_shipped() -> None:
    shipped = set(re.findall(r"_SYSTEMD_UNIT=(\S+)", (DEPLOY / "logs" / "fluent-bit.yaml").read_text()))
    assert shipped == {each.name for each in SERVICES} - {"faceapp-logs.service", "faceapp-tls.service"}


@pytest.fixture
def certificate(instance: Instance) -> Path:
    """The certificate that an instance makes for itself."""
    needs("openssl")
    with (instance.etc / "faceapp.env").open("a") as told:
        told.write("FIXED_ADDRESS=198.51.100.9\n")
    with (instance.run / "instance.env").open("a") as facts:
        facts.write("PUBLIC_ADDRESS=203.0.113.7\nPRIVATE_ADDRESS=10.0.0.7\n")
    done = instance.once("faceapp-tls.service")
    assert done.returncode == 0, done.stderr
    return instance.etc / "tls" / "certificate.pem"


@pytest.mark.system
def test_an_instances_own_certificate_is_for_its_names_and_its_key_is_nobody_elses(certificate: Path) -> None:
    said = subprocess.run(
        [needs("openssl"), "x509", "-in", str(certificate), "-noout", "-ext", "subjectAltName,extendedKeyUsage"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    addresses = ("127.0.0.1", "198.51.100.9", "203.0.113.7", "10.0.0.7")
    assert f"DNS:localhost, {', '.join(f'IP Address:{each}' for each in addresses)}" in said
    assert "TLS Web Server Authentication" in said
    assert (certificate.parent / "key.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in certificate.parent.iterdir()) == ["certificate.pem", "key.pem"]


class Proxy:
    """nginx with the instance's configuration, on free ports of the loopback."""

    def __init__(self, instance: Instance) -> None:
        self.port, self.plain_port = free_port(), free_port()
        text = (DEPLOY / "nginx" / "faceapp.conf").read_text()
        text = re.sub(r"^ *listen \[::\].*\n", "", text, flags=re.MULTILINE)
        for theirs, ours in (
            ("listen 443", f"listen 127.0.0.1:{self.port}"),
            ("listen 80", f"listen 127.0.0.1:{self.plain_port}"),
            ("127.0.0.1:8000", f"127.0.0.1:{port(instance, 'FACEAPP_WEB_PORT', 'faceapp-web.service')}"),
            ("/run/faceapp-nginx", str(instance.folder / "run-nginx")),
            ("/tmp/faceapp-nginx-", f"{instance.folder}/"),
            ("/etc/faceapp", str(instance.etc)),
        ):
            assert theirs in text
            text = text.replace(theirs, ours)
        # As root it would give its files to another user, who may not look into a test's folder.
        (instance.etc / "nginx.conf").write_text(("user root;\n" if os.geteuid() == 0 else "") + text)

    def ask(self, path: str, certificate: Path, **request: Any) -> tuple[int, str, bytes]:
        """Status, Strict-Transport-Security and body."""
        context = ssl.create_default_context(cafile=str(certificate))
        asked = urllib.request.Request(f"https://localhost:{self.port}{path}", **request)
        try:
            with urllib.request.urlopen(asked, timeout=240, context=context) as response:
                return response.status, response.headers.get("Strict-Transport-Security", ""), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get("Strict-Transport-Security", ""), error.read()


@pytest.mark.system
def test_nginx_serves_the_web_tier_over_tls(instance: Instance, certificate: Path) -> None:
    needs("nginx")
    proxy = Proxy(instance)
    with ExitStack() as services:
        services.enter_context(instance.service("faceapp-web.service"))
        nginx = services.enter_context(instance.service("faceapp-nginx.service"))
        context = ssl.create_default_context(cafile=str(certificate))
        url = f"https://localhost:{proxy.port}/healthz"
        wait_until(
            lambda: answers(url, context=context) or nginx.process.poll() is not None, timeout_s=240, what="nginx"
        )
        assert nginx.process.poll() is None, nginx.said()

        status, strict, body = proxy.ask("/healthz", certificate)
        assert (status, json.loads(body)["status"]) == (200, "ok")
        assert strict == "max-age=31536000"
        # The web tier tells its numbers to this machine; what comes through nginx does not.
        assert proxy.ask("/metrics", certificate)[0] == 404
        assert proxy.ask("/%6detrics", certificate)[0] == 404
        limit = Settings().web_max_request_bytes
        assert proxy.ask("/", certificate, data=bytes(limit + 1))[0] == 413
        # Large, and let through: the web tier itself refuses it, since what comes through nginx needs a key.
        status, _, body = proxy.ask("/v1/recognitions", certificate, data=bytes(4 * 1024 * 1024))
        assert (status, json.loads(body)["code"]) == (401, "key_missing")

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: object) -> None:
                return None

        with pytest.raises(urllib.error.HTTPError) as moved:
            urllib.request.build_opener(Stay).open(f"http://127.0.0.1:{proxy.plain_port}/v1/people?a=b", timeout=240)
        with moved.value:
            assert (moved.value.code, moved.value.headers["Location"]) == (308, "https://127.0.0.1/v1/people?a=b")

        old = ssl.create_default_context(cafile=str(certificate))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            pytest.raises(ssl.SSLError),
            socket.create_connection(("127.0.0.1", proxy.port), timeout=240) as plain_socket,
        ):
            old.wrap_socket(plain_socket, server_hostname="localhost")

        assert nginx.stop(signal.SIGQUIT) == 0


def test_nginx_waits_longer_than_the_web_tier_and_takes_what_it_takes() -> None:
    text = (DEPLOY / "nginx" / "faceapp.conf").read_text()
    [size] = re.findall(r"client_max_body_size (\d+);", text)
    assert int(size) == Settings().web_max_request_bytes
    [wait_s] = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(wait_s) > Settings().web_wait_s + 5


def test_scripts_are_clean() -> None:
    scripts = [*(DEPLOY / "libexec").iterdir(), DEPLOY / "image" / "provision.sh", REPOSITORY / ".ci" / "run"]
    done = subprocess.run([needs("shellcheck"), *map(str, scripts)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout
