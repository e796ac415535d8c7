"""A client at a door: the service behind a real socket, on a site at a stage of the journey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.client.support.door import Door
from appliance.client.support.log import Anchor, anchor_of
from appliance.client.support.session import SavedSession
from tests.kit.service import Service, running


class Office:
    """Someone's place at the door."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.site = service.site
        self.socket = service.settings.socket
        self._doors: list[Door] = []
        self.door = self.opened()

    def as_(self, name: str) -> Door:
        """A door with this person's session."""
        door = self.opened()
        door.bearer = SavedSession(door, name, lambda: self.site.keys[name])
        return door

    def opened(self) -> Door:
        door = Door(self.socket)
        self._doors.append(door)
        return door

    def close(self) -> None:
        for door in self._doors:
            door.close()

    @property
    def anchor(self) -> Anchor:
        return anchor_of(self.door.about, self.site.trust)


@pytest.fixture
def open_office(home: Path) -> Iterator[Callable[..., Office]]:
    """`open_office(stage)`: a service at that stage of the journey."""
    with ExitStack() as stack:

        def opened(at: str) -> Office:
            office = Office(stack.enter_context(running(at, home)))
            stack.callback(office.close)
            return office

        yield opened
