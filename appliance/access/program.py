"""The program of the process that reads Cedar text that no administrator has adopted yet.

Each line of its input is a call: an array of a name and its arguments. Each line of its output is the result or the
error. The program ends at the end of its input.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from dataclasses import asdict
from typing import Any, NamedTuple

from appliance.access.engine import PolicyEngine
from appliance.errors import BadInput

READY = b"ready\n"
LOAD = "load"


class ProcessLimits(NamedTuple):
    """Limits of the process.

    `load_s`: CPU seconds to start, parse and validate. `call_s`: CPU seconds that each call adds.
    """

    load_s: float
    call_s: float
    memory_bytes: int


def main() -> None:
    """Run the calls. The system ends this process if it exceeds the limits for CPU time or memory."""
    limits = ProcessLimits(*(json.loads(value) for value in sys.argv[1:]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    engine: PolicyEngine | None = None
    for number, line in enumerate(sys.stdin.buffer):
        _limit_cpu(limits.load_s + number * limits.call_s)
        try:
            call, *arguments = json.loads(line)
            result: Any = None
            if call == LOAD:
                engine = PolicyEngine(*arguments)
            elif engine is not None:
                result = _call(engine, call, arguments)
            reply = {"answer": result}
        except BadInput as error:
            reply = {"error": error.message, "code": error.code}
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


def _call(engine: PolicyEngine, call: str, arguments: list[Any]) -> Any:
    if call == PolicyEngine.is_valid.__name__:
        return engine.is_valid(*arguments)
    return asdict(engine.authorize(*arguments))


def _limit_cpu(seconds: float) -> None:
    hard_limit = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft_limit = math.ceil(seconds)
    resource.setrlimit(
        resource.RLIMIT_CPU,
        (soft_limit if hard_limit == resource.RLIM_INFINITY else min(soft_limit, hard_limit), hard_limit),
    )
