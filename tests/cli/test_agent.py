"""`appliance agent`: reading asks for no passphrase while one runs, and an order still does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.client.support import agent as agents
from appliance.client.support.session import state_folder
from tests.cli.conftest import Desk

MINUTES = ("--minutes", "5")


@pytest.fixture(autouse=True)
def runtime(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    monkeypatch.setattr(agents, "_started", [])
    yield
    for process in agents._started:
        process.kill()
        process.wait(60)


def forget_session() -> None:
    for path in (state_folder() / "sessions").iterdir():
        path.unlink()


def without_passphrase(desk: Desk, name: str) -> list[str]:
    return ["--as", name, "--key", str(desk.key(name))]


@pytest.mark.thorough
def test_reading_asks_for_no_passphrase_while_the_agent_runs(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    started = desk.as_("olga", "agent", "start", *MINUTES, "--json")
    assert started.code == 0, started.err
    held = json.loads(started.out)
    assert (held["name"], held["keyid"]) == ("olga", desk.site.keys["olga"].keyid) and held["seconds_left"] <= 300
    forget_session()
    me = without_passphrase(desk, "olga")
    told = desk.type("run", "list", *me)
    assert told.code == 0, told.err
    assert desk.type("agent", "status", *me).out.startswith("agent of:")
    assert desk.type("agent", "stop", *me).code == 0
    forget_session()
    assert "passphrase: expected a terminal" in desk.type("run", "list", *me).err
    assert desk.type("agent", "status", *me).code == 4


def test_an_order_asks_for_the_passphrase_all_the_same(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    assert desk.as_("anna", "agent", "start", *MINUTES).code == 0
    forget_session()
    me = without_passphrase(desk, "anna")
    grant = ("principal", "grant", "rita", "reviewer:safety", "--yes")
    told = desk.type(*grant, *me)
    assert told.code == 3 and "passphrase: expected a terminal" in told.err
    assert desk.ordered() == 0
    assert desk.type(*grant, *me, "--passphrase-file", str(desk.passphrase)).code == 0


def test_the_agent_of_one_key_serves_no_other_key(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    assert desk.as_("olga", "agent", "start", *MINUTES).code == 0
    forget_session()
    told = desk.type("run", "list", "--as", "olga", "--key", str(desk.key("rita")))
    assert told.code == 3 and "passphrase: expected a terminal" in told.err


def test_a_key_that_is_not_enrolled_starts_no_agent(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.type(
        "agent", "start", "--as", "olga", "--key", str(desk.key("rita")), "--passphrase-file", str(desk.passphrase)
    )
    assert told.code == 3 and agents._started == []


def test_logout_ends_the_agent(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    words = ("--key", str(desk.key("olga")), "--passphrase-file", str(desk.passphrase))
    assert desk.type("login", "olga", *words, "--trust", str(desk.trust)).code == 0
    assert desk.type("agent", "start", "--passphrase-file", str(desk.passphrase)).code == 0
    assert desk.type("agent", "status").code == 0
    assert desk.type("logout").code == 0
    assert desk.type("agent", "status", "--as", "olga").code == 4


@pytest.mark.parametrize("minutes", ["0", "481", "-1"])
def test_how_long_it_may_hold_the_key_is_bounded(open_desk: Callable[[str], Desk], minutes: str) -> None:
    told = open_desk("staffed").as_("olga", "agent", "start", "--minutes", minutes)
    assert told.code == 2 and agents._started == []
