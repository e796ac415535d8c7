"""A fork ends, fails and is killed as the process that it stands for would be."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from scripts.kit import forks

SAYS = "import os, sys; print(sys.argv[1:], dict(os.environ), __name__)\n"


def run(folder: Path, program: str, *arguments: str) -> forks.Forked:
    (folder / "program.py").write_text(program)
    with open(folder / "log", "wb") as log, open(os.devnull, "rb") as nothing:
        command = [str(folder / "program.py"), *arguments]
        return forks.run(command, {"ONLY": "this"}, (nothing.fileno(), log.fileno(), log.fileno()), ("json",))


def test_it_has_its_own_arguments_environment_and_log(tmp_path: Path) -> None:
    assert run(tmp_path, SAYS, "one", "two").wait(20) == 0
    assert (tmp_path / "log").read_text() == "['one', 'two'] {'ONLY': 'this'} __main__\n"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [("import sys; sys.exit(7)", 7, ""), ("sys.exit('no')", 1, "no\n"), ("1 / 0", 1, "ZeroDivisionError")],
)
def test_its_exit_code_and_last_words_are_those_of_python(tmp_path: Path, end: str, code: int, said: str) -> None:
    assert run(tmp_path, f"import sys\n{end}\n").wait(20) == code
    assert said in (tmp_path / "log").read_text()


def test_it_is_waited_for_and_killed_as_any_child(tmp_path: Path) -> None:
    child = run(tmp_path, "import time\ntime.sleep(60)\n")
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.kill()
    assert child.wait(20) == child.poll() == -signal.SIGKILL
