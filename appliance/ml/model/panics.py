"""Panics of libraries in Rust, which are no Exception: one text must not end a worker for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import BadInput


@contextmanager
def refuse_panics(what: str) -> Iterator[None]:
    """BadInput in the place of a panic; `what`: `where: expected X`."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise BadInput(f"{what}, got: {str(error)[:200]}") from None
