"""Nests folders deeper than a recursion goes, in its home and in the folder that it is to write to."""

from __future__ import annotations

import os

from appliance.worker.link import Header, WorkerLink

DEPTH = 1_100


def nest(folder: str) -> None:
    os.chdir(folder)
    for _ in range(DEPTH):
        os.mkdir("n")
        os.chdir("n")


def work(session: WorkerLink) -> Header:
    task, _ = session.expect("go")
    for place in (os.environ["HOME"], task["output"]):
        nest(place)
    return {"parameters": 1}
