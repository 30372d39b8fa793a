"""`faceapp up`: everything on this machine, from the embedded AWS to the first answer, until Ctrl-C."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.aws import LOCAL_REGION
from celery_sqs.door import no_proxy
from celery_sqs.testing.aws import LISTENING
from faceapp.config import Settings, aws
from faceapp.errors import FaceappError, LocalError
from faceapp.http.scaler import ScalerStatus
from faceapp.local import compute, state
from faceapp.local.processes import Service, Services
from faceapp.local.progress import Progress
from faceapp.operations import samples
from faceapp.operations.client import Client
from faceapp.operations.folders import Enrolled, enrol_people, find_people, sample_people
from faceapp.security import credential
from faceapp.security.key_text import new_text
from faceapp.stack import data_tier as stack

T = TypeVar("T")

REGION = LOCAL_REGION
START_TIMEOUT_S = 300
"""A part that is not ready by then never will be, on the slowest of machines."""
ENROL_TIMEOUT_S = 300
"""For each photo of the first gallery; the first one waits for the first worker's boot."""
SAVE_EVERY_S = 2.0
LONGEST_POLL_S = 2
"""A worker that is told to stop waits for the long poll in flight; here, more of them cost nothing."""
LONGEST_TICK_S = 1.0
"""The scaler looks at least this often: here, looking costs nothing, and somebody waits for the first photo."""
WORKER_START_S = 3.0
"""From the end of an instance's boot to its worker's first sign of life."""
AWS = "embedded AWS"
OF_A_START = ("FACEAPP_PREFIX", "FACEAPP_WEB_PORT", "FACEAPP_AWS_PORT", "FACEAPP_SCALER_PORT", "FACEAPP_FLOWER_PORT")
"""What tells one start from another, of its settings."""
# moto knows a few machine images; any of them will do, nothing boots from it.
IMAGE = "ami-12c6146b"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `faceapp up` was asked for."""

    people: Path | None = None
    """A folder of `name/photo.jpg` to enrol."""
    fresh: bool = False
    """Start without the people of the last time."""
    samples: bool = True
    """Enrol the sample people when the gallery is empty."""
    verbose: bool = False
    """Show what the services log."""


def up(settings: Settings, options: Options) -> None:
    """Start everything, say where it is, and run until SIGINT, SIGTERM or SIGHUP; then stop everything.

    Raises LocalError, with nothing left running, when a part does not start or ends by itself.
    """
    settings = replace(at_local_pace(settings), local_key=settings.local_key or new_text())
    found = find_people(options.people) if options.people else {}
    check_ports(settings)
    state.keep_private()
    folder = state.default_folder(settings.prefix)
    environ = environment(settings)
    # This process asks AWS too, and must no more reach the user's own than its services.
    os.environ.clear()
    os.environ.update(environ)
    progress = Progress()
    with (
        state.lock(folder),
        credential.kept(folder, settings.local_key, ports_of(settings), for_a_shell(environ)),
        Services(folder / "logs", environ, follow=options.verbose, warn=progress.warn) as services,
    ):
        local = _Local(settings, options, services, progress)
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda *_: services.interrupt())
            local.run(found, folder / "gallery")
        except (BotoCoreError, ClientError) as error:
            raise LocalError(f"The embedded AWS does not answer as it should: {error}. Logs: {folder}/logs") from error
        except KeyboardInterrupt:
            local.finish()


class _Local:
    def __init__(self, settings: Settings, options: Options, services: Services, progress: Progress) -> None:
        self.settings, self.options, self.services, self.progress = settings, options, services, progress
        self.gallery: state.GalleryState | None = None
        self._unsaved = False
        self.client = Client(f"http://{reachable(settings.web_host)}:{settings.web_port}", key=settings.local_key)

    def _aws(self, service: str, *, attempts: int = 3) -> Any:
        retries = {"mode": "standard", "total_max_attempts": attempts}
        return aws.client(service, retries=retries, read_timeout=20)

    def run(self, found: Mapping[str, list[Path]], folder: Path) -> None:
        self.progress.note(f"faceapp starts. Logs and the kept gallery: {folder.parent}")
        with self.progress.step(f"embedded AWS on {endpoint(self.settings)}"):
            self._start_aws()
        with self.progress.step("buckets and queues from deploy/stack.yaml"):
            stack.apply(self.settings, client=self._aws("cloudformation"))
            self._record_instance()
        self.gallery = self._restore_gallery(folder)
        self.services.follow_files(f"{compute.APP_TIER}*.log")
        host = self._start("compute host", "faceapp.local.compute", "--logs", str(self.services.log_folder))
        scaler = self._start("scaler", "faceapp", "scaler")
        flower = self._start("Flower", "faceapp", "flower")
        with self.progress.step(f"web tier on {self.client.url}"):
            web = self._start("web tier", "faceapp", "web")
            self._wait_for(web, self.client.ready, "The web tier is not ready")
        with self.progress.step(f"compute host and scaler, 0 to {self.settings.scaler_max_instances} workers"):
            self._wait_for(host, lambda: compute.READY in host.log_tail(), "The compute host is not ready")
            status = ScalerStatus(self.settings)
            self._wait_for(scaler, lambda: status.get() is not None, "The scaler does not answer")
        with self.progress.step(f"Flower on {flower_url(self.settings)}"):
            health = f"{flower_url(self.settings)}/healthcheck"
            self._wait_for(flower, lambda: answers(health), "Flower does not answer")
        # What ended before it was ready would end again. From here on each of them finds all that it needs in AWS.
        for service in (host, scaler, flower, web):
            service.restarts = True
        self._enrol(found)
        self._say_where()
        while True:
            self.services.look()
            self._save(self.gallery)
            time.sleep(SAVE_EVERY_S)

    def _wait_for(self, service: Service, condition: Callable[[], bool], what: str) -> None:
        self.services.wait_for(condition, timeout_s=START_TIMEOUT_S, what=what, logs=lambda: [service.log])

    def _save(self, gallery: state.GalleryState) -> None:
        """Keep the gallery; a full disk or an AWS that is silent for a while is warned of, and it is tried again."""
        try:
            gallery.save()
        except LocalError as error:
            if not self._unsaved:
                self.progress.warn(f"{error.detail} Everything else goes on, and this is tried again.")
            self._unsaved = True
        else:
            if self._unsaved:
                self.progress.note("The gallery is kept again.")
            self._unsaved = False

    def finish(self) -> None:
        """Stop the services and keep the gallery."""
        self.progress.note("stopping … (Ctrl-C again: at once)")
        # The embedded AWS last: the others still finish what they have begun.
        self.services.stop([each for each in self.services.running if each.name != AWS])
        if self.gallery:
            self.gallery.save()

    def _start(self, name: str, module: str, *arguments: str) -> Service:
        return self.services.start(name, [sys.executable, "-m", module, *arguments])

    def _start_aws(self) -> None:
        aws = self._start(AWS, "faceapp.local.aws", "--port", str(self.settings.aws_port))
        aws.holds = "It held the queues and buckets in memory: start again, the people are kept."
        self._wait_for(aws, lambda: LISTENING in aws.log_tail(), "The embedded AWS does not listen")

    def _record_instance(self) -> None:
        tags = [{"Key": "Name", "Value": "web-instance"}, {"Key": "faceapp:stack", "Value": self.settings.prefix}]
        self._aws("ec2").run_instances(
            ImageId=IMAGE,
            InstanceType="t3.micro",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )

    def _restore_gallery(self, folder: Path) -> state.GalleryState:
        if self.options.fresh and folder.exists():
            shutil.rmtree(folder)
        # A save that fails is tried again anyway.
        gallery = state.GalleryState(self._aws("s3", attempts=1), self.settings.gallery_bucket, folder)
        if gallery.restore():
            self.progress.note("  the people of the last time are back (--fresh starts without)")
        return gallery

    def _enrol(self, found: Mapping[str, list[Path]]) -> None:
        known = self.client.people()
        if found:
            what = f"people from {self.options.people}"
        elif known or not self.options.samples:
            return
        else:
            what, found = "a first gallery from sample photos", self._samples()
        with self.progress.step(f"{what}, enrolled by the first worker, which boots for it"):
            self._enrol_all(found)

    def _samples(self) -> dict[str, list[Path]]:
        try:
            with self.progress.step("sample photos"):
                return sample_people()
        except LocalError as error:
            self.progress.warn(f"The gallery stays empty: {error.detail}")
            return {}

    def _enrol_all(self, found: Mapping[str, list[Path]]) -> None:
        """Enrol them in another thread, while this one watches the services: with no worker nobody would answer.

        Raises LocalError, with what the logs say, when a photo is not answered in time.
        """
        todo: Iterator[Enrolled] = enrol_people(self.client, found)
        while each := self._in_time(lambda: next(todo, None)):
            if each.refusal:
                self.progress.warn(f"{each.name}/{each.photo.name} was refused: {each.refusal}")

    def _in_time(self, work: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except FaceappError as error:
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        self.services.wait_for(
            done.done,
            timeout_s=ENROL_TIMEOUT_S,
            what="No worker has answered: the first photo is not enrolled",
            logs=self._worker_logs,
        )
        return done.result()

    def _worker_logs(self) -> list[Path]:
        """The logs that say why no worker answers: the workers' own, the compute host's and the scaler's."""
        instances = sorted(self.services.log_folder.glob(f"{compute.APP_TIER}*.log"))
        return [*instances, *(each.log for each in self.services.running if each.name in ("compute host", "scaler"))]

    def _say_where(self) -> None:
        probe = samples.default_folder() / "obama3.jpg"
        photo = probe if probe.exists() else "photo.jpg"
        folder, key = state.default_folder(self.settings.prefix), self.settings.local_key
        flower = "" if self.settings.flower_basic_auth else f"?key={key}"
        most = self.settings.scaler_max_instances
        self.progress.note(
            f"""
faceapp is ready.
  page       {self.client.url}/#key={key}
  API        {self.client.url}/docs#key={key}
  AWS        {endpoint(self.settings)} (boto3, aws, celery: source {shlex.quote(str(folder / credential.AWS))})
  Flower     {flower_url(self.settings)}/{flower}
  scaler     {scaler_url(self.settings)}/status ({self.settings.scaler_policy}: 0 to {most} workers)
  try it     curl -F inputFile=@{shlex.quote(str(photo))} {self.client.url}
             curl -K {shlex.quote(str(folder / credential.CURL))} {self.client.url}/v1/people
The addresses with a key open everything until Ctrl-C: keep them to yourself. Commands find the key by themselves.
Ctrl-C stops everything."""
        )


