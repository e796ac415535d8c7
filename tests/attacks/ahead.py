"""The real service on a host whose clock is 8 minutes ahead."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Any, Self

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.wiring import building, serving
from appliance.wiring import building as ledger

AHEAD = timedelta(minutes=8)


class Ahead(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + AHEAD


def main() -> None:
    changed: Any
    for changed in (building, ledger, serving):
        changed.datetime = Ahead
    wiring.serve(load_settings(), embedded=False)


if __name__ == "__main__":
    main()
