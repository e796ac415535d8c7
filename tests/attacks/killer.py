"""The real service, which kills itself with SIGKILL at the append that the file `kill` in its home names.

The file holds SIDE:TYPE. `before` dies with nothing written, `within` with every row written and nothing committed,
`after` with the entry durable and no response sent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.core.entry import EntryDraft
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.queue import AppendedEntry, Guard
from appliance.store.ledger.writer import Batch, Writer
from appliance.wiring import serving

KILL = "kill"


def wrap(order: Path) -> None:
    """Wrap two steps of the ledger, to kill the process before, within or after the append that `order` names."""
    append_all, commit = Ledger.append_all, Writer.commit

    def die_if(side: str, type_: str) -> None:
        if order.exists() and order.read_text() == f"{side}:{type_}":
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_append(self: Ledger, drafts: Sequence[EntryDraft], *, guard: Guard | None = None) -> list[AppendedEntry]:
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
