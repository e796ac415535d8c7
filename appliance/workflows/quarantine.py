"""What no longer hashes to its manifest is taken out of use: recorded, taken out of its slots, then moved aside."""

from __future__ import annotations

from appliance.domain.events import AdapterQuarantined, BaseQuarantined
from appliance.domain.names import versioned
from appliance.domain.state import Adapter, Base
from appliance.workflows.context import Context
from appliance.workflows.record import append, conceal


def quarantine_adapter(context: Context, adapter: Adapter, message: str) -> None:
    text = conceal(message)
    name = versioned(adapter.name, adapter.version)
    append(context, AdapterQuarantined(adapter=name, message=text.commitment), disclosures=(text,))
    context.released()
    context.artifacts.quarantine(adapter.manifest)


def quarantine_base(context: Context, base: Base, message: str) -> None:
    text = conceal(message)
    append(context, BaseQuarantined(base=base.name, message=text.commitment), disclosures=(text,))
    context.released()
    context.artifacts.quarantine(base.digest)
