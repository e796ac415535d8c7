"""Kills a service at an entry, and holds it at one. Its launcher is tests/attacks/stopped.py."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from scripts.kit.appliance import Appliance
from scripts.kit.waiting import wait_for
from tests.attacks import stopped
from tests.kit.holding import count_held, remove_hold, write_hold

LAUNCHER = (stopped.__file__,)


# --- kill -------------------------------------------------------------------------------------------------------------


def arm(site: Appliance, when: str) -> None:
    """Let the service die at the next such point, SIDE:TYPE."""
    assert site.launcher == LAUNCHER
    (site.home / stopped.KILL).write_text(when)


def disarm(site: Appliance) -> None:
    (site.home / stopped.KILL).unlink(missing_ok=True)


def await_death(site: Appliance) -> None:
    assert site.service is not None
    assert site.service.wait(90) == -signal.SIGKILL, site.log()[-2000:]
    disarm(site)
    site.service = None


def die(site: Appliance, when: str, act: Callable[[], Any]) -> None:
    """Let the service die at `when` while it does `act`, and start it again."""
    arm(site, when)
    with suppress(httpx.TransportError):
        act()
    await_death(site)
    site.start()


# --- hold -------------------------------------------------------------------------------------------------------------


@contextmanager
def held(site: Appliance, when: str) -> Iterator[None]:
    """Hold every thread of the service that comes to this point, SIDE:TYPE, until the block ends."""
    hold(site, when)
    try:
        yield
    finally:
        let_go(site)


def hold(site: Appliance, when: str) -> None:
    """Hold who comes to this point from now on, and let go who is held."""
    assert site.launcher == LAUNCHER
    write_hold(site.home, when)


def let_go(site: Appliance) -> None:
    remove_hold(site.home)


def await_held(site: Appliance) -> None:
    """Wait until a thread of the service is held at the point that `hold` named last."""
    await_that(site, lambda: count_held(site.home) > 0)


def await_that(site: Appliance, fact: Callable[[], bool]) -> None:
    wait_for(fact, lambda: f"a fact; the service's log: {site.log()[-2000:]}")
