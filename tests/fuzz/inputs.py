"""Wild inputs of a parser: any bytes, good bytes that were changed, and large or deep inputs of its form."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import tarfile
from collections.abc import Sequence
from typing import Any, Literal

from hypothesis import strategies as st

from appliance.errors import ApplianceError
from appliance.formats.core.canonical import encode_canonical
from tests.kit.mutations import mutated

Form = Literal["bytes", "text", "json", "lines", "toml", "yaml", "tar"]
"""The form of a parser's good input."""

MAX_BYTES = 1 << 20
"""Most bytes of an input."""
NUMBERS = (0, -1, 2**31, 2**53 - 1, 2**53, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"))
TEXTS = (
    *("", "\0", "a\0b", "\ud800", "\udfff\ud800", "\u202e", "\ufeff", "e\u0301", "../..", "-", "\U0010ffff"),
    *("a" * 5_000, "9" * 5_000),
)
REPEATS = (3, 60, 1_000, 20_000, 200_000)

SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers()
    | st.sampled_from(TEXTS)
    | st.text(st.characters(), max_size=12)
)


@st.composite
def nested(draw: st.DrawFn) -> Any:
    """Draw a JSON value of up to some hundred levels."""
    value: Any = draw(SCALARS)
    for _ in range(draw(st.sampled_from((1, 2, 64, 65, 300)))):
        value = [value] if draw(st.booleans()) else {"a": value}
    return value


VALUES = (
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    )
    | nested()
)


def find_json(text: str) -> Any:
    """Return the JSON value that a base64 text has, such as an envelope's payload, or None."""
    try:
        return json.loads(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error, RecursionError):
        return None


@st.composite
def reshaped(draw: st.DrawFn, value: Any) -> Any:
    """Draw a JSON value with one part exchanged, removed, added or repeated, also inside a base64 text."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(value)))
        match draw(st.integers(0, 7)):
            case 0:
                return {key: one for key, one in value.items() if key != name}
            case 1:
                return value | {draw(st.sampled_from((*TEXTS, name + "s", name.upper()))): draw(VALUES)}
            case _:
                return value | {name: draw(reshaped(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        match draw(st.integers(0, 7)):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value * draw(st.sampled_from((2, 33, 300)))
            case _:
                return [*value[:place], draw(reshaped(value[place])), *value[place + 1 :]]
    inner = find_json(value) if isinstance(value, str) and len(value) > 20 else None
    if inner is not None and draw(st.integers(0, 3)):
        return base64.b64encode(draw(written(draw(reshaped(inner))))).decode()
    if isinstance(value, str) and value and draw(st.booleans()):
        return draw(mutated(value.encode("utf-8", "surrogatepass"))).decode("utf-8", "surrogateescape")
    if type(value) is int and draw(st.booleans()):
        return value + draw(st.sampled_from((-1, 1, 2**32, -(2**40))))
    return draw(VALUES)


@st.composite
def written(draw: st.DrawFn, value: Any) -> bytes:
    """Draw a JSON value's bytes: canonical, in another spelling, or with a key twice."""
    if draw(st.integers(0, 3)):
        try:
            return encode_canonical(value)
        except (ApplianceError, ValueError, RecursionError):
            pass
    try:
        text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from((None, None, 0))))
    except RecursionError:
        return b"["
    if draw(st.integers(0, 4)) == 0 and (found := re.search(r'("[^"]{1,20}"): ', text)):
        text = f"{text[: found.start()]}{found[1]}: 1, {text[found.start() :]}"
    return text.encode("utf-8", "surrogatepass")


_PIECES = (
    *(b"[", b'{"a":', b"9", b"0,", b'"",', b"a", b"\n", b" ", b"a b\n", b"\0", b"\\", b'"', b"{}\n"),
    b"\xf0\x9f\x98\x80",
)
_PIECES_OF: dict[Form, tuple[bytes, ...]] = {
    "toml": (b"a=[", b"[[a]]\n", b"[a.b]\n", b"a.", b"a={a=", b"a=1\n", b"[", b'"""'),
    "yaml": (b"- ", b"a: &a [*a]\n", b"? ", b"!!", b"a:\n ", b"&a ", b"!!python/object:os.system ", b"{a: "),
}


@st.composite
def swollen(draw: st.DrawFn, form: Form) -> bytes:
    """Draw an input that is large, deep, or one piece many times."""
    times = draw(st.sampled_from(REPEATS))
    piece = draw(st.sampled_from((*_PIECES, *_PIECES_OF.get(form, ()))))
    before, after = draw(st.sampled_from(((b"", b""), (b"[", b"]"), (b'{"a":', b"}"), (b"a = ", b"\n"), (b'"', b'"'))))
    return (before + piece * min(times, MAX_BYTES // len(piece)) + after)[:MAX_BYTES]


@st.composite
def changed(draw: st.DrawFn, good: bytes, form: Form) -> bytes:
    """Good bytes, changed in the way of their form."""
    match draw(st.integers(0, 9)):
        case 0:
            return good[: draw(st.integers(0, len(good)))]
        case 1:
            start = draw(st.integers(0, len(good)))
            stop = draw(st.integers(start, min(len(good), start + 40)))
            times = min(draw(st.sampled_from(REPEATS)), MAX_BYTES // max(1, stop - start))
            return (good[:start] + good[start:stop] * times + good[stop:])[:MAX_BYTES]
        case 2 | 3 | 4:
            return draw(mutated(good))
    if form == "lines" and good:
        lines = good.split(b"\n")
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = draw(changed(lines[place], "json"))
        return b"\n".join(lines)
    if form == "tar":
        return draw(repacked(good))
    if form == "json":
        try:
            value = json.loads(good)
        except (ValueError, RecursionError):
            return draw(mutated(good))
        end = b"\n" if good.endswith(b"\n") else b""
        return draw(written(draw(reshaped(value)))) + end
    return draw(mutated(good))


@st.composite
def repacked(draw: st.DrawFn, good: bytes) -> bytes:
    """Draw a tar of the same files, one of which is changed, renamed, left out or repeated."""
    try:
        with tarfile.open(fileobj=io.BytesIO(good)) as tar:
            members = [(one, tar.extractfile(one).read()) for one in tar if one.isfile()]  # type: ignore[union-attr]
    except (tarfile.TarError, ValueError, OSError):
        return draw(mutated(good))
    if not members:
        return good
    place = draw(st.integers(0, len(members) - 1))
    info, data = members[place]
    match draw(st.integers(0, 7)):
        case 0:
            del members[place]
        case 1:
            members.insert(place, members[place])
        case 2:
            info.name = draw(st.sampled_from(("../a", "/a", "a" * 90, "\u00e9", info.name)))
            info.type = draw(st.sampled_from((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)))
        case _:
            members[place] = (info, draw(changed(data, "lines" if info.name.endswith(".jsonl") else "json")))
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for one, content in members:
            one.size = len(content)
            tar.addfile(one, io.BytesIO(content))
    return made.getvalue()


def inputs(form: Form, seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Every kind of input of a parser whose good inputs these are."""
    plain: st.SearchStrategy[bytes] = st.binary(max_size=300)
    if form in ("json", "lines", "text"):
        plain |= VALUES.flatmap(written)
    if not seeds:
        return plain | swollen(form)
    good = st.sampled_from(seeds).flatmap(lambda seed: changed(seed, form))
    return st.one_of(good, good, good, plain, swollen(form))
