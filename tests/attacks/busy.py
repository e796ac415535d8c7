"""The real service, in which one check of an order never ends: a thread that is busy with a request."""

from __future__ import annotations

from typing import Any

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.workflows import orders

MARK = "never-ends"


def main() -> None:
    check = orders.check

    def spin(context: Any, principal: str, payload: bytes) -> Any:
        while payload == MARK.encode():
            pass
        return check(context, principal, payload)

    changed: Any = orders
    changed.check = spin
    wiring.serve(load_settings(), embedded=False)


if __name__ == "__main__":
    main()
