"""Unauthenticated clients of a listener use a bounded number of descriptors, and people are still answered."""

from __future__ import annotations

import os
import resource
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from appliance.web.core import sockets
from appliance.web.core.sockets import LimitedSocket, open_tcp, open_unix
from scripts.kit.appliance import Appliance

HEADER_S = 2.0


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Replace the process's limits of descriptors, soft and hard, as the code reads and sets them."""
    held = [(256, 1024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: held.append(pair))
    yield held


def test_a_socket_counts_what_it_accepted_until_that_is_closed() -> None:
    with LimitedSocket(socket.AF_INET, 2) as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)

        def accept() -> socket.socket:
            stack.enter_context(socket.create_connection(listener.getsockname()))
            return stack.enter_context(listener.accept()[0])

        first, _second = accept(), accept()
        with pytest.raises(ConnectionAbortedError):
            accept()
        first.close()
        accept()
        with pytest.raises(ConnectionAbortedError):
            accept()


def test_one_account_leaves_the_others_their_places_at_a_unix_socket(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's word for who is there; the service's own account and root have every place."""
    account = [1001]
    monkeypatch.setattr(sockets, "account_of", lambda _: account[-1])
    with LimitedSocket(socket.AF_UNIX, 16) as listener, ExitStack() as stack:
        listener.bind(str(home / "s"))
        listener.listen(32)

        def accept() -> socket.socket:
            here = stack.enter_context(socket.socket(socket.AF_UNIX))
            here.connect(str(home / "s"))
            return stack.enter_context(listener.accept()[0])

        first, _second = accept(), accept()
        with pytest.raises(ConnectionAbortedError, match="at most 2 of user id 1001"):
            accept()
        account.append(1002)
        accept()
        account.append(os.geteuid())
        for _ in range(8):
            accept()
        account.append(1001)
        first.close()
        accept()


def test_a_unix_socket_is_its_owners_alone_and_no_thread_has_another_umask_meanwhile(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may create a folder at that moment, and nobody could enter it."""
    before = os.umask(0)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
            with open_unix(home / "s"):
                assert stat.S_IMODE((home / "s").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_listener_has_its_share_of_few_descriptors_and_no_more_than_it_needs_of_many(
    limits: list[tuple[int, int]], home: Path
) -> None:
    for descriptors, most in ((256, 32), (1024, 128), (65_536, 512), (resource.RLIM_INFINITY, 512)):
        limits.append((descriptors, descriptors))
        with open_tcp(("127.0.0.1", 0)) as listener, open_unix(home / "s") as local:
            assert isinstance(listener, LimitedSocket) and listener._most == most
            assert isinstance(local, LimitedSocket) and local._most == most


def test_the_soft_limit_is_raised_as_far_as_the_hard_one_lets_it(limits: list[tuple[int, int]]) -> None:
    for before, after in (
        ((256, 1024), (1024, 1024)),
        ((1024, 524_288), (4096, 524_288)),
        ((1024, resource.RLIM_INFINITY), (4096, resource.RLIM_INFINITY)),
        ((20_000, 20_000), (20_000, 20_000)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY),) * 2,
    ):
        limits.append(before)
        sockets.raise_descriptors()
        assert limits[-1] == after


def silent(site: Appliance, count: int, stack: ExitStack) -> list[socket.socket]:
    """Open connections that send nothing, not even the start of a handshake."""
    assert site.settings.listen is not None
    made = []
    for _ in range(count):
        made.append(stack.enter_context(socket.create_connection(site.settings.listen, timeout=90)))
    return made


def until_cut(connections: list[socket.socket]) -> float:
    begun = time.monotonic()
    for connection in connections:
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    return time.monotonic() - begun


@pytest.mark.thorough
@pytest.mark.parametrize("tls", [True, False])
def test_more_silent_connections_than_descriptors_are_cut_in_time_and_people_are_answered(
    start_small: Callable[..., Appliance], tls: bool
) -> None:
    """Each answer here opens a session, which is an entry: a socket, a thread and the database."""
    descriptors = 200
    site = start_small(tls=tls, descriptors=descriptors, header_s=HEADER_S)
    waited: dict[str, list[float]] = {"axel": [], "olga": []}
    for who in ("axel", "olga") * 3:
        if min(waited[who], default=HEADER_S) < HEADER_S:
            continue  # it is tried again only if another process may have had the processor
        with ExitStack() as stack:
            connections = silent(site, 3 * descriptors, stack)
            begun = time.monotonic()
            assert site.get("/v1/bases", who) == []
            waited[who].append(time.monotonic() - begun)
            assert until_cut(connections) < 10 * HEADER_S
    assert max(map(min, waited.values())) < HEADER_S, "people wait for nobody without a session"
    head = {"Authorization": f"Bearer {site.token('legal')}"}
    assert site.units().get("/v1/models", headers=head).status_code == 200, "and the listener is free again"
    assert "out of system resource" not in site.log()


@pytest.mark.thorough
def test_who_shakes_hands_and_then_says_nothing_is_cut_as_well(start_small: Callable[..., Appliance]) -> None:
    site = start_small(tls=True, header_s=HEADER_S)
    assert site.authority is not None and site.settings.listen is not None
    with socket.create_connection(site.settings.listen, timeout=90) as plain:
        time.sleep(0.5 * HEADER_S)
        with site.authority.trusting().wrap_socket(plain, server_hostname="127.0.0.1") as secured:
            begun = time.monotonic()
            with suppress(OSError):  # an end without its goodbye
                assert secured.recv(1) == b""
            assert 0.5 * HEADER_S < time.monotonic() - begun < 10 * HEADER_S
