#!/usr/bin/env bash
# Makes an instance's image out of Debian: `provision.sh --sources faceapp-<version>.tar.gz`, as root. Packer runs it
# (faceapp.pkr.hcl). It can be run again: each step leaves what it finds done.
#
#   --sources FILE      the checkout's sources, which are built and installed (`faceapp deploy image` packs them)
#   --root DIR          install into DIR and change nothing else: no packages of Debian's, no users, no services
#   --keep              do not clean up (Packer's own key, logs, the machine's id): for a machine that is used as it is
#
# Variables:
#   PYTHON              python3 unless said; 3.11 or newer
#   TORCH_INDEX         where pip finds torch's CPU build: the index that PyTorch's site names for it. pip's own index
#                       has builds with CUDA for x86-64, which are gigabytes that these instances have no use for.
#   TORCH_SHA256        the checksums of torch's and torchvision's files there, with a space between them. Every other
#                       package, and these from pip's own index, are checked by requirements.txt
#   CUDA                yes lets a build with CUDA pass (instances with GPUs)
#   FLUENT_BIT_DEB      fluent-bit's package for this Debian, a file or a URL, for ShipLogs=yes; with its checksum:
#   FLUENT_BIT_SHA256
# pip's and apt's own variables and settings mean what they mean to pip and apt.
set -euo pipefail

PYTHON=${PYTHON:-python3}
TORCH_INDEX=${TORCH_INDEX:-}
TORCH_SHA256=${TORCH_SHA256:-}
CUDA=${CUDA:-no}
FLUENT_BIT_DEB=${FLUENT_BIT_DEB:-}
FLUENT_BIT_SHA256=${FLUENT_BIT_SHA256:-}

# What is not compiled here is compiled at each start of a service, which cannot keep it.
unset PYTHONDONTWRITEBYTECODE PIP_NO_COMPILE

deploy=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$(dirname "$deploy")/requirements.txt
build=${requirements%.txt}-build.txt
cuda_libraries=${requirements%.txt}-cuda.txt
sources='' root='' clean=yes

main() {
    while (($#)); do
        case $1 in
            --sources) sources=${2:?--sources takes a file} && shift ;;
            --root) root=${2:?--root takes a folder} && shift ;;
            --keep) clean=no ;;
            *) die "$1 is no option of $0" ;;
        esac
        shift
    done
    [[ -f $sources ]] || die "--sources names what to install, and there is no file '$sources'"
    local file
    for file in "$requirements" "$build" "$cuda_libraries"; do
        [[ -f $file ]] || die "there is no $file beside $deploy"
    done
    [[ -n $root || $EUID == 0 ]] || die 'this needs root (or --root DIR)'
    venv=$root/opt/faceapp/venv

    if [[ -z $root ]]; then
        step 'packages of Debian' install_packages
        step 'users' add_users
    fi
    step 'faceapp and what it needs' install_faceapp
    step 'units and configuration' install_files
    step 'everything, once' load_everything
    if [[ -z $root ]]; then
        step 'services' set_up_services
        [[ $clean == no ]] || step 'cleaning up' clean_up
    fi
    say 'done'
}

say() { printf 'provision: %s\n' "$*"; }

die() {
    printf 'provision: %s\n' "$*" >&2
    exit 1
}

# Says what comes and how long it took.
step() {
    local began_s=$SECONDS
    say "$1"
    "$2"
    say "$1: $((SECONDS - began_s)) s"
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends \
        ca-certificates curl nginx openssl python3 python3-venv unattended-upgrades
    if [[ -n $FLUENT_BIT_DEB ]]; then
        install_fluent_bit
    fi
}

install_fluent_bit() {
    local folder
    folder=$(mktemp -d)
    if [[ -f $FLUENT_BIT_DEB ]]; then
        cp "$FLUENT_BIT_DEB" "$folder/fluent-bit.deb"
    else
        curl --fail --silent --show-error --location --proto =https --output "$folder/fluent-bit.deb" "$FLUENT_BIT_DEB"
    fi
    echo "${FLUENT_BIT_SHA256:?FLUENT_BIT_DEB goes with FLUENT_BIT_SHA256}  $folder/fluent-bit.deb" | sha256sum --check --quiet
    # So that apt, which reads as a user of its own, can.
    chmod -R a+rX "$folder"
    apt-get install -y -qq --no-install-recommends "$folder/fluent-bit.deb"
    rm -r "$folder"
}

# Nobody can log in as one of these; a role of AWS's and a user here belong to each service (nginx's and the logs' have
# no secrets in common with the others').
add_users() {
    local user
    for user in faceapp faceapp-scaler faceapp-flower faceapp-nginx faceapp-logs; do
        getent passwd "$user" >/dev/null ||
            useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
    done
}

install_faceapp() {
    [[ -x $venv/bin/python ]] || "$PYTHON" -m venv "$venv"
    # What builds packages that come as source, so that no build fetches tools of its own.
    pip install --no-deps --requirement "$build"
    # These first and alone: whatever is wrong with them shows before gigabytes came, and no other package is looked
    # for in their index.
    local torch
    torch=$(mktemp)
    torch_requirements >"$torch"
    pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement "$torch"
    rm "$torch"
    local cuda
    cuda=$("$venv/bin/python" - <<'END'
import importlib.util
import pathlib
import runpy

# torch itself cannot be imported before its requirements are there.
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
print(runpy.run_path(str(folder / "version.py"))["cuda"] or "")
END
    )
    [[ -z $cuda || $CUDA == yes ]] ||
        die "torch's build is for CUDA $cuda: name the index of the CPU builds in TORCH_INDEX, or set CUDA=yes"
    # It names every package with the hashes of its files: nothing is resolved.
    pip install --no-deps --no-build-isolation --use-pep517 --requirement "$requirements"
    [[ -z $cuda ]] || pip install --no-deps --requirement "$cuda_libraries"
    # Without isolation, in which pip would fetch a build backend without looking at its hash.
    pip install --no-deps --no-build-isolation --use-pep517 --force-reinstall "$sources"
    # Both would only show at run time.
    "$venv/bin/python" -m pip check
    # Services could not: their file system is read-only. pip does so itself, unless one of its settings forbids it.
    local package
    for package in celery_sqs faceapp; do
        "$venv/bin/python" -m compileall -q "$("$venv/bin/python" -c "import $package; print($package.__path__[0])")"
    done
}

