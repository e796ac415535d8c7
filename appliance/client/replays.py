"""A run goes on by order; a window of it is trained again. The verdict is read from the log, proved, not from a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from appliance.client.support.door import About, Door
from appliance.client.support.log import Anchor, Proven, find_entries, read_entry
from appliance.client.support.orders import propose
from appliance.domain.rulebook.proposals import Proposal
from appliance.domain.runs.replays import ReplayRun
from appliance.domain.runs.resumption import Resume
from appliance.errors import Conflict, Tampered, Unavailable

WAIT_S = 20


def propose_resume(about: About, signer: str, run: str) -> Proposal:
    return propose(about, signer, Resume, {"run": run})


def propose_replay(about: About, signer: str, run: str, from_step: int, to_step: int) -> Proposal:
    return propose(about, signer, ReplayRun, {"run": run, "from_step": from_step, "to_step": to_step})


def wait_for_replay(door: Door, anchor: Anchor, order: str, told: Callable[[dict[str, Any]], None]) -> Proven:
    """The entry that holds the verdict, proved. Tampered or Unavailable where the window could not be trained again.

    `told` gets the replay's state on the way.
    """
    while (state := door.get(f"/v1/replays/{order}", wait_s=WAIT_S))["status"] == "requested":
        told(state)
    for entry in find_entries(door, type=("replay.finished", "replay.failed"), subject=f"order:{order}"):
        proven = read_entry(door, anchor, entry.index)
        if proven.entry.body.get("order") != order:
            raise Tampered(f"entry {entry.index}, order: expected {order}, got {proven.entry.body.get('order')}")
        if proven.entry.type == "replay.finished":
            return proven
        raise _failure(proven)
    raise Conflict(f"replay {order}: expected its end in the log, got none")


def _failure(proven: Proven) -> Tampered | Unavailable:
    body = proven.entry.body
    text = next((found.text for found in proven.disclosures if found.commitment == body["message"]), "see the log")
    branch = Tampered if body["code"] == "tampered" else Unavailable
    return branch(f"replay of {body['run']}: no verdict: {text}", code=str(body["code"]))
