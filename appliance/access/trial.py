"""A policy set is tried in a separate process before it is put in force.

The bounds (appliance/access/bounds.py) refuse texts that are known to crash Cedar or to keep it busy. A text that they
miss crashes this process, or keeps it busy, instead of the service or the auditor's program.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cedarpy

from appliance.domain.core.policy import PolicySet
from appliance.errors import BadInput, Unavailable

LIMIT_S = 20
_MEMORY_BYTES = 4 << 30
_LIBRARY = str(Path(cedarpy.__file__).resolve().parents[1])
# Where Cedar refuses with an error, the caller calls Cedar again and reports that error.
_PROGRAM = """
import json, resource, sys
cpu_s, memory = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
sys.path.append(sys.argv[3])
import cedarpy
given = json.load(sys.stdin)
print("ready", flush=True)
try:
    schema = cedarpy.Schema.from_str(given["schema"])
    policies = cedarpy.PolicySet.from_str(given["cedar"])
    cedarpy.policies_to_json_str(given["cedar"])
    cedarpy.validate_policies(given["cedar"], schema)
    for request, entities in given["requests"]:
        cedarpy.is_authorized(request, policies, entities, schema)
except ValueError:
    pass
"""


def try_policies(policy: PolicySet, requests: Sequence[tuple[dict[str, Any], str]]) -> None:
    """BadInput where a process that parses, validates and decides the requests ends otherwise than in order.

    Unavailable where no such process could be started here: that is no evidence against the text.
    """
    given = json.dumps({"schema": policy.cedar_schema, "cedar": policy.cedar, "requests": requests})
    what = f"policy set {policy.name}: expected Cedar text that a process of its own can parse and decide"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM, str(LIMIT_S), str(_MEMORY_BYTES), _LIBRARY],
            input=given.encode(),
            cwd="/",
            env={},
            capture_output=True,
            timeout=3 * LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadInput(f"{what}, got one that did not end in {3 * LIMIT_S} s") from None
    except OSError as error:
        raise Unavailable(f"{what}, got none: it could not be started: {error.strerror}") from None
    if not done.stdout.startswith(b"ready"):
        raise Unavailable(f"{what}, got none: it ended before it read the text: {_last_line(done.stderr)}")
    if done.returncode < 0:
        raise BadInput(f"{what}, got one that ended it by signal {-done.returncode}")
    if done.returncode:
        raise BadInput(f"{what}, got one that ended it: {_last_line(done.stderr)}")


def _last_line(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][:200]
