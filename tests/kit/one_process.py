"""A context whose log has only this process."""

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
