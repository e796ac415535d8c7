"""The real service, which stops where files in its home say. `tests/attacks/stopping.py` writes them.

`kill` holds SIDE:TYPE, where TYPE is the type of an entry. At its append the service kills itself with SIGKILL:
`before` with nothing written, `within` with every row written and nothing committed, `after` with the entry durable and
no response sent.

`hold` holds SIDE:TYPE, too. The thread that appends such an entry waits before or after it, while the file is there.
TYPE may also be that of a worker's frame: the thread waits before it sends or uses it. The worker itself continues
until its pipe is full, which takes one page only.

`hold-responses`: a response to a unit gives its first pieces at once. What the engine sends after them waits while the
file is there; an error that ends the response does not wait.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from appliance.cli.main import main
from appliance.domain.core.entry import EntryDraft
from appliance.sandbox import local
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.queue import AppendedEntry, Guard
from appliance.store.ledger.writer import Batch, Writer
from appliance.wiring import serving
from appliance.workflows.core.context import Frame
from appliance.workflows.serving.engine import EngineProcess, TakeFrame
from tests.kit.holding import LOOK_S, read_dated, read_hold, say_held, shrink_pipes

KILL, HOLD_RESPONSES = "kill", "hold-responses"
PIECES = 2


class StopPoints:
    """The points that the files `kill` and `hold` name."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def kill_at(self, side: str, type_: str) -> None:
        if read_dated(self._home / KILL)[0] == f"{side}:{type_}":
            os.kill(os.getpid(), signal.SIGKILL)

    def hold_at(self, side: str, type_: str) -> None:
        """Wait while the file is the one that named this point. A file that was written anew holds who comes next."""
        found = read_hold(self._home)
        if found[0] == f"{side}:{type_}":
            say_held(self._home, found[1])
            while read_hold(self._home) == found:
                time.sleep(LOOK_S)


def stop_entries(points: StopPoints) -> None:
    """From here on this process stops at entries of the ledger."""
    append_all, commit = Ledger.append_all, Writer.commit

    def append(self: Ledger, drafts: Sequence[EntryDraft], *, guard: Guard | None = None) -> list[AppendedEntry]:
        for draft in drafts:
            points.kill_at("before", draft.type)
            points.hold_at("before", draft.type)
        appended = append_all(self, drafts, guard=guard)
        for draft in drafts:
            points.kill_at("after", draft.type)
            points.hold_at("after", draft.type)
        return appended

    def commit_or_die(self: Writer, connection: Connection, batch: Batch) -> None:
        for staged in batch.staged:
            points.kill_at("within", staged.draft.type)
        commit(self, connection, batch)

    ledger: Any = Ledger
    writer: Any = Writer
    ledger.append_all, writer.commit = append, commit_or_die


def stop_frames(points: StopPoints) -> None:
    """From here on this process stops at frames to and from workers, whose pipes are small."""
    send, receive = local.Worker.send, local.Worker.receive

    def held_send(self: local.Worker, header: Frame, *given: Any, **named: Any) -> None:
        points.hold_at("before", header["frame"])
        send(self, header, *given, **named)

    def held_receive(self: local.Worker, timeout_s: float | None = None) -> Any:
        received = receive(self, timeout_s)
        if received is not None:
            points.hold_at("before", str(received[0].get("frame")))
        return received

    worker: Any = local.Worker
    worker.send, worker.receive = held_send, held_receive
    shrink_pipes()


class HeldResponse:
    """Takes a response's frames in the place of `take_frame`, and keeps them while the file `hold` is there."""

    def __init__(self, take_frame: TakeFrame, hold: Path) -> None:
        self._take_frame, self._hold = take_frame, hold
        self._lock = threading.Lock()
        self._given = 0
        self._kept: list[Frame] = []

    def __call__(self, frame: Frame | None) -> None:
        with self._lock:
            if frame is None or frame["frame"] == "failure":
                self._kept.clear()
            elif self._kept or (self._given >= PIECES and self._hold.exists()):
                if not self._kept:
                    threading.Thread(target=self._wait, daemon=True).start()
                self._kept.append(frame)
                return
            self._given += 1
            self._take_frame(frame)

    def _wait(self) -> None:
        while self._hold.exists():
            time.sleep(LOOK_S)
        with self._lock:
            for frame in self._kept:
                self._take_frame(frame)
            self._kept.clear()


def stop_responses(hold: Path) -> None:
    """From here on this process's responses do not go on while the file `hold` is there."""
    ask = EngineProcess.ask

    def held(self: EngineProcess, request: str, slot: str, kind: str, parameters: Frame, take_frame: TakeFrame) -> None:
        ask(self, request, slot, kind, parameters, HeldResponse(take_frame, hold))

    changed: Any = EngineProcess
    changed.ask = held


if __name__ == "__main__":
    home = Path(os.environ["APPLIANCE_HOME"])
    stop_entries(StopPoints(home))
    stop_frames(StopPoints(home))
    stop_responses(home / HOLD_RESPONSES)
    if read_dated(home / KILL)[0].endswith(":heartbeat"):
        serving.BEAT_S = 0.5
    sys.argv[1:1] = ["serve"]
    main()
