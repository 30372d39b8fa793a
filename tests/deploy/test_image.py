"""deploy/image: the script that makes an instance's image, run for real into a folder, and what Packer says."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import uuid
from pathlib import Path

import pytest
import torch

from faceapp import __version__
from faceapp.config import Settings
from faceapp.deploy.image import pack
from faceapp.stack import data_tier as deployment
from tests.deploy.test_units import IMAGE
from tests.support.aws import plain_client
from tests.support.programs import needs
from tests.support.services import REPOSITORY, users_environ
from tests.support.units import DEPLOY, SERVICES, values

PROVISION = DEPLOY / "image" / "provision.sh"
TEMPLATE = DEPLOY / "image" / "faceapp.pkr.hcl"
NEWER = re.compile(
    r"^  metadata_options \{.*?^  \}\n|^  imds_support .*?\n|^  temporary_security_group_source_public_ip .*?\n",
    re.MULTILINE | re.DOTALL,
)
"""What Debian's Packer (1.6) does not know: the instances' metadata service, and who may log in while it builds."""


def a_python(folder: Path, packages: Path) -> Path:
    """A Python whose virtual environments find the packages of a folder as if they had been installed."""
    made = folder / "python"
    made.write_text(
        f'#!/bin/sh\nset -e\n{sys.executable} "$@"\n'
        # Python 3.11's environments come with a setuptools of their own, which is too old for torch.
        'rm -rf "$3"/lib/python3*/site-packages/setuptools*\n'
        f'for place in "$3"/lib/python3*/site-packages; do echo {packages} > "$place/others.pth"; done\n'
    )
    made.chmod(0o755)
    return made


def provision(root: Path, python: Path, *options: str, **named: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in users_environ().items() if not name.startswith("PIP_")}
    return subprocess.run(
        [str(PROVISION), "--root", str(root), *options],
        env={**environ, "PYTHON": str(python), "PIP_NO_INDEX": "1", **named},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("sources"))


def packed(archive: Path) -> set[str]:
    """The packages' files."""
    with tarfile.open(archive) as opened:
        names = {each.name.partition("/")[2] for each in opened if each.isfile()}
    return {each for each in names if each.startswith(("faceapp/", "celery_sqs/"))}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.system
