"""No program runs code that lies where it was started: each process has its own path, folder and environment."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import wiring
from appliance.client.policies import load_policy
from appliance.client.runs import RunSteps, write_report
from appliance.client.support import service_process
from appliance.client.support.service_process import make_command
from appliance.config.settings import load_settings, select_variables
from appliance.domain.runs.steps import encode_steps
from appliance.errors import Unavailable
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.keys import generate_ed25519
from appliance.sandbox.description import PACKAGE
from appliance.sandbox.escape_targets import EscapeTargets, Probes
from appliance.sandbox.local import ENTRY, _command
from scripts.kit.log_builder import stage
from tests.kit.cedar_policies import permitting
from tests.reports.test_plot import record
from tests.verifier.test_program import export_of

ROOT = Path(__file__).resolve().parents[1]

# Every place.

STARTS = frozenset({"Popen", "run", "call", "check_call", "check_output"})
"""Of `subprocess`."""
WITHIN = {
    "os.execve": {"appliance.sandbox.processes"},
    "os.fork": {
        *("appliance.sandbox.processes", "appliance.worker.ranks", "appliance.worker.reader"),
        "appliance.worker.probes",
    },
    "os.execv": {"appliance.worker.probes"},  # a probe: that nothing is started is what it finds
}
"""What starts a process without `subprocess`, and who may: the launcher becomes the worker, whose command is below; a
worker's ranks and the processes that encode its requests are copies of it in the same sandbox, and start nothing
else."""
SITES = {
    "appliance.build",
    "appliance.sandbox.host",
    "appliance.slurm.commands",
    "appliance.slurm.team",
    "appliance.store.ledger.copies",
}
"""Modules that start programs of the site: git, the notification command, Slurm's commands, pg_dump and pg_restore."""
OTHERS = ("os.exec", "os.spawn", "os.posix_spawn", "os.system", "os.popen", "os.fork", "pty.", "asyncio.create_sub")
LIBRARIES = frozenset({"multiprocessing", "pty", "code", "concurrent.futures.process"})


def findings(module: str, source: str) -> Iterator[str]:
    """Each place of a module that starts a process which is not isolated."""
    for node in ast.walk(ast.parse(source)):
        where = f"{module}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (f"{where}: imports {name}" for name in _imported(node) if name in LIBRARIES)
            if isinstance(node, ast.ImportFrom) and node.module in ("subprocess", "os"):
                yield f"{where}: takes names out of {node.module}, which this test does not follow"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.startswith("subprocess.") and name.partition(".")[2] in STARTS:
                yield from (f"{where}: {text}" for text in _check(node, of_site=module in SITES))
            elif name.startswith(OTHERS) and module not in WITHIN.get(name, ()):
                yield f"{where}: calls {name}"


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [alias.name for alias in node.names]


def _check(call: ast.Call, *, of_site: bool) -> Iterator[str]:
    """Check that the command is `make_command(…)`, has -I or is the site's, and names folder and environment."""
    command = call.args[0] if call.args else None
    if of_site:
        pass
    elif isinstance(command, ast.List):
        flags = {item.value for item in command.elts if isinstance(item, ast.Constant)}
        if "-I" not in flags:
            yield "expected -I in the command"
    elif not (isinstance(command, ast.Call) and ast.unparse(command.func) == "make_command"):
        yield "expected make_command(...) or a list as the command"
    named = {keyword.arg for keyword in call.keywords}
    yield from (f"expected {name}=, got none" for name in ("cwd", "env") if name not in named)
    if "shell" in named:
        yield "got shell="


