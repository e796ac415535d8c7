"""What a context says of the processes of its log where a test makes one by hand: there is this one alone."""

from __future__ import annotations

from typing import Any

from appliance.store.database.processes import Processes
from appliance.workflows.core.contact import Contact
from appliance.workflows.core.context import ALL_ROLES


def one_process() -> dict[str, Any]:
    return {
        "contact": Contact(),
        "processes": Processes(),
        "roles": ALL_ROLES,
        "process": None,
        "refresh": lambda: False,
        "runs_here": True,
    }