# torch and torchvision, with the hashes of the files that are meant.
torch_requirements() {
    if [[ -z $TORCH_INDEX ]]; then
        awk '/^(torch|torchvision)==/ { entry = 1 } entry { print } !/\\$/ { entry = 0 }' "$requirements"
        return
    fi
    [[ -n $TORCH_SHA256 ]] || say 'TORCH_SHA256 is not set: torch is taken as its index has it' >&2
    local pin sum
    while read -r pin; do
        for sum in $TORCH_SHA256; do
            pin+=" --hash=sha256:$sum"
        done
        echo "$pin"
    done < <(grep -oE '^(torch|torchvision)==[^ ]+' "$requirements")
}

pip() {
    "$venv/bin/python" -m pip "$1" --quiet --disable-pip-version-check --no-cache-dir "${@:2}"
}

install_files() {
    local systemd=$root/etc/systemd
    install -d -m 755 "$root"/opt/faceapp/libexec "$systemd"/{system/faceapp-.service.d,journald.conf.d} \
        "$root"/etc/{faceapp,cloud/cloud.cfg.d}
    install -m 755 "$deploy"/libexec/* "$root/opt/faceapp/libexec"
    install -m 644 "$deploy"/units/*.{service,target} "$systemd/system"
    install -m 644 "$deploy"/units/faceapp-.service.d/*.conf "$systemd/system/faceapp-.service.d"
    install -m 644 "$deploy"/units/journald.conf.d/*.conf "$systemd/journald.conf.d"
    install -m 644 "$deploy/nginx/faceapp.conf" "$root/etc/faceapp/nginx.conf"
    install -m 644 "$deploy/logs/fluent-bit.yaml" "$root/etc/faceapp/fluent-bit.yaml"
    install -m 644 "$deploy/image/cloud.cfg" "$root/etc/cloud/cloud.cfg.d/90-faceapp.cfg"
    if [[ -z $root ]]; then
        install -d -m 750 -o faceapp-nginx -g faceapp-nginx /etc/faceapp/tls
    else
        install -d -m 750 "$root/etc/faceapp/tls"
    fi
}

# An image that lacks something, whose model does not load or whose networks do not run, fails here and not on every
# instance.
load_everything() {
    (cd / && env -i PATH="$PATH" "$venv/bin/python" -W ignore - <<'END'
import io

import numpy as np
from PIL import Image

# What the services import, at once or later.
import celery_sqs.flower.app
import faceapp.stack.instance
import faceapp.scaler
import faceapp.tasks
import faceapp.web
import gunicorn.workers.ggevent
from faceapp.config import Settings
from faceapp.recognition import Recogniser

settings = Settings()
recogniser = Recogniser(embedder=settings.embedder, **settings.photo_limits)
photo = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(photo, "JPEG")
faces = recogniser.describe(photo.getvalue()).faces
print(f"provision: {recogniser.model} finds {len(faces)} faces in noise")
END
    )
}

set_up_services() {
    local unit units=()
    for unit in /etc/systemd/system/faceapp-*.{service,target}; do
        # It names fluent-bit's program, and an image need not have that.
        [[ $unit == */faceapp-logs.service && ! -x /opt/fluent-bit/bin/fluent-bit ]] || units+=("$unit")
    done
    systemd-analyze verify "${units[@]}" || die 'systemd does not take the units'
    # No targets and no services of the tiers: faceapp-instance starts those of the instance's own.
    systemctl enable --quiet faceapp-instance.service
    # Nothing is updated or indexed while a worker boots: faceapp-web.target starts apt's timers, which do that. And the
    # nginx is ours, without root.
    local disabled
    for disabled in nginx.service unattended-upgrades.service e2scrub_reap.service \
        {apt-daily,apt-daily-upgrade,dpkg-db-backup,e2scrub_all,man-db}.timer; do
        [[ ! -e /lib/systemd/system/$disabled ]] || systemctl disable --quiet "$disabled"
    done
    # Instances may speak TLS outward and nothing else.
    find /etc/apt '(' -name '*.list' -o -name '*.sources' ')' -exec sed --in-place 's#http://#https://#' {} +
    cat >/etc/apt/apt.conf.d/90faceapp <<'END'
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
END
}

# What belongs to this machine or to who made it, and must not be in an image.
clean_up() {
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
    if command -v cloud-init >/dev/null; then
        cloud-init clean --logs --seed
    fi
    rm -f /etc/faceapp/*.env /etc/faceapp/aws-*.config /etc/faceapp/tls/*
    rm -f /etc/ssh/ssh_host_* /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys
    rm -f /root/.bash_history /home/*/.bash_history /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
    rm -rf /var/log/journal/* /tmp/* /var/tmp/*
    find /var/log -type f -exec truncate --size 0 {} +
    # Empty, not missing: a new id is made, and systemd does not take it for a first boot, at which it would enable every
    # unit that it finds.
    : >/etc/machine-id
    rm -f /var/lib/dbus/machine-id
}

main "$@"