@pytest.mark.thorough
def test_every_process_that_is_started_is_isolated() -> None:
    places = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
    }
    sources = {module: path.read_text(encoding="utf-8") for module, path in places.items()}
    assert sum("subprocess." in source for source in sources.values()) >= 3, "the test looks at the wrong folder"
    assert [text for module, source in sources.items() for text in findings(module, source)] == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("subprocess.run([python, '-c', code], cwd='/', env={})", "expected -I"),
        ("subprocess.run(words, cwd='/', env={})", "expected make_command"),
        ("subprocess.Popen([python, '-I', '-c', code], env={})", "expected cwd="),
        ("subprocess.Popen(make_command(python, 'appliance'), cwd='/')", "expected env="),
        ("subprocess.run([python, '-I'], cwd='/', env={}, shell=True)", "shell="),
        ("os.execv(python, words)", "os.execv"),
        ("os.fork()", "os.fork"),
        ("import multiprocessing", "multiprocessing"),
        ("from concurrent.futures import process", "concurrent.futures.process"),
        ("from subprocess import run", "takes names"),
    ],
)
def test_a_process_that_is_not_isolated_is_found(source: str, words: str) -> None:
    assert words in " ".join(findings("appliance.client.runs", source))


def test_the_sites_own_program_has_a_folder_and_an_environment_and_no_shell() -> None:
    source = "subprocess.Popen(list(words), stdin=1, shell=True)"
    assert [text.partition(": ")[2] for text in findings("appliance.sandbox.host", source)] == [
        "expected cwd=, got none",
        "expected env=, got none",
        "got shell=",
    ]


def test_a_worker_takes_nothing_from_its_own_folder() -> None:
    with EscapeTargets(Probes()) as escape_targets:
        _, *flags = _command(PACKAGE, ENTRY, "appliance.worker.train", escape_targets)
    assert {"-s", "-P"} <= set(flags)


# Planted files.

PLANTED = (
    *("argparse", "statistics", "uvicorn", "click", "pydantic", "tempfile", "logging", "runpy", "pkgutil"),
    *("cedarpy", "resource", "json"),
)
AT_START = ("sitecustomize", "usercustomize")


