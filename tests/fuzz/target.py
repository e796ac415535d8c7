"""The rows of the table of parsers that `scripts/fuzz` tries."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from appliance.errors import BadInput
from tests.fuzz.inputs import Form


@dataclass(frozen=True)
class Target:
    """A parser: what it does with bytes, good inputs, and their form. `raises` are errors that its docstring names
    beside those of the project."""

    parse: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    form: Form
    raises: tuple[type[Exception], ...] = ()


TARGETS: dict[str, Target] = {}
"""Every target by the name of its function in the package, with what is tried of it after a space if that are several.
"""


def add(name: Callable[..., Any] | str, target: Target) -> None:
    key = name if isinstance(name, str) else f"{name.__module__.removeprefix('appliance.')}.{name.__name__}"
    assert key not in TARGETS, key
    TARGETS[key] = target


def of_bytes(
    function: Callable[..., Any],
    seeds: Callable[[], Iterable[bytes]] | Sequence[bytes],
    form: Form = "json",
    *more: Any,
    parse: Callable[[bytes], object] | None = None,
    name: str = "",
    raises: tuple[type[Exception], ...] = (),
) -> None:
    """Add a parser of bytes, which is called with `more` after them."""
    given = seeds if callable(seeds) else partial(list, seeds)
    key: Any = f"{function.__module__.removeprefix('appliance.')}.{function.__name__} {name}" if name else function
    add(key, Target(parse or (lambda data: function(data, *more)), given, form, raises))


def of_text(function: Callable[..., Any], seeds: Sequence[str], *more: Any, **options: Any) -> None:
    """Add a parser of texts. Bytes that are no UTF-8 become lone surrogates, as those of a file's name do."""

    def parse(data: bytes) -> object:
        return function(data.decode("utf-8", "surrogateescape"), *more)

    of_bytes(function, [seed.encode() for seed in seeds], "text", parse=parse, **options)


def read_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadInput("no JSON, so it does not reach the parser") from None


def of_value(
    function: Callable[..., Any], seeds: Sequence[Any], *more: Any, is_object: bool = False, **options: Any
) -> None:
    """Add a parser of values that were read from JSON of any spelling."""

    def parse(data: bytes) -> object:
        value = read_json(data)
        if is_object and not isinstance(value, dict):
            raise BadInput("no object, so it does not reach the parser")
        return function(value, *more)

    of_bytes(function, [json.dumps(seed).encode() for seed in seeds], parse=parse, **options)


def load_file(load: Callable[[Path], object], data: bytes) -> object:
    """Call a loader with a file of these bytes."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        path = Path(folder, "file")
        path.touch(0o600)
        path.write_bytes(data)
        return load(path)


_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def of_file(function: Callable[..., Any], seeds: Any, form: Form, load: Callable[[Path], object] | None = None) -> None:
    of_bytes(function, seeds, form, parse=partial(load_file, load or function))


def run_program(program: Callable[[list[str]], object], data: bytes, words: Callable[[Path], list[str]]) -> object:
    """Run a program over a file; one that ends as by a defect is a failure, like every exception."""

    def run(path: Path) -> object:
        written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        try:
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
                program(words(path))
        except SystemExit as ended:
            if ended.code not in ENDS:
                raise AssertionError(f"the program ended with {ended.code}") from None
            raise BadInput(f"ended with {ended.code}") from None
        return 0

    return load_file(run, data)


ENDS = (0, 2, 3, 4, 5, 6, 7)
"""Exit codes of programs, except that of a defect."""


def beside(path: Path, name: str, data: bytes) -> str:
    file = path.with_name(name)
    file.touch(0o600)
    file.write_bytes(data)
    return str(file)


def read_object(data: bytes) -> dict[str, Any]:
    value = read_json(data)
    if not isinstance(value, dict):
        raise BadInput("no object, so it does not reach the parser")
    return value
