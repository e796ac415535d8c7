"""Looks at a sealed adapter: samples of held-out rows, and a reviewer's own prompts. Texts travel beside the order."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.client.releases.decisions import on_sealed
from appliance.client.support.door import Door
from appliance.client.support.log import Anchor
from appliance.client.support.orders import propose
from appliance.domain.releases.looks import MOST_PROMPTS, TryAdapter, ViewSamples
from appliance.domain.rulebook.proposals import Proposal
from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.commitment import Disclosure, disclose, disclosure_value

WAIT_S = 20


def propose_samples(door: Door, anchor: Anchor, signer: str, name: str, count: int) -> Proposal:
    return propose(door.about, signer, ViewSamples, {**on_sealed(door, anchor, name), "count": count})


@dataclass(frozen=True)
class Try:
    """A try to be signed, and the prompts that its commitments open."""

    proposal: Proposal
    prompts: tuple[Disclosure, ...]


def prepare_try(
    door: Door,
    anchor: Anchor,
    signer: str,
    name: str,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    adds_instruction: bool,
) -> Try:
    """Sends the prompts, which the service keeps in memory until the order that binds them."""
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise BadInput(f"prompts: expected 1 to {MOST_PROMPTS}, got {len(prompts)}")
    kept = tuple(disclose(text, secrets.token_bytes(32)) for text in prompts)
    values = {
        **on_sealed(door, anchor, name),
        "prompts": tuple(one.commitment for one in kept),
        "max_tokens": max_tokens,
        "adds_instruction": adds_instruction,
    }
    return Try(propose(door.about, signer, TryAdapter, values), kept)


def send_prompts(door: Door, prompts: Sequence[Disclosure]) -> None:
    door.post("/v1/prompts", {"prompts": [disclosure_value(one) for one in prompts]})


def wait_for_look(door: Door, order: str, waits: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The answers, which the service gives once. Unavailable with the reason where there are none."""
    while not (state := door.get(f"/v1/looks/{order}", wait_s=WAIT_S))["ended"]:
        waits()
    if state["error"] is not None:
        raise Unavailable(str(state["error"]["message"]), code=str(state["error"]["code"]))
    if not isinstance(state["result"], dict):
        raise Tampered(f"look {order}: expected its answers, got none")
    return state["result"]
