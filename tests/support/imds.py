"""A little instance metadata service, version 2 only, on the loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tests.support.aws import ACCESS

CREDENTIALS = {
    "Code": "Success",
    "Type": "AWS-HMAC",
    # The embedded AWS takes no other.
    "AccessKeyId": ACCESS["AWS_ACCESS_KEY_ID"],
    "SecretAccessKey": ACCESS["AWS_SECRET_ACCESS_KEY"],
    "Token": "session",
    "LastUpdated": "2020-01-01T00:00:00Z",
    "Expiration": "2099-01-01T00:00:00Z",
}
INSTANCE = {
    "instance-id": "i-0123456789abcdef0",
    "instance-life-cycle": "on-demand",
    "placement/region": "us-east-1",
    "tags/instance/Name": "app-tier-instance-3",
    "tags/instance/faceapp:tier": "app",
    "iam/security-credentials/": "a-role",
    "iam/security-credentials/a-role": json.dumps(CREDENTIALS),
}


class Service:
    """What it answers, by path below latest/meta-data/; a test may change that at any time."""

    def __init__(self) -> None:
        self.answers = dict(INSTANCE)
        self.tokens: set[str] = set()
        self.asked: list[str] = []
        self.failing = False
        self.url = ""

    def answer(self, method: str, path: str, token: str, lifetime: str) -> tuple[int, str]:
        self.asked.append(path)
        if self.failing:
            return 503, ""
        if (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(lifetime or 0) <= 21_600:
                return 400, ""
            self.tokens.add(token := f"token-{len(self.asked)}")
            return 200, token
        if method != "GET" or token not in self.tokens:
            return 401, ""
        found = self.answers.get(path.removeprefix("/latest/meta-data/"))
        return (404, "") if found is None else (200, found)


@contextmanager
def metadata_service() -> Iterator[Service]:
    """Serve until the block ends."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("X-aws-ec2-metadata-token", "")
            lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            status, text = service.answer(self.command, unquote(self.path), token, lifetime)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_PUT = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
