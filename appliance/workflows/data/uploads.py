"""Bytes come in under the digest that their owner computed; what does not hash to it is not kept."""

from __future__ import annotations

from appliance.store.files.uploads import Upload
from appliance.workflows.core.context import Context


def begin(context: Context, digest: str, size: int) -> Upload:
    """Where the bytes go. `finish` makes them durable under the digest, or raises and leaves nothing."""
    return context.artifacts.receive(digest, size)