def at_local_pace(settings: Settings) -> Settings:
    """The settings with the times that a stack on this machine needs, where they are longer, and an image of moto's."""
    return replace(
        settings,
        queue_wait_s=min(settings.queue_wait_s, LONGEST_POLL_S),
        scaler_tick_s=min(settings.scaler_tick_s, LONGEST_TICK_S),
        worker_image=IMAGE,
        scaler_boot_s=min(settings.scaler_boot_s, settings.local_boot_max_s + WORKER_START_S),
    )


def check_ports(settings: Settings) -> None:
    """Raises LocalError when a port that is needed is taken."""
    for host, port, variable in (
        (settings.web_host, settings.web_port, "FACEAPP_WEB_PORT"),
        ("127.0.0.1", settings.aws_port, "FACEAPP_AWS_PORT"),
        (settings.scaler_host, settings.scaler_port, "FACEAPP_SCALER_PORT"),
        (settings.flower_host, settings.flower_port, "FACEAPP_FLOWER_PORT"),
    ):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            raise LocalError(
                f"Port {port} on {host} cannot be used ({error.strerror or error}): choose another with {variable}."
            ) from error


def environment(settings: Settings) -> dict[str, str]:
    """The services' environment: this one's, with the settings, and AWS's variables pointing at the embedded AWS.

    Nothing of the user's own AWS setup stays in it, so that no mistake here can reach a real account.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FACEAPP_"))}
    # The user's key is for whatever the user asks elsewhere; no service needs it.
    passed_on = [each.name for each in fields(settings) if each.name != "api_key"]
    environ.update({f"FACEAPP_{name.upper()}": str(getattr(settings, name)) for name in passed_on})
    environ.update(
        credential.aws_keys(settings.local_key),
        AWS_ENDPOINT_URL=endpoint(settings),
        AWS_REGION=REGION,
        AWS_DEFAULT_REGION=REGION,
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
        PYTHONUNBUFFERED="1",
    )
    # A proxy would be asked for the loopback, too.
    return {**environ, **no_proxy(os.environ)}


def ports_of(settings: Settings) -> dict[str, int]:
    """Where the parts that take the start's credential answer."""
    return {"web": settings.web_port, "AWS": settings.aws_port, "Flower": settings.flower_port}


def for_a_shell(environ: Mapping[str, str]) -> dict[str, str]:
    """What boto3, celery and the commands need of the services' environment to look at this start."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("AWS_") or name.lower() == "no_proxy" or name in OF_A_START
    }


def endpoint(settings: Settings) -> str:
    """Where the embedded AWS answers."""
    return f"http://127.0.0.1:{settings.aws_port}"


def scaler_url(settings: Settings) -> str:
    """Where the scaler answers."""
    return f"http://{reachable(settings.scaler_host)}:{settings.scaler_port}"


def flower_url(settings: Settings) -> str:
    """Where Flower answers."""
    return f"http://{reachable(settings.flower_host)}:{settings.flower_port}"


def answers(url: str) -> bool:
    """Whether something at `url` answers, whatever it says."""
    try:
        # A proxy of the environment's would look for the loopback somewhere else.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def reachable(host: str) -> str:
    """The host to connect to for what listens on `host`, as it stands in a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
