"""The secret of a private run, from which its rows are drawn and its noise is made: kept in the keyring, given to the
run's workers over a frame, and destroyed when nothing can be replayed any more.

Whoever has it can compute the noise and subtract it. It is in no folder of the run, in no training checkpoint and in no
entry; `run.started` binds its digest.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Any

from appliance.domain.core.records.runs import Run
from appliance.errors import NotFound, Tampered
from appliance.formats.core.keystream import SECRET_BYTES, commit_secret
from appliance.workflows.core.context import Context


def begin_secret(context: Context, run: Run) -> bytes:
    """A new one, durable before the entry that binds it; the same again where a start was cut off in between."""
    name = _name(run)
    with suppress(NotFound):
        return context.keyring.read_secret(name)
    secret = secrets.token_bytes(SECRET_BYTES)
    context.keyring.keep_secret(name, secret)
    return secret


def read_secret(context: Context, run: Run) -> bytes:
    """The one that `run.started` binds. NotFound where it was destroyed, Tampered where another is in its place."""
    try:
        secret = context.keyring.read_secret(_name(run))
    except NotFound:
        raise NotFound(
            f"run {run.id}: expected the secret of its noise in the keyring, got none: it is destroyed when its "
            "retention ends (training_checkpoint_retention_s); without it nothing of the run is trained again"
        ) from None
    if (got := bind(run, secret)) != run.secret:
        raise Tampered(f"run {run.id}: expected the secret that run.started binds, {run.secret}, got {got}")
    return secret


def bind(run: Run, secret: bytes) -> str:
    """The digest that is in the log."""
    return commit_secret(secret, f"appliance/private-training/v1/secret/{run.id}")


def private_members(context: Context, run: Run, secret: bytes) -> dict[str, Any]:
    """Of a private run's task: the secret, and the training rows that its epsilon counts on."""
    dataset = context.ledger.state.datasets.get(run.dataset)
    assert dataset is not None
    return {"secret": secret.hex(), "rows": dataset.facts["train_rows"]}


def destroy_secret(context: Context, run: Run) -> None:
    """Nothing happens where there is none."""
    context.keyring.destroy_secret(_name(run))


def _name(run: Run) -> str:
    return f"noise-{run.id}"
