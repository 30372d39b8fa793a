"""Folders with spaces and letters beyond ASCII in their names, where the certificates of authorities lie."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.httpsession
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kombu.asynchronous import Hub as EventLoop
from kombu.asynchronous.http.curl import CurlClient
from vine import promise

from celery_sqs.transport.http import HTTPConnection
from faceapp.config import Settings
from faceapp.local.processes import Services
from faceapp.stack import data_tier as deployment
from tests.support import echo
from tests.support.services import REPOSITORY, aws_environ, celery_worker, environ, wait_until

FOLDER = "Fotos – für Zoë"  # noqa: RUF001

TLS_AWS = """
import sys
from gevent import monkey; monkey.patch_all()
from gevent.pywsgi import WSGIServer
from faceapp.local.aws import make_app

server = WSGIServer(("127.0.0.1", 0), make_app(), keyfile=sys.argv[1], certfile=sys.argv[2], log=None)
server.start()
print(f"listening on https://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a user's, with a key and a certificate for 127.0.0.1 in it."""
    made = tmp_path_factory.mktemp("home") / FOLDER
    made.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (made / "key.pem").write_bytes(key.private_bytes(kind, form, serialization.NoEncryption()))
    (made / "certificate.pem").write_bytes(certificate.public_bytes(kind))
    return made


@pytest.fixture(scope="module")
def https(folder: Path) -> Iterator[str]:
    """The URL of a server that answers every request with 204, over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(client, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            except OSError:  # a client that does not trust us
                client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://127.0.0.1:{server.getsockname()[1]}/"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def polled(url: str) -> int:
    """The status of a request as the worker's polls are made; 599 where curl did not get through."""
    hub, answers = EventLoop(), list[Any]()
    client = CurlClient(hub)
    connection = HTTPConnection(timeout=240, http_client=client)
    connection.request("GET", url)
    connection.getresponse(callback=promise(answers.append))
    wait_until(lambda: hub.run_once() or answers, timeout_s=240, what="the answer")
    client.close()
    hub.close()
    return int(answers[0].status)


@pytest.mark.filterwarnings("ignore:socket_all:DeprecationWarning")  # kombu's
def test_a_poll_works_where_faceapp_is_installed_in_a_folder_with_any_name(
    https: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1: certifi's file lies in .venv, in the clone's folder, and pycurl takes text for ASCII."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setattr(botocore.httpsession, "where", lambda: str(folder / "certificate.pem"))
    assert polled(https) == 204


@pytest.mark.filterwarnings("ignore:socket_all:DeprecationWarning")  # kombu's
def test_a_poll_trusts_whom_boto3_trusts_and_nobody_else(
    https: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1: AWS_CA_BUNDLE names a file, too, and boto3 takes it from there."""
    assert polled(https) == 599
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "certificate.pem"))
    assert polled(https) == 204


def test_a_worker_takes_tasks_over_tls_with_authorities_from_such_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1: a real worker, a real sender, and an AWS over TLS."""
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:8]}")
    with Services(tmp_path, os.environ) as services:
        command = [sys.executable, "-c", TLS_AWS, str(folder / "key.pem"), str(folder / "certificate.pem")]
        server = services.start("AWS over TLS", command)
        services.wait_for(lambda: "listening on " in server.log_tail(), timeout_s=240, what="The AWS does not listen")
        endpoint = server.log_tail().partition("listening on ")[2].split()[0]
        trusted = {"AWS_CA_BUNDLE": str(folder / "certificate.pem")}
        for name, value in {**aws_environ(endpoint), **trusted}.items():
            monkeypatch.setenv(name, value)
        deployment.apply(Settings(prefix=echo.prefix(settings)))
        environment = environ(endpoint, settings, **trusted)
        with celery_worker("tests.support.echo", tmp_path / "worker.log", environment, "--concurrency", "1"):
            line = "from tests.support.echo import echo; print(echo.delay('né').get(timeout=240))"
            done = subprocess.run(
                [sys.executable, "-c", line], cwd=REPOSITORY, env=environment, capture_output=True, text=True
            )
        assert (done.returncode, done.stdout) == (0, "né\n"), done.stderr
