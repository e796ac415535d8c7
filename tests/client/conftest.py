"""A client at a socket: the service behind a real socket, on a site at a stage of the journey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from appliance.client.evidence import ProvedLookup
from appliance.client.support import orders
from appliance.client.support.connection import Connection
from appliance.client.support.log import Anchor, anchor_of
from appliance.client.support.session import SavedSession
from appliance.domain.actions.proposals import Proposal
from appliance.domain.core.lookup import OrderInput
from appliance.domain.core.order import Order
from tests.kit.service import Service, running


class Office:
    """A person's connections."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.site = service.site
        self.socket = service.settings.socket
        self._connections: list[Connection] = []
        self.connection = self.opened()

    def as_(self, name: str) -> Connection:
        """Return a connection with this person's session."""
        connection = self.opened()
        connection.bearer = SavedSession(connection, name, lambda: self.site.keys[name])
        return connection

    def lookup(self, name: str) -> ProvedLookup:
        """Proved entries, read with this person's session."""
        return ProvedLookup(lambda: self.as_(name), lambda: self.anchor)

    def propose(self, name: str, model: type[Order], values: dict[str, Any], **given: Any) -> Proposal:
        """Return this person's order, not signed yet."""
        return orders.propose(self.connection.about, name, model, OrderInput(values, **given), self.lookup(name))

    def opened(self) -> Connection:
        connection = Connection(self.socket)
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    @property
    def anchor(self) -> Anchor:
        return anchor_of(self.connection.about, self.site.trust)


@pytest.fixture
def open_office(home: Path) -> Iterator[Callable[..., Office]]:
    """`open_office(stage)`: a service at that stage of the journey."""
    with ExitStack() as stack:

        def opened(at: str) -> Office:
            office = Office(stack.enter_context(running(at, home)))
            stack.callback(office.close)
            return office

        yield opened
