"""What a workflow needs of a worker, wherever it runs: on this machine (`local`), or as a job of Slurm (`slurm`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Frame = tuple[dict[str, Any], bytes]


class Running(Protocol):
    """A started worker. `layers` says for every wall whether it stands, once `check_walls` has returned."""

    @property
    def layers(self) -> Mapping[str, bool]: ...

    @property
    def pid(self) -> int:
        """Its process here, or the number of its job."""

    def send(self, header: dict[str, Any], blob: bytes = b"", *, timeout_s: float = 60.0) -> None: ...

    def receive(self, timeout_s: float | None = None) -> Frame | None: ...

    def check_walls(self, timeout_s: float = 60.0) -> dict[str, str]: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def end(self) -> None:
        """Begins what `kill` does and returns at once, for a thread that must not wait."""

    def kill(self) -> None: ...

    def wait(self, timeout_s: float | None = None) -> int: ...