def test_the_image_has_what_its_units_run_and_can_be_made_twice(sources: Path, tmp_path: Path) -> None:
    root, python = tmp_path / "root", a_python(tmp_path, Path(sysconfig.get_path("purelib")))
    # Whichever build of torch the tests run with.
    build = {"CUDA": "yes"} if torch.version.cuda else {}
    first = provision(root, python, "--sources", str(sources), **build)
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"provision: dlib-\S+ finds \d+ faces in noise", first.stdout)

    for service in SERVICES:
        for line in values(service.name, "ExecStart"):
            program = Path(line.split()[0])
            if program.is_relative_to("/opt/faceapp"):
                assert os.access(root / program.relative_to("/"), os.X_OK), line
        assert (root / "etc" / "systemd" / "system" / service.name).read_bytes() == service.read_bytes()
    faceapp = root / "opt" / "faceapp" / "venv" / "bin" / "faceapp"
    said = subprocess.run([str(faceapp), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert __version__ in said
    # The file system is read-only for the services: what pip did not compile is compiled at each start.
    [package] = root.glob("opt/faceapp/venv/lib/*/site-packages/faceapp")
    assert (package / "__pycache__").is_dir()
    assert (package.with_name("celery_sqs") / "scaler" / "__pycache__").is_dir()
    assert (package / "stack" / "stack.yaml").read_text() == (DEPLOY / "stack.yaml").read_text()
    assert packed(sources) - tree(package.parent) == set()

    before = tree(root)
    second = provision(root, python, "--sources", str(sources), **build)
    assert second.returncode == 0, second.stdout + second.stderr
    assert tree(root) == before


@pytest.mark.system
def test_a_torch_with_cuda_is_refused_before_its_gigabytes_come(tmp_path: Path) -> None:
    packages, requirements = tmp_path / "packages", (REPOSITORY / "requirements.in").read_text()
    for name in ("torch", "torchvision", "setuptools"):
        [version] = re.findall(rf"^{name}==(.*)$", requirements, re.MULTILINE)
        about = packages / f"{name}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (packages / "torch").mkdir()
    (packages / "torch" / "__init__.py").write_text("raise ImportError('its CUDA is not there')\n")
    (packages / "torch" / "version.py").write_text("cuda = '13.0'\n")
    (tmp_path / "faceapp.tar.gz").touch()
    root = tmp_path / "root"
    done = provision(root, a_python(tmp_path, packages), "--sources", str(tmp_path / "faceapp.tar.gz"))
    assert done.returncode == 1
    assert "torch's build is for CUDA 13.0: name the index of the CPU builds in TORCH_INDEX" in done.stderr
    assert not (root / "etc").exists()


def test_the_script_says_what_it_lacks(tmp_path: Path) -> None:
    done = provision(tmp_path / "root", Path(sys.executable), "--sources", "nowhere.tar.gz")
    assert (done.returncode, done.stderr) == (
        1,
        "provision: --sources names what to install, and there is no file 'nowhere.tar.gz'\n",
    )
    assert not (tmp_path / "root").exists()


def packer(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "CHECKPOINT_DISABLE": "1"}
    command = [needs("packer"), *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240)


def test_packer_finds_its_files_in_order() -> None:
    for file in sorted((DEPLOY / "image").glob("*.pkr.hcl")):
        done = packer("fmt", "-check", str(file), folder=DEPLOY / "image")
        assert done.returncode == 0, file.name


def test_packer_takes_the_template(tmp_path: Path) -> None:
    copy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, copy)
    for each in ("", "-build", "-cuda"):
        shutil.copy(REPOSITORY / f"requirements{each}.txt", tmp_path)
    (tmp_path / "faceapp.tar.gz").touch()
    text, left_out = NEWER.subn("", TEMPLATE.read_text())
    assert left_out == 3
    (copy / "image" / TEMPLATE.name).write_text(text)
    given = {"region": "us-east-1", "version": __version__, "sources": str(tmp_path / "faceapp.tar.gz")}

    def validate(**variables: str) -> subprocess.CompletedProcess[str]:
        options = [f"-var={name}={value}" for name, value in {**given, **variables}.items()]
        return packer("validate", *options, TEMPLATE.name, folder=copy / "image")

    done = validate()
    assert done.returncode == 0, done.stdout
    assert "The architecture is amd64 or arm64" in validate(architecture="x86").stdout
    assert "Bad source" in validate(sources="nowhere.tar.gz").stdout


def test_packer_hands_over_everything_that_the_script_installs() -> None:
    handed = set(re.findall(r'"\$\{path\.root\}/\.\./(\w+)"', TEMPLATE.read_text()))
    assert handed == set(re.findall(r"\$deploy\"?/(\w+)", PROVISION.read_text()))


def test_cloud_init_takes_the_user_data(aws: str, tmp_path: Path) -> None:
    needs("cloud-init")
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:12]}")
    plain_client("cloudformation", aws).create_stack(
        StackName=settings.prefix,
        TemplateBody=deployment.body(),
        Parameters=[
            {"ParameterKey": name, "ParameterValue": value}
            for name, value in {
                **deployment.parameters(settings),
                "WorkerImage": IMAGE,
                "WebImage": IMAGE,
                "PlainSettings": "FACEAPP_LOG_LEVEL=DEBUG FACEAPP_WEB_PROCESSES=2",
            }.items()
        ],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    ec2 = plain_client("ec2", aws)
    for tier in ("worker", "web"):
        [version] = ec2.describe_launch_template_versions(
            LaunchTemplateName=f"{settings.prefix}-{tier}", Versions=["$Latest"]
        )["LaunchTemplateVersions"]
        data = base64.b64decode(version["LaunchTemplateData"]["UserData"]).decode()
        check_user_data(data, tmp_path)
        assert "FACEAPP_WEB_PROCESSES=2" in data


def test_cloud_init_takes_the_user_data_of_several_web_instances(tmp_path: Path) -> None:
    needs("cloud-init")
    text = (DEPLOY / "balanced.yaml").read_text()
    # Behind its first line, which has cloud-init fill in the instance's id.
    [data] = re.findall(r"## template: jinja\n(.*?)^ *- More:", text, re.MULTILINE | re.DOTALL)
    check_user_data(textwrap.dedent(data).replace("{{ v1.instance_id }}", "i-0123456789abcdef0"), tmp_path)
    with pytest.raises(AssertionError, match="write_files"):
        check_user_data(textwrap.dedent(data).replace("path:", "where:"), tmp_path)


def check_user_data(data: str, folder: Path) -> None:
    file = folder / "user-data"
    file.write_text(data)
    done = subprocess.run(
        [needs("cloud-init"), "schema", "--config-file", str(file)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
