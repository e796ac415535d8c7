"""Inputs of any size, made from a valid one by repeating or lengthening one of its parts."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.fuzz.inputs import Form, find_json

Shape = Callable[[int], bytes]
Place = tuple[str | int, ...]

MOST = 24
"""Most parts of a good input that are grown."""
_INSIDE = "(base64)"
"""Step of a place from a text to the JSON value that it encodes."""


def grow(good: bytes, form: Form) -> dict[str, Shape]:
    """Return a shape for each way in which a part of the good input can grow."""
    found: dict[str, Shape] = {"twice": lambda size: good * (size // max(1, len(good)) + 1)}
    if form == "tar":
        return found | dict(_grow_members(good))
    try:
        value = json.loads(good)
    except (ValueError, RecursionError):
        return found | dict(_grow_lines(good))
    end = b"\n" if good.endswith(b"\n") else b""
    return found | dict(_grow_value(value, end))


def _grow_value(value: Any, end: bytes) -> Iterator[tuple[str, Shape]]:
    seen: set[str] = set()
    for place in _list_places(value):
        name = ".".join("[]" if isinstance(step, int) else step for step in place)
        if name in seen:
            continue
        seen.add(name)
        if len(seen) > MOST:
            return
        for way, change in _WAYS.get(type(_find(value, place)), {}).items():
            yield f"{way} of {name or 'all'}", _shape(value, place, change, end)


def _shape(value: Any, place: Place, change: Callable[[Any, int], Any], end: bytes) -> Shape:
    def make(size: int) -> bytes:
        return json.dumps(_put(value, place, change, size), separators=(",", ":"), sort_keys=True).encode() + end

    return make


def _list_places(value: Any, before: Place = ()) -> Iterator[Place]:
    """Yield the places of the parts of a value that can grow, the outer ones first."""
    pending = [(before, value)]
    while pending:
        place, part = pending.pop(0)
        if isinstance(part, Mapping):
            yield place
            pending += [((*place, name), one) for name, one in part.items()]
        elif isinstance(part, list) and part:
            yield place
            pending += [((*place, at), one) for at, one in enumerate(part)]
        elif isinstance(part, str) and part:
            yield place
            if len(part) > 20 and (inner := find_json(part)) is not None:
                pending.append(((*place, _INSIDE), inner))


def _find(value: Any, place: Place) -> Any:
    for step in place:
        value = find_json(value) if step == _INSIDE else value[step]
    return value


def _put(value: Any, place: Place, change: Callable[[Any, int], Any], size: int) -> Any:
    """Return the value with the part at a place grown to about so many bytes."""
    if not place:
        return change(value, size)
    step, *rest = place
    if step == _INSIDE:
        inner = _put(find_json(value), tuple(rest), change, size * 3 // 4)
        return base64.b64encode(json.dumps(inner, separators=(",", ":"), sort_keys=True).encode()).decode()
    if isinstance(value, list):
        return [_put(one, tuple(rest), change, size) if at == step else one for at, one in enumerate(value)]
    return {**value, step: _put(value[step], tuple(rest), change, size)}


def _count(part: Any, size: int) -> int:
    return size // (len(json.dumps(part)) + 1) + 1


def _number(part: Any, number: int) -> Any:
    """Return the part with a number in the middle of each text of it, so that it is another one of the same form."""
    if isinstance(part, Mapping):
        return {name: _number(one, number) for name, one in part.items()}
    if isinstance(part, list):
        return [_number(one, number) for one in part]
    if not isinstance(part, str):
        return part
    middle = len(part) // 2
    return f"{part[: middle - 3]}{number:06d}{part[middle + 3 :]}" if len(part) > 8 else f"{part}{number:06d}"


_WAYS: dict[type, dict[str, Callable[[Any, int], Any]]] = {
    list: {
        "items": lambda part, size: part + part[-1:] * _count(part[-1], size),
        "other items": lambda part, size: part + [_number(part[-1], at) for at in range(_count(part[-1], size))],
    },
    dict: {
        "fields": lambda part, size: part | {f"k{at:06d}": next(iter(part.values()), 1) for at in range(size // 16)},
    },
    str: {"length": lambda part, size: part * (size // len(part) + 1)},
}


def _grow_lines(good: bytes) -> Iterator[tuple[str, Shape]]:
    lines = good.split(b"\n")
    for at, line in enumerate(lines[:MOST]):
        if line:
            yield f"line {at}", _repeat(lines, at, lambda line, count: [line] * count)
            yield f"other lines {at}", _repeat(lines, at, _number_lines)
            yield f"length of line {at}", _repeat(lines, at, lambda line, count: [line * count])


def _number_lines(line: bytes, count: int) -> list[bytes]:
    text = line.decode("latin-1")
    return [_number(text, number).encode("latin-1") for number in range(count)]


def _repeat(lines: list[bytes], at: int, change: Callable[[bytes, int], list[bytes]]) -> Shape:
    return lambda size: b"\n".join(
        [*lines[:at], *change(lines[at], size // (len(lines[at]) + 1) + 1), *lines[at + 1 :]]
    )


def _grow_members(good: bytes) -> Iterator[tuple[str, Shape]]:
    """Yield shapes of a tar in which one of its members has grown."""
    with tarfile.open(fileobj=io.BytesIO(good)) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    for name, data in list(members.items())[:MOST]:
        for way, shape in [*grow(data.split(b"\n")[-2] + b"\n", "json").items()] if b"\n" in data else []:
            yield f"{name}, {way}", _pack(members, name, data, shape)


def _pack(members: Mapping[str, bytes], name: str, data: bytes, shape: Shape) -> Shape:
    def make(size: int) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for member, content in {**members, name: data + shape(size)}.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return made.getvalue()

    return make
