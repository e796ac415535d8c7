"""The token agent: the tokens that it gives to local callers, and its behaviour without a new token."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.client import token_agent as module
from appliance.client.token_agent import ReceivedToken, TokenAgent, is_own, open_socket
from appliance.errors import ApplianceError, BadInput, Conflict, NotAuthenticated, RateLimited, Unavailable
from scripts.kit.waiting import wait_for
from tests.kit.agent_client import fetch

FAR, PAST = "2999-01-01T00:00:00.000Z", "2020-01-01T00:00:00.000Z"
WAIT_S = 60.0


class Service:
    """Return the given responses in turn, and the last one from then on."""

    def __init__(self, *answers: ReceivedToken | ApplianceError) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> ReceivedToken:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, ApplianceError):
            raise answer
        return answer


def granted(name: str, expires_at: str = FAR) -> ReceivedToken:
    return ReceivedToken(name, f"sha256:{name}", expires_at)


@contextmanager
def running(agent: TokenAgent, path: Path) -> Iterator[None]:
    thread = threading.Thread(target=agent.run, args=(path,))
    thread.start()
    try:
        wait_for(path.exists)
        yield
    finally:
        agent.stop()
        thread.join(WAIT_S)
    assert not thread.is_alive() and not path.exists()


def told_at(path: Path) -> str | tuple[str, str]:
    try:
        return fetch(path)
    except Unavailable as error:
        return error.code, error.message


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(module, "LAST_RETRY_S", 0.02)
    monkeypatch.setattr(module, "_POLL_S", 0.05)


@pytest.mark.thorough
def test_a_token_is_handed_out_and_renewed_at_half_its_time(tmp_path: Path) -> None:
    service, said = Service(granted("one"), granted("two")), []
    agent = TokenAgent(service, 1, said.append)
    with running(agent, tmp_path / "s"):
        wait_for(lambda: told_at(tmp_path / "s") == "one")
        wait_for(lambda: told_at(tmp_path / "s") == "two")
    assert said[:2] == [f"token sha256:one, until {FAR}", f"token sha256:two, until {FAR}"]


def test_a_token_is_handed_out_as_long_as_it_stands_while_none_can_be_had(tmp_path: Path) -> None:
    service, said = Service(granted("one"), Unavailable("service: gone"), granted("two")), []
    service.answers[1:1] = [Unavailable("service: gone")] * 3
    agent = TokenAgent(service, 3_600, said.append)
    with running(agent, tmp_path / "s"):
        wait_for(lambda: told_at(tmp_path / "s") == "one")
        agent.renew_now()
        wait_for(lambda: service.asked >= 3)
        assert told_at(tmp_path / "s") in ("one", "two")
        wait_for(lambda: told_at(tmp_path / "s") == "two")
    assert [line for line in said if "gone" in line] == ["no new token: service: gone"], "said once"


def test_where_none_stands_the_reason_is_told_and_it_continues_asking(tmp_path: Path) -> None:
    service = Service(*[NotAuthenticated("challenge: another", code="challenge")] * 5, granted("old", PAST))
    agent = TokenAgent(service, 3_600, lambda line: None)
    with running(agent, tmp_path / "s"):
        told = told_at(tmp_path / "s")
        assert told in (("no-token", told[1]), ("challenge", f"agent, {tmp_path / 's'}: challenge: another"))
        wait_for(lambda: service.asked == 6)
        wait_for(lambda: told_at(tmp_path / "s")[0] == "no-token")


def test_a_limit_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []
    agent = TokenAgent(Service(RateLimited("requests", retry_after_s=7)), 3_600, lambda line: None)
    monkeypatch.setattr(agent._wake, "wait", lambda seconds: (waited.append(seconds), agent._stopped.set()))
    agent._renew_repeatedly()
    assert waited == [7.0]


@pytest.mark.thorough
def test_an_ended_application_ends_its_agent_and_its_token_with_the_services_words(tmp_path: Path) -> None:
    gone = NotAuthenticated("application indexer of legal: ended by entry 9", code="revoked")
    agent = TokenAgent(Service(granted("one"), gone), 1, lambda line: None)
    with pytest.raises(NotAuthenticated, match="ended by entry 9"):
        agent.run(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert agent.answer() == {"error": {"code": "revoked", "message": gone.message}}


def test_a_token_that_counts_no_longer_is_renewed_before_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    said: list[str] = []
    agent = TokenAgent(Service(granted("one"), granted("two")), 3_600, said.append, lambda token: token != "one")
    with running(agent, tmp_path / "s"):
        wait_for(lambda: told_at(tmp_path / "s") == "two")
    assert said[1] == "token sha256:one counts no longer"


def test_an_agent_notices_within_a_check_that_its_application_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    gone = NotAuthenticated("application indexer of legal: ended by entry 9", code="revoked")
    with pytest.raises(NotAuthenticated, match="ended by entry 9"):
        TokenAgent(Service(granted("one"), gone), 3_600, lambda line: None, lambda token: False).run(tmp_path / "s")


def test_the_socket_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_socket(tmp_path / "s"):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_another_account_is_told_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TokenAgent(Service(granted("one")), 3_600, lambda line: None)
    with running(agent, tmp_path / "s"):
        wait_for(lambda: told_at(tmp_path / "s") == "one")
        monkeypatch.setattr(module, "is_own", lambda connection: False)
        assert told_at(tmp_path / "s")[0] == "denied"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_own(ours)
        for uid, own in ((0, True), (os.geteuid() + 1, False)):
            monkeypatch.undo()
            data = module._CREDENTIALS.pack(1, uid, uid)
            fake = type("Fake", (), {"getsockopt": lambda self, *_, data=data: data})()
            assert is_own(fake) is own


def test_who_says_nothing_and_who_leaves_holds_nobody_up(tmp_path: Path) -> None:
    agent = TokenAgent(Service(granted("one")), 3_600, lambda line: None)
    with running(agent, tmp_path / "s"):
        wait_for(lambda: told_at(tmp_path / "s") == "one")
        idle = []
        for _ in range(3):
            idle.append(socket.socket(socket.AF_UNIX))
            idle[-1].connect(str(tmp_path / "s"))
        idle.pop().close()
        assert told_at(tmp_path / "s") == "one"
        assert json.loads(idle[0].makefile().read())["token"] == "one"
        for one in idle:
            one.close()


def test_a_dead_agents_socket_makes_room_and_nothing_else_does(tmp_path: Path) -> None:
    open_socket(tmp_path / "s").close()
    assert (tmp_path / "s").exists()
    with open_socket(tmp_path / "s"), pytest.raises(Conflict, match="one where an agent answers"):
        open_socket(tmp_path / "s")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(Conflict, match="something that is no socket"):
        open_socket(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(BadInput, match="at most 107 bytes"):
        open_socket(tmp_path / ("x" * 108))
    with pytest.raises(Unavailable, match="expected to make a socket there"):
        open_socket(tmp_path / "none" / "s")


def test_where_no_agent_is_an_application_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="expected it to answer"):
        fetch(tmp_path / "s")
