"""A small wheelhouse in place of the real one of hundreds of megabytes: an `appliance` that prints its version and a
library. What builds and installs it is the real thing."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

MAIN = """
import json, os, pathlib, signal, socket, sys, time
VERSION = "{version}"
HOME = pathlib.Path(os.environ.get("APPLIANCE_HOME", "/nonexistent"))
REVISION = "b" if VERSION.endswith("bbbbbbbb") else "a"

def fail(code, text):
    print(text, file=sys.stderr)
    sys.exit(code)

def read():
    path = HOME / "revision"
    return path.read_text() if path.exists() else "a"

def write(revision):
    (HOME / "revision").write_text(revision)

def serve():
    if read() == "a":
        write(REVISION)
    if read() != REVISION or (HOME / "broken").exists() and (HOME / "broken").read_text() == VERSION:
        fail(5, "this start is broken")
    with open(HOME / "log", "a") as log:
        print("started", VERSION, file=log)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"READY=1\\nSTATUS=" + VERSION.encode(), os.environ["NOTIFY_SOCKET"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        time.sleep(60)

def main():
    match sys.argv[1:]:
        case ["--version"]:
            print("appliance", VERSION)
        case ["serve"]:
            serve()
        case ["database", "check", "--json"]:
            if read() != REVISION:
                fail(5, "revision: expected " + REVISION)
            print(json.dumps({{"revision": REVISION, "entries": 1, "continuing": [], "ending": []}}))
        case ["database", "migrate", *to, "--json"]:
            before = read()
            write(to[1] if to else REVISION)
            print(json.dumps({{"before": before, "after": read()}}))
        case ["config", "show", "--json"]:
            print(json.dumps([{{"name": "operations", "value": "off"}}]))
        case ["backup", "create", "--json"]:
            if not (HOME / "recipients").exists():
                fail(2, "backup_recipients: expected keys of age, got none")
            if (HOME / "slow").exists():
                (HOME / "waits").touch()
                time.sleep(3600)
            print(json.dumps({{"backup": "20261130T010203Z"}}))
        case _:
            sys.exit(2)
"""
LAYERS = "def detect_layers():\n    return {'seccomp': True}\n"


def make_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str], *, metadata: str = "", programs: str = ""
) -> Path:
    """Write a wheel; `metadata` and `programs` are lines of METADATA and entry points."""
    info = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/licenses/LICENSE": f"the licence of {name}\n",
    }
    if programs:
        members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{programs}\n"
    rows = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(zipfile.ZipInfo(member, (2026, 1, 1, 0, 0, 0)), text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def require(folder: Path, *lines: str) -> None:
    """Write the requirements of all wheels in the folder, and more lines."""
    found = []
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found.append(f"{name}=={version} \\\n    --hash=sha256:{digest}")
    (folder / "requirements.txt").write_text("\n".join([*found, *lines, ""]))


def make_wheelhouse(folder: Path, version: str, *, says: str = "") -> Path:
    """Make a wheelhouse of a version; `says` is what its program prints as its version instead."""
    folder.mkdir()
    modules = {f"appliance/{name}.py": "" for name in ("__init__", "wiring", "verifier", "witness")}
    modules |= {f"appliance/{name}/__init__.py": "" for name in ("cli", "worker", "sandbox")}
    modules |= {"appliance/worker/serve.py": "import lib\n", "appliance/sandbox/description.py": LAYERS}
    modules["appliance/cli/main.py"] = MAIN.format(version=says or version)
    needs = "Requires-Dist: lib>=1\nRequires-Dist: absent; extra == 'x'\nLicense-Expression: Apache-2.0"
    make_wheel(folder, "appliance", version, modules, metadata=needs, programs="appliance = appliance.cli.main:main")
    make_wheel(
        folder, "lib", "1.2", {"lib.py": "X = 1\n"}, metadata="Classifier: License :: OSI Approved :: MIT License"
    )
    require(folder)
    return folder
