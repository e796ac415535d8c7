"""What no longer hashes to its manifest is taken out of use: recorded, taken out of its slots, then moved aside.

What differs may contain names that an attacker chose. It is a text of the entry, which can be erased, and is kept
nowhere else. Other messages name the entry.
"""

from __future__ import annotations

from appliance.domain.core.names import versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.data import Base
from appliance.domain.data.bases import BaseQuarantined
from appliance.domain.releases.adapters import AdapterQuarantined
from appliance.workflows.core.context import Context
from appliance.workflows.core.halt import halt_withdrawn
from appliance.workflows.core.record import append, conceal


def quarantine_adapter(context: Context, adapter: Adapter, message: str) -> int:
    """The index of the entry."""
    text = conceal(message)
    name = versioned(adapter.name, adapter.version)
    appended = append(context, AdapterQuarantined(adapter=name, message=text.commitment), disclosures=(text,))
    context.recheck_answers()
    context.artifacts.quarantine(adapter.manifest)
    return appended.entry.index


def quarantine_base(context: Context, base: Base, message: str) -> int:
    """The index of the entry."""
    text = conceal(message)
    appended = append(context, BaseQuarantined(base=base.name, message=text.commitment), disclosures=(text,))
    context.recheck_answers()
    halt_withdrawn(context)
    context.artifacts.quarantine(base.digest)
    return appended.entry.index
