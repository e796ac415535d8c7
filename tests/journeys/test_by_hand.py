"""README's "By hand" works as it is printed: the block is taken out of the page and typed at a terminal, line by line.

The clone is a folder with the page's files in it; its base and its dataset are tiny, and nothing is downloaded.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scripts.kit import tiny_model
from scripts.kit.appliance import ROOT, free_port

PASSPHRASE = b"correct horse battery"
ANSWERS = (
    (re.compile(rb"assphrase[^\n]*: $|Repeat for confirmation: $"), PASSPHRASE),
    (re.compile(rb"\[y/N\]: $"), b"y"),
    (re.compile(rb"What your signature means[^\n]*: $"), b"No objection."),
)
MOST_S = 300


def _block() -> str:
    """The first block of shell commands under the title."""
    page = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## By hand\n")[1]
    found = re.search(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


def _program(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def clone() -> Iterator[Path]:
    """Short, since a socket's path is."""
    folder = Path(tempfile.mkdtemp(prefix="ap-"))
    for name in ("scripts/setup", "scripts/fetch_base.py"):
        assert (ROOT / name).exists()
        _program(folder / name, "exit 0")  # the environment and the base are here already
    for name, module in (("appliance", "appliance"), ("appliance-verify", "appliance.verifier")):
        _program(folder / ".venv/bin" / name, f'PYTHONPATH={ROOT} exec {sys.executable} -P -m {module} "$@"')
    examples = folder / "examples" / "contracts"
    examples.mkdir(parents=True)
    shutil.copy(ROOT / "examples/contracts/recipe.yaml", examples)
    tiny_model.write_csv(examples / "clauses.csv", tiny_model.clauses(60))
    (folder / ".cache").mkdir()
    tiny_model.build_base(folder / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    yield folder
    _end_service(folder / "data" / "appliance" / "appliance.lock")
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


def _end_service(lock: Path) -> None:
    """The one that the first command started."""
    text = lock.read_text().partition("\n")[0] if lock.exists() else ""
    if text.isdigit():
        os.kill(int(text), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and Path(f"/proc/{text}").exists():
            time.sleep(0.05)


def _typed(script: Path, environment: dict[str, str]) -> tuple[int, bytes]:
    """At a terminal, by somebody who answers what is asked; the shell ends at the first command that fails."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(script.parent)
        os.execve("/bin/bash", ["bash", "--norc", "-eux", str(script)], environment)
    shown, answered, deadline = b"", 0, time.monotonic() + MOST_S
    while time.monotonic() < deadline:
        try:
            shown += os.read(terminal, 65_536)
        except OSError:  # the terminal is closed with its last program
            break
        for asked, answer in ANSWERS:
            if asked.search(shown[answered:]):
                answered = len(shown)
                os.write(terminal, answer + b"\n")
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


@pytest.mark.outside
@pytest.mark.slow
def test_readmes_steps_work_as_printed(clone: Path) -> None:
    port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(clone),
        "XDG_DATA_HOME": str(clone / "data"),
        "APPLIANCE_LISTEN": f"127.0.0.1:{port}",
        "TERM": "dumb",
        "LANG": "C.UTF-8",
    }
    script = clone / "typed"
    script.write_text(_block() + 'printf %s "$token" > token\n', encoding="utf-8")
    code, shown = _typed(script, environment)
    assert code == 0, shown[-4_000:].decode("utf-8", "replace")
    assert b"verified" in shown
    head = {"Authorization": f"Bearer {(clone / 'token').read_text()}"}
    # An embedded service serves the unit for as long as it runs; loading takes a moment.
    deadline = time.monotonic() + 60
    while not (found := httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=head, timeout=30).json()["data"]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert [model["id"] for model in found] == ["labels"]