class Trap:
    """A folder full of modules that leave a mark when any of them runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, folder / "ran"
        folder.mkdir(exist_ok=True)

    def plant(self, *names: str, folder: Path | None = None) -> None:
        for name in names:
            code = f"import os\nopen({str(self.mark)!r}, 'a').write(__name__ + ' ')\nos._exit(9)\n"
            ((folder or self.folder) / f"{name}.py").write_text(code)

    def check(self) -> None:
        assert not self.mark.exists(), f"ran: {self.mark.read_text()}"


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    trap = Trap(tmp_path / "trap")
    trap.plant(*PLANTED, *AT_START)
    return trap


@pytest.fixture(scope="module")
def zipapps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zipapps")
    subprocess.run([sys.executable, ROOT / "scripts/zipapp", "--output", folder], check=True, capture_output=True)
    return folder


def start(trap: Trap, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """In the trap's folder, as a person would; python3 is the interpreter of these tests."""
    base = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(trap.folder)}
    return subprocess.run(
        command, cwd=trap.folder, env={**base, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


MODULES = {"appliance": "appliance", "appliance-verify": "appliance.verifier", "appliance-witness": "appliance.witness"}
WAYS = ("console script", "python -m", "python -I -m", "python zipapp", "zipapp")
CLOSED = ("python -I -m", "zipapp")
"""Those that do not read PYTHONPATH either."""


def start_as(way: str, program: str, words: list[str], trap: Trap, zipapps: Path) -> subprocess.CompletedProcess[str]:
    """Start a program in one of the ways, with a PYTHONPATH that leads into the trap if it must not be read."""
    command = {
        "console script": [str(Path(sys.executable).with_name(program))],
        "python -m": [sys.executable, "-m", MODULES[program]],
        "python -I -m": [sys.executable, "-I", "-m", MODULES[program]],
        "python zipapp": [sys.executable, str(zipapps / f"{program}.pyz")],
        "zipapp": [str(zipapps / f"{program}.pyz")],
    }
    environment = {"PYTHONPATH": f"{trap.folder}::."} if way in CLOSED else {}
    return start(trap, [*command[way], *words], **environment)


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_the_auditors_program_runs_nothing_that_lies_beside_the_export(way: str, trap: Trap, zipapps: Path) -> None:
    """The log claims to be long."""
    site = stage("serving", permitting())
    (trap.folder / "ledger.tar").write_bytes(export_of(site, size=50_000))
    (trap.folder / "trust.json").write_bytes(encode_trust(site.trust))
    done = start_as(way, "appliance-verify", ["ledger.tar", "--trust", "trust.json"], trap, zipapps)
    trap.check()
    assert done.returncode == 6 and "export.json, size: expected 50000" in done.stdout, done.stderr
    assert "Cedar policies replayed; orders that they allow: 2" in done.stdout, "Cedar ran too, and in its own process"


@pytest.mark.parametrize("way", WAYS)
def test_a_witness_runs_nothing_that_lies_beside_the_request(way: str, trap: Trap, zipapps: Path) -> None:
    done = start_as(way, "appliance-witness", ["--version"], trap, zipapps)
    trap.check()
    assert done.returncode == 0 and done.stdout.startswith("appliance-witness "), done.stderr


@pytest.mark.parametrize("way", ["console script", "python -m"])
def test_the_command_line_runs_nothing_of_the_folder_that_it_is_started_in(way: str, trap: Trap, zipapps: Path) -> None:
    done = start_as(way, "appliance", ["run", "report", "--help"], trap, zipapps)
    trap.check()
    assert done.returncode == 0 and "--folder" in done.stdout, done.stderr


@pytest.mark.thorough
def test_a_report_is_drawn_by_nothing_that_lies_around(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trap.folder)
    for name in ("HOME", "PYTHONPATH"):
        monkeypatch.setenv(name, str(trap.folder))
    (trap.folder / "matplotlibrc").write_text("figure.dpi: no number\n")
    steps = tuple(record(8))
    write_report(RunSteps("r-000001", encode_steps(steps), steps, None), "a run", "text\n", Path("report"))
    trap.check()
    assert (trap.folder / "report" / "training.svg").exists()


@pytest.mark.thorough
def test_a_report_for_which_the_disk_has_no_room_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    steps, folder = tuple(record(2)), tmp_path / "report"
    with pytest.raises(Unavailable, match=r"^report, .*/report: expected to write there, got No space left"):
        write_report(RunSteps("r-000001", encode_steps(steps), steps, None), "a run", "text\n", folder)
    assert not folder.exists()


@pytest.mark.thorough
def test_the_embedded_service_runs_nothing_of_its_home(home: Path, trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_LISTEN", "off")
    monkeypatch.setattr(service_process, "_started", [])
    settings = load_settings()
    people = [wiring.Person(name, generate_ed25519().spki) for name in ("alice", "bob")]
    policy = load_policy(ROOT / "policies" / "default").data
    wiring.init(settings, people, origin="planted.example/1", single_administrator=False, policy=policy)
    trap.plant(*PLANTED, *AT_START, folder=home)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(home), str(trap.folder))))
    monkeypatch.chdir(trap.folder)
    place = service_process.Place(settings.home, settings.socket, settings.lock, settings.logs, select_variables)
    try:
        service_process.start_service(place)
    finally:
        for process in service_process._started:
            process.send_signal(signal.SIGTERM)
            process.wait(90)
    trap.check()


@pytest.mark.thorough
def test_a_program_is_found_by_its_own_folder(trap: Trap) -> None:
    """Another `appliance` in the way is not the one that runs."""
    (trap.folder / "appliance").mkdir()
    trap.plant("appliance/__init__", "appliance/verifier")
    done = start(trap, make_command(sys.executable, "appliance.verifier", "--version"), PYTHONPATH=str(trap.folder))
    trap.check()
    assert done.stdout.startswith("appliance-verify "), done.stderr
