"""A running faceapp over HTTP, as the command line and the local start use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import urllib3

from celery_sqs.door import names_loopback
from faceapp.errors import BadRequest, FaceappError, InvalidName, ServiceUnreachable, by_code
from faceapp.security.credential import key_for

CONNECT_TIMEOUT_S = 5


class Client:
    """The service at `url`. Raises the error that the service names, and ServiceUnreachable when nothing answers.

    `key` is the API key to send; None takes FACEAPP_API_KEY, or that of the 'faceapp up' at `url`.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 600) -> None:
        key = key_for(url) if key is None else key
        self.url = url.rstrip("/")
        self.exposes_key = (
            bool(key) and urlsplit(url).scheme == "http" and not names_loopback(urlsplit(url).netloc.rpartition("@")[2])
        )
        """Whether the key travels over a network where others can read it."""
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=timeout_s)
        headers = {"Authorization": f"Bearer {key}"} if key else None
        # Redirects are not followed: a key is for this service alone.
        self._http = urllib3.PoolManager(timeout=timeout, retries=False, headers=headers)

    def ready(self) -> bool:
        """Whether the web tier reaches S3 and SQS."""
        try:
            self._ask("GET", "/readyz")
        except FaceappError:
            return False
        return True

    def people(self) -> dict[str, int]:
        """Everybody enrolled, with the number of their photos."""
        answer = json.loads(self._ask("GET", "/v1/people"))
        return {person["name"]: person["photos"] for person in answer["people"]}

    def enrol(self, name: str, photos: list[Path]) -> list[str]:
        """Enrol the photos under `name`, all or none; returns when a worker has done it.

        Answers a sentence for each other person who is like the name or the photos, and for each photo that is unlike
        the person's others. Raises InvalidName for a name that makes no path of its own.
        """
        path = _path_of(name)
        fields = [("photo", (photo.name, read_photo(photo), "application/octet-stream")) for photo in photos]
        answer = json.loads(self._ask("PUT", path, fields=fields))
        return [str(notice["detail"]) for notice in answer.get("notices", ())]

    def forget(self, name: str) -> None:
        """Forget a person: every photo and vector at once, the results that name them within minutes.

        Raises InvalidName for a name that makes no path of its own.
        """
        self._ask("DELETE", _path_of(name))

    def recognise(self, photo: Path) -> str:
        """The classic answer: `<file name without extension>:<name>`."""
        fields = [("inputFile", (photo.name, read_photo(photo), "application/octet-stream"))]
        return self._ask("POST", "/", fields=fields).decode().strip()

    def _ask(self, method: str, path: str, **content: Any) -> bytes:
        try:
            answer = self._http.request(method, f"{self.url}{path}", **content)
        except urllib3.exceptions.HTTPError as error:
            raise ServiceUnreachable(
                f"Nothing answers at {self.url}: is faceapp running there? ('faceapp up' starts it, and --url or "
                f"FACEAPP_WEB_PORT says where it is; {error})"
            ) from error
        if answer.status < 400:
            return answer.data
        try:
            problem = json.loads(answer.data)
            raise by_code(problem["code"])(problem["detail"])
        except (ValueError, KeyError, TypeError):
            raise FaceappError(f"{self.url}{path} answered {answer.status} {answer.reason}.") from None


def _path_of(name: str) -> str:
    """The person's path. Raises InvalidName for a name that would be another path on its way, as dots are."""
    if not name.strip(". "):
        raise InvalidName("The name has neither a letter nor a digit: it needs one." if name else "The name is empty.")
    return f"/v1/people/{quote(name, safe='')}"


def read_photo(photo: Path) -> bytes:
    """Raises BadRequest when that is impossible."""
    try:
        return photo.read_bytes()
    except OSError as error:
        raise BadRequest(f"{photo} cannot be read: {error.strerror or error}.") from error
