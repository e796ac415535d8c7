"""How the client starts another of the appliance's programs: in an interpreter that reads nothing of what is around it.

Neither the working folder, nor a home, nor PYTHONPATH can put code before Python's own library (`-I`); the program is
found by the folder that this package lies in.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from appliance.client.support.files import check_place
from appliance.errors import Conflict, Unavailable

FOLDER = "/"
"""The working folder of a program that needs none."""
_PROGRAM_S = 300.0
_ROOT = str(Path(__file__).resolve().parents[3])
_START = (
    "import runpy, sys; root, module = sys.argv[1:3]; del sys.argv[1:3]; "
    "sys.path.insert(0, root); runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def isolated(python: str, module: str, *words: str) -> list[str]:
    """The command by which that Python runs the module with these words."""
    return [python, "-I", "-c", _START, _ROOT, module, *words]


def new_folder(path: Path, what: str) -> None:
    check_place(path, what)
    try:
        path.mkdir()
    except FileExistsError:
        raise Conflict(f"{what}, {path}: expected a name that is free, got one that is taken") from None
    except OSError as error:
        raise Unavailable(f"{what}, {path}: expected it to be writable, got {error.strerror}") from None


def run_report_program(python: str, name: str, words: list[str], data: bytes) -> None:
    """Runs one of `appliance.reports` in a scratch home, with nothing of this process's environment or folder."""
    # A path means another file in another folder; a bare name is looked up in PATH.
    python = os.path.abspath(python) if os.sep in python else python
    with tempfile.TemporaryDirectory() as scratch:
        environment = {"HOME": scratch, "MPLCONFIGDIR": scratch, "PATH": os.environ.get("PATH", os.defpath)}
        try:
            done = subprocess.run(
                isolated(python, f"appliance.reports.{name}", *words),
                input=data,
                env=environment,
                cwd=scratch,
                capture_output=True,
                timeout=_PROGRAM_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{name}, {python}: expected it to run to its end, got {type(error).__name__}") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unavailable(f"{name}: expected the program to succeed, got: {last[-1]}")
