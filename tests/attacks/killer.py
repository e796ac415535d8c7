"""The real service, until it comes to the append that the file `kill` in its home names: then SIGKILL, by itself.

The file holds SIDE:TYPE. `before` dies with nothing written, `within` with every row written and nothing committed,
`after` with the entry durable and nobody told.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from appliance import wiring
from appliance.config.load import load_settings
from appliance.domain.core.entry import Draft
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.queue import Appended, Guard
from appliance.store.ledger.staging import Batch
from appliance.store.ledger.writer import Writer
from appliance.wiring import serving

KILL = "kill"


def wrap(order: Path) -> None:
    """Puts death around the two steps of the ledger that matter."""
    append_all, commit = Ledger.append_all, Writer.commit

    def die_if(side: str, type_: str) -> None:
        if order.exists() and order.read_text() == f"{side}:{type_}":
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_append(self: Ledger, drafts: Sequence[Draft], *, guard: Guard | None = None) -> list[Appended]:
        for draft in drafts:
            die_if("before", draft.type)
        appended = append_all(self, drafts, guard=guard)
        for draft in drafts:
            die_if("after", draft.type)
        return appended

    def deadly_commit(self: Writer, connection: Connection, batch: Batch) -> None:
        for staged in batch.staged:
            die_if("within", staged.draft.type)
        commit(self, connection, batch)

    ledger: Any = Ledger
    writer: Any = Writer
    ledger.append_all, writer.commit = deadly_append, deadly_commit


def main() -> None:
    settings = load_settings()
    order = settings.home / KILL
    wrap(order)
    if order.exists() and order.read_text().endswith(":heartbeat"):
        serving.BEAT_S = 0.5
    wiring.serve(settings, embedded=False)


if __name__ == "__main__":
    main()
