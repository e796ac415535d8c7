"""The commands of the command-line tutorial work as printed: the test types the block at a terminal, line by line.

The clone is a folder with the page's files in it; its base and its dataset are tiny, and nothing is downloaded.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from scripts.kit import tiny_model
from scripts.kit.appliance import ROOT
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for

PASSPHRASE = b"correct horse battery"
ANSWERS = (
    (re.compile(rb"assphrase[^\n]*: $|Repeat for confirmation: $"), PASSPHRASE),
    (re.compile(rb"\[y/N\]: $"), b"y"),
    (re.compile(rb"What your signature means[^\n]*: $"), b"No objection."),
)
MOST_S = 900
MOST_PASSPHRASES = 4
"""Times that the reader types a passphrase: two for a new key, one to prove it, and one to log in."""


def _block() -> str:
    """Return the first block of shell commands of the page."""
    page = (ROOT / "docs/tutorials/command-line.md").read_text(encoding="utf-8")
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
    """End the service that the first command started."""
    text = lock.read_text().partition("\n")[0] if lock.exists() else ""
    if text.isdigit():
        with suppress(ProcessLookupError):
            service = os.pidfd_open(int(text))
            try:
                signal.pidfd_send_signal(service, signal.SIGTERM)
                if not select.select([service], [], [], 120)[0]:
                    signal.pidfd_send_signal(service, signal.SIGKILL)
                    select.select([service], [], [])  # a folder into which it writes cannot be removed
            finally:
                os.close(service)


def _typed(script: Path, environment: dict[str, str]) -> tuple[int, bytes]:
    """Type the block at a terminal and answer its prompts; the shell ends at the first command that fails."""
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
@pytest.mark.thorough
@pytest.mark.timeout(MOST_S + 100)
def test_the_steps_of_the_tutorial_work_as_printed(clone: Path) -> None:
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
    assert len(re.findall(rb"assphrase[^\n]*: |Repeat for confirmation: ", shown)) == MOST_PASSPHRASES
    head = {"Authorization": f"Bearer {(clone / 'token').read_text()}"}
    # An embedded service serves the unit for as long as it runs; loading takes a moment.
    url = f"http://127.0.0.1:{port}/v1/models"
    found = wait_for(lambda: httpx.get(url, headers=head, timeout=90).json()["data"], "a served model", pause_s=0.5)
    assert [model["id"] for model in found] == ["labels"]
