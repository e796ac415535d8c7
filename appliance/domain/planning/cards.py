"""The machines that a run can be planned for: this one, and a catalogue of cards by their makers' data sheets.

The appliance has not been run on any card of the catalogue: every figure that follows from it is marked so.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from appliance.domain.core.names import Value

GB = 1_000_000_000
TERA = 1e12


class Card(Value):
    """`operations_a_second`: dense bf16 matrix products with float32 sums, by the data sheet."""

    name: str
    memory_bytes: int = Field(ge=1)
    operations_a_second: float
    measured: bool = False


CARDS = (
    Card(name="RTX 3060", memory_bytes=12 << 30, operations_a_second=25.5 * TERA),
    Card(name="RTX 3090", memory_bytes=24 << 30, operations_a_second=71 * TERA),
    Card(name="RTX 4090", memory_bytes=24 << 30, operations_a_second=165 * TERA),
    Card(name="L40S", memory_bytes=48 << 30, operations_a_second=362 * TERA),
    Card(name="A100", memory_bytes=80 << 30, operations_a_second=312 * TERA),
    Card(name="H100", memory_bytes=80 << 30, operations_a_second=989 * TERA),
    Card(name="H200", memory_bytes=141 * GB, operations_a_second=989 * TERA),
)
"""A100 and H100 with 80 GB. Read at the makers' pages; the 3060's and 3090's are those of GA106 and GA102."""


class Calibration(Value):
    """A few short steps of one base and method, measured on one machine at two lengths.

    A pack costs `pack_s`, and what it computes costs its operations over `operations_a_second`. `machine` is the kind
    that the worker found, `host` what the service calls the machine it runs on.
    """

    host: str
    base: str
    method: str
    quantisation: str
    compute_dtype: str
    pack_s: float = Field(ge=0)
    operations_a_second: float = Field(gt=0)
    load_s: float = Field(ge=0)
    peak_bytes: int = Field(ge=0)
    memory_bytes: int = Field(ge=0, description="of the device: the card's, or this machine's")
    machine: dict[str, Any]
    time: str


class Machine(Value):
    """The machine that the service runs on. `memory_bytes`: the card's where there is one and it is known."""

    host: str
    device: Literal["cpu", "cuda"]
    threads: int = Field(ge=1)
    bfloat16: bool
    memory_bytes: int | None
    disk_free_bytes: int = Field(ge=0)
    calibrations: tuple[Calibration, ...] = ()
