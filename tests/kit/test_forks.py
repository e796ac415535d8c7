"""A fork ends, fails and is killed like the process that it replaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from appliance.sandbox import enter, local
from appliance.sandbox.description import PACKAGE, Sandbox
from appliance.web.people.api import people_app
from appliance.wiring import serving
from scripts.kit import forks, prepared, warm

SAYS = "import os, sys; print(sys.argv[1:], dict(os.environ), __name__)\n"


def run(folder: Path, program: str, *arguments: str) -> forks.Forked:
    (folder / "program.py").write_text(program)
    with open(folder / "log", "wb") as log, open(os.devnull, "rb") as nothing:
        command = [str(folder / "program.py"), *arguments]
        return forks.run(command, {"ONLY": "this"}, (nothing.fileno(), log.fileno(), log.fileno()), ("json",))


def test_it_has_its_own_arguments_environment_and_log(tmp_path: Path) -> None:
    assert run(tmp_path, SAYS, "one", "two").wait(60) == 0
    assert (tmp_path / "log").read_text() == "['one', 'two'] {'ONLY': 'this'} __main__\n"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [("import sys; sys.exit(7)", 7, ""), ("sys.exit('no')", 1, "no\n"), ("1 / 0", 1, "ZeroDivisionError")],
)
def test_its_exit_code_and_last_words_are_those_of_python(tmp_path: Path, end: str, code: int, said: str) -> None:
    assert run(tmp_path, f"import sys\n{end}\n").wait(60) == code
    assert said in (tmp_path / "log").read_text()


def test_it_is_waited_for_and_killed_as_any_child(tmp_path: Path) -> None:
    child = run(tmp_path, "import time\ntime.sleep(60)\n")
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.kill()
    assert child.wait(60) == child.poll() == -signal.SIGKILL


def test_a_forked_worker_runs_in_the_sandbox_and_ends_as_one_that_was_started(
    tmp_path: Path,
) -> None:
    (tmp_path / "home").mkdir()
    sandbox = Sandbox(read=(), write=(tmp_path / "home",))
    with (
        warm.forked_workers(("json",)),
        local.start_worker("appliance.worker.compare", sandbox, log=tmp_path / "log") as worker,
    ):
        assert all(worker.layers.values())
        assert set(worker.check_sandbox().values()) == {"refused"}
        (found,) = warm.find_workers(os.getpid(), "appliance.worker.")
        assert "Seccomp_filters:\t2\n" in Path(f"/proc/{found}/status").read_text()
        worker.kill()
        assert worker.poll() == 128 + signal.SIGKILL
        assert warm.find_workers(os.getpid(), "appliance.worker.") == []


def test_one_who_is_killed_before_the_answer_is_no_harm_to_others(tmp_path: Path) -> None:
    assert run(tmp_path, SAYS).wait(60) == 0
    asking, theirs = forks._pair()
    with asking, theirs, open(os.devnull, "r+b") as nothing:
        forks._forks(("json",))._socket.sendmsg([b'{"asks": true}'], forks._rights([theirs.fileno()]))
        request = {"command": [str(tmp_path / "program.py")], "environment": {}}
        asking.sendmsg([json.dumps(request).encode()], forks._rights([nothing.fileno()] * 3))
    assert run(tmp_path, SAYS).wait(60) == 0


def test_a_worker_whose_libraries_would_read_other_variables_is_no_fork(tmp_path: Path) -> None:
    variables = local._environment(Sandbox(read=(), write=(tmp_path,)))
    command = ("python", "enter.py", str(PACKAGE), local.ENTRY, "appliance.worker.train", "{}")
    assert warm.is_ready(command, {**variables, enter.FILTERED: "1"})
    assert not warm.is_ready(command, {**variables, "ATEN_CPU_CAPABILITY": "default"})
    assert not warm.is_ready(command, {**variables, "OMP_NUM_THREADS": "7"})
    assert not warm.is_ready(("python", "enter.py", "/other", local.ENTRY, "inmates.crowd", "{}"), variables)


def test_a_prepared_app_is_that_of_the_service_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "people_app", people_app)
    prepared.prepare()
    for nonce in ("one", "two"):
        own: Any = SimpleNamespace(challenge=lambda nonce=nonce: nonce)
        app = serving.people_app(own, own)
        with TestClient(app) as client:
            assert client.post("/v1/sessions/challenge").json()["nonce"] == nonce
    assert serving.people_app(own, own) is app
    assert serving.people_app(own, own, "https://console.example") is not app


def test_what_a_service_alone_has_is_not_used_before_its_fork() -> None:
    with pytest.raises(RuntimeError, match="got its use before the fork"):
        _ = prepared._Later().ledger
