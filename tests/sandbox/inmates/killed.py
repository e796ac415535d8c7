"""Ends as the kernel ends a process where memory runs out."""

from __future__ import annotations

import os
import signal

from appliance.worker.link import Header, WorkerLink


def work(session: WorkerLink) -> Header:
    session.expect("go")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}
