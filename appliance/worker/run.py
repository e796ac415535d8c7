"""The entry of every worker: `run.py MODULE TARGETS` tests the sandbox and only then imports the worker's module.

So a worker without a working sandbox has loaded no library and read no data: everything that is imported here uses the
standard library only. `TARGETS` are the escape targets of the probes, as JSON. The module's `work(session)` receives
the frame `go` with the task, does the task, and returns the fields of the result.

The log has the code of an error, and of one of the operating system its places in the code. The message may quote a
row, so it is sent to the service and stored as an erasable text of the ledger.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from importlib import import_module

from appliance.errors import ApplianceError, Unavailable
from appliance.worker.link import WorkerLink, open_session
from appliance.worker.probes import run_probes


def main(module: str, targets: str) -> int:
    """Run a worker from start to end and return its exit code."""
    session = open_session()
    try:
        session.send({"frame": "sandbox", "results": run_probes(json.loads(targets))})
        session.send({"frame": "result", **import_module(module).work(session)})
    except ApplianceError as error:
        return _fail(session, error)
    except MemoryError:
        return _fail(session, Unavailable("worker: expected enough memory, got too little", code="out-of-memory"))
    except RuntimeError as error:
        # torch has no single class for this error. Any other error is a defect, whose traceback belongs in the log.
        if "memory" not in str(error):
            raise
        return _fail(session, Unavailable("worker: expected enough memory, got too little", code="out-of-memory"))
    except OSError as error:
        traceback.print_tb(error.__traceback__)
        return _fail(session, Unavailable(f"worker: expected to read and write its folders, got {error.strerror}"))
    return 0


def _fail(session: WorkerLink, error: ApplianceError) -> int:
    print(f"failed: {error.code}", file=sys.stderr)
    # If the service has ended, only the exit code can report the error.
    with contextlib.suppress(ApplianceError):
        session.send({"frame": "failure", "code": error.code, "message": error.message})
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
