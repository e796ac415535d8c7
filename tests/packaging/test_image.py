"""The image: built from a bundle without a network, and started as an unprivileged account on a read-only root."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.packaging import install
from tests.kit.debian_root import write_root
from tests.kit.wheelhouse import make_wheelhouse

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.1.0.dev1+gaaaaaaaa"
RUN = """
set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
limits="--ulimit nofile=$(ulimit -Hn):$(ulimit -Hn) --ulimit nproc=$(ulimit -Hu):$(ulimit -Hu)"
stored="--root {work}/storage --runroot {work}/run --storage-driver=vfs"
podman $stored import {work}/root.tar localhost/debian:trixie >&2
rm {work}/root.tar
build="buildah $stored build $limits --network=none --pull=never"
! $build --secret id=release.pem,src={work}/other.pem -f {bundle}/oci/Containerfile -t refused {bundle} >&2
$build --secret id=release.pem,src={work}/release.pem -f {bundle}/oci/Containerfile -t localhost/appliance {bundle} >&2
run="podman $stored run $limits --rm --pull=never --cgroups=disabled --network=none --read-only --cap-drop=all"
run="$run --security-opt no-new-privileges"
$run localhost/appliance --version
$run --entrypoint /usr/bin/python3 localhost/appliance -I -c '{probe}'
$run -v {work}/home:/var/lib/appliance:U localhost/appliance database check --json
"""
PROBE = """
import json, os, pathlib
def writes(path):
    try:
        pathlib.Path(path, "x").write_text("x")
    except OSError:
        return False
    return True
places = ["/", "/opt/appliance", "/etc", "/usr", "/var/lib/appliance"]
print(json.dumps({
    "user": os.getuid(),
    "writes": [place for place in places if writes(place)],
    "networks": os.listdir("/sys/class/net"),
    "bundle": [name for name in ("/bundle", "/run/secrets/release.pem") if os.path.exists(name)],
}))
"""


def test_an_image_is_built_from_a_bundle_and_runs_without_rights(tmp_path: Path) -> None:
    for name in ("release", "other"):
        key = tmp_path / f"{name}.key"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", tmp_path / f"{name}.pem"], check=True)
    wheels, bundle = make_wheelhouse(tmp_path / "wheels", VERSION), tmp_path / "bundle"
    command = [sys.executable, ROOT / "scripts" / "bundle", "--key", tmp_path / "release.key", "--wheels", wheels]
    done = subprocess.run(
        [*command, "--no-deb", "--output", tmp_path / "dist"], capture_output=True, text=True, check=True
    )
    bundle.mkdir()
    subprocess.run(["tar", "-C", bundle, "-xf", done.stdout.strip()], check=True)
    assert install.digest(bundle / "oci/Containerfile") == install.digest(ROOT / "scripts/packaging/oci/Containerfile")
    write_root(tmp_path / "root.tar")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "revision").write_text("a")
    script = RUN.format(work=tmp_path, bundle=bundle, probe=PROBE)
    alone = ["unshare", "--mount", "--cgroup", "--net", "bash", "-c", script]
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "expected a signature by /run/secrets/release.pem" in done.stderr, "another key builds no image"
    version, probed, checked = done.stdout.splitlines()
    assert version == f"appliance {VERSION}"
    assert json.loads(probed) == {"user": 10001, "writes": ["/var/lib/appliance"], "networks": ["lo"], "bundle": []}
    assert json.loads(checked)["entries"] == 1
