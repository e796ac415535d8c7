"""The real service on a machine as small as the file `machine.json` in its home describes."""

from __future__ import annotations

import json
from typing import Any

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.planning.shape import Machine
from appliance.workflows.core.context import Context
from appliance.workflows.runs import planning

MACHINE = "machine.json"


def main() -> None:
    settings, describe = load_settings(), planning.describe_machine

    def describe_small(context: Context, *, now: bool = False) -> Machine:
        said = json.loads((settings.home / MACHINE).read_text())
        free = {"memory_bytes": said["free_bytes"]} if now and "free_bytes" in said else {}
        sizes = {name: said[name] for name in ("memory_bytes", "disk_free_bytes") if name in said}
        return describe(context, now=now).model_copy(update=sizes | free)

    changed: Any = planning
    changed.describe_machine = describe_small
    wiring.serve(settings, embedded=False)


if __name__ == "__main__":
    main()
