"""The formats of a log and its export for a second verifier: written from docs/formats alone, no line shared.

The tables of docs/formats/ledger.md and order.md are read from the pages, so that a wrong table fails here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

PAGES = Path(__file__).parents[3] / "docs/formats"


class Broken(Exception):
    """A rule of the pages that does not hold."""


def need(holds: object, rule: str) -> None:
    if not holds:
        raise Broken(rule)


# Canonical JSON, digests, times.


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=lambda key: key.encode("utf-16-be"))}
    if isinstance(value, list):
        return [_sorted(one) for one in value]
    need(not isinstance(value, float), "canonical: no fractions")
    need(isinstance(value, bool) or not isinstance(value, int) or abs(value) < 2**53, "canonical: whole numbers")
    return value


def canonical(value: Any) -> bytes:
    try:
        return json.dumps(_sorted(value), ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise Broken("canonical: whole Unicode") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(dict(pairs)) == len(pairs), "canonical: a member twice")
    return dict(pairs)


def parse_json(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), object_pairs_hook=_pairs)
    except (ValueError, RecursionError):
        raise Broken("canonical: JSON in UTF-8") from None


def parse(data: bytes) -> Any:
    value = parse_json(data)
    need(canonical(value) == data, "canonical: encoded again, the same bytes")
    return value


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def unbase64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise Broken("base64") from None
    need(base64.b64encode(data).decode() == text, "base64: one spelling")
    return data


def unbase64url(text: str) -> bytes:
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    need(base64.urlsafe_b64encode(data).decode().rstrip("=") == text, "base64url: one spelling")
    return data


def ms(time: str) -> int:
    """Milliseconds since 1970 of a time of the log."""
    need(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time, re.ASCII), "time: its width")
    try:
        moment = datetime.strptime(time, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        raise Broken("time: one that exists") from None
    need(moment.strftime("%S") == time[17:19], "time: no second 60")
    return int(moment.timestamp()) * 1000 + int(time[20:23])


def commitment(salt: bytes, text: str) -> str:
    return "hmac-sha256:" + hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()


# Merkle tree (RFC 6962).


def leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class Tree:
    """Appended leaf by leaf; holds the roots of its full subtrees."""

    def __init__(self, leaves: list[bytes] | None = None) -> None:
        self.peaks: list[tuple[int, bytes]] = []
        for one in leaves or []:
            self.append(one)

    def append(self, digest: bytes) -> None:
        height = 0
        while self.peaks and self.peaks[-1][0] == height:
            digest, height = node(self.peaks.pop()[1], digest), height + 1
        self.peaks.append((height, digest))

    def root(self) -> bytes:
        if not self.peaks:
            return hashlib.sha256(b"").digest()
        root = self.peaks[-1][1]
        for _, peak in reversed(self.peaks[:-1]):
            root = node(peak, root)
        return root


def check_inclusion(index: int, size: int, digest: bytes, proof: list[bytes], root: bytes) -> None:
    need(0 <= index < size, "inclusion: an index below the size")
    at, last = index, size - 1
    for step in proof:
        need(last > 0, "inclusion: a proof as long as the path")
        if at & 1 or at == last:
            digest = node(step, digest)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            digest = node(digest, step)
        at, last = at >> 1, last >> 1
    need(last == 0 and digest == root, "inclusion: leads to the root")


def check_consistency(old: int, new: int, proof: list[bytes], old_root: bytes, new_root: bytes) -> None:
    need(0 <= old <= new, "consistency: sizes in order")
    if old in (0, new):
        need(not proof and (old == 0 or old_root == new_root), "consistency: nothing to prove")
        return
    steps = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    need(steps, "consistency: a proof")
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = steps[0]
    for step in steps[1:]:
        need(last > 0, "consistency: a proof as long as the path")
        if at & 1 or at == last:
            first, second = node(step, first), node(step, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node(second, step)
        at, last = at >> 1, last >> 1
    need(last == 0 and first == old_root and second == new_root, "consistency: leads to both roots")


# Keys and signatures.

_P, _L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P


def _add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = a, b
    cross = _D * x1 * x2 * y1 * y2
    x, y = (x1 * y2 + x2 * y1) * pow(1 + cross, -1, _P), (y1 * y2 + x1 * x2) * pow(1 - cross, -1, _P)
    return x % _P, y % _P


def _of_prime_order(key: bytes) -> bool:
    y, sign = int.from_bytes(key, "little") & (2**255 - 1), key[31] >> 7
    if y >= _P:
        return False
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    x = x if (x * x - square) % _P == 0 else x * pow(2, (_P - 1) // 4, _P) % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return False
    point, total, times = (x if x & 1 == sign else _P - x, y), (0, 1), _L
    if point == total:
        return False
    while times:
        total = _add(total, point) if times & 1 else total
        point, times = _add(point, point), times >> 1
    return total == (0, 1)


@cache
def load_key(spki: bytes) -> Any:
    try:
        key = load_der_public_key(spki)
    except Exception:  # noqa: BLE001 - whatever a parser raises on bytes of an outsider
        raise Broken("key: a SubjectPublicKeyInfo") from None
    kinds = {"secp256r1": 91, "secp384r1": 120}
    if isinstance(key, MLDSA65PublicKey):
        need(len(spki) == 1974, "key: ML-DSA-65")
    elif isinstance(key, Ed25519PublicKey):
        need(len(spki) == 44 and _of_prime_order(key.public_bytes_raw()), "key: an Ed25519 point of prime order")
    else:
        need(isinstance(key, ec.EllipticCurvePublicKey) and kinds.get(key.curve.name) == len(spki), "key: its kind")
    need(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki, "key: one encoding")
    return key


def verify(spki: bytes, signature: bytes, data: bytes) -> None:
    key = load_key(spki)
    try:
        if isinstance(key, Ed25519PublicKey | MLDSA65PublicKey):
            key.verify(signature, data)
        else:
            digest = hashes.SHA256() if key.curve.name == "secp256r1" else hashes.SHA384()
            key.verify(signature, data, ec.ECDSA(digest))
    except InvalidSignature:
        raise Broken("signature") from None


def pae(kind: str, payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


IN_TOTO = "application/vnd.in-toto+json"


def is_ml_dsa(spki: bytes) -> bool:
    return isinstance(load_key(spki), MLDSA65PublicKey)


class Envelope:
    def __init__(self, data: bytes) -> None:
        value = parse(data)
        need(isinstance(value, dict) and set(value) == {"payload", "payloadType", "signatures"}, "envelope: members")
        need(value["payloadType"] == IN_TOTO and len(value["signatures"]) == 1, "envelope: type and one signature")
        (signature,) = value["signatures"]
        need(set(signature) == {"keyid", "sig"}, "envelope: signature's members")
        self.keyid, self.sig = signature["keyid"], unbase64(signature["sig"])
        self.payload = unbase64(value["payload"])
        self.pae = pae(IN_TOTO, self.payload)
        self.identity = sha(self.pae)

    def check(self, spki: bytes, passkey: dict[str, Any] | None = None) -> None:
        need(sha(spki) == self.keyid, "envelope: the keyid is the key's")
        if passkey is None:
            is_ecdsa = not isinstance(load_key(spki), Ed25519PublicKey | MLDSA65PublicKey)
            need(not is_ecdsa or self.sig[:1] == b"0", "envelope: a plain signature")
            verify(spki, self.sig, self.pae)
        else:
            check_assertion(self, spki, passkey)

    def statement(self, kind: str = r"urn:appliance:(order|statement):([a-z-]+):v1") -> tuple[str, dict[str, Any]]:
        value = parse(self.payload)
        need(set(value) == {"_type", "predicate", "predicateType", "subject"}, "statement: members")
        need(value["_type"] == "https://in-toto.io/Statement/v1", "statement: type")
        match = re.fullmatch(kind, value["predicateType"])
        need(match, "statement: predicateType")
        assert match is not None
        names = [one["name"] for one in value["subject"]]
        need(names and len(set(names)) == len(names), "statement: subjects, each once")
        values = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", self.payload)
        need(sum(values.count(one) for one in (b",", b"{", b"[")) + 1 <= 2000, "statement: 2,000 values")
        return ":".join(match.groups()) or value["predicateType"], value


def check_assertion(envelope: Envelope, spki: bytes, passkey: dict[str, Any]) -> None:
    need(len(spki) == 91 and envelope.sig[:1] == b"{", "passkey: an assertion")
    parts = parse(envelope.sig)
    need(set(parts) == {"authenticatorData", "clientDataJSON", "signature"}, "passkey: members")
    data, client, signature = (unbase64url(parts[n]) for n in ("authenticatorData", "clientDataJSON", "signature"))
    need(37 <= len(data) <= 1024 and 1 <= len(client) <= 4096 and 8 <= len(signature) <= 72, "passkey: sizes")
    told = parse_json(client)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(envelope.pae).digest()).decode().rstrip("=")
    need(told.get("type") == "webauthn.get" and told.get("challenge") == challenge, "passkey: type and challenge")
    need(told.get("crossOrigin", False) is False and "topOrigin" not in told, "passkey: no other origin")
    need(told.get("origin") in passkey["origins"], "passkey: an enrolled origin")
    need(data[:32] == hashlib.sha256(passkey["rp_id"].encode()).digest(), "passkey: rp_id")
    flags = data[32]
    need(flags & 1 and flags & 4 and bool(flags & 8) == passkey["backup_eligible"], "passkey: flags")
    need((flags & 8 or not flags & 16) and not flags & 64 and bool(flags & 128) == (len(data) > 37), "passkey: flags")
    verify(spki, signature, data + hashlib.sha256(client).digest())


# Signed notes, checkpoints and witnesses.


_ML_DSA_TYPE = b"urn:appliance:note-signature:ml-dsa-65:v1"
_ML_DSA_START = bytes.fromhex("308207b2300b0609608648016503040312038207a100")


class Vkey:
    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"([^\s+]+)\+([0-9a-f]{8})\+(\S+)", text)
        need(match, "vkey: NAME+KEYID+KEY")
        assert match is not None
        self.text, self.name, self.keyid = text, match[1], bytes.fromhex(match[2])
        data = unbase64(match[3])
        self.type, self.key = data[0], data[1:]
        if self.type == 0xFF:
            need(self.key.startswith(_ML_DSA_TYPE), "vkey: the long identifier of ML-DSA-65")
            self.key = self.key[len(_ML_DSA_TYPE) :]
            need(len(self.key) == 1952, "vkey: a key of ML-DSA-65")
        else:
            need(self.type in (1, 4) and len(self.key) == 32, "vkey: Ed25519, of a log or a witness")
        need(hashlib.sha256(self.name.encode() + b"\n" + data).digest()[:4] == self.keyid, "vkey: key id")

    def check(self, text: bytes, signature: bytes) -> int:
        """Verify a signature. Return the time of a cosignature, or 0 for another one."""
        spki, time = (_ML_DSA_START if self.type == 0xFF else bytes.fromhex("302a300506032b6570032100")) + self.key, 0
        if self.type == 4:
            need(len(signature) == 72, "cosignature: its length")
            time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            need(1 <= time < 2**63, "cosignature: its time")
            text = b"cosignature/v1\ntime %d\n" % time + text
        verify(spki, signature, text)
        return time


class Note:
    def __init__(self, data: bytes) -> None:
        text, separator, lines = data.decode().rpartition("\n\n")
        need(separator and lines.endswith("\n"), "note: text, an empty line, lines")
        self.text, self.lines = (text + "\n").encode(), []
        for line in lines[:-1].split("\n"):
            match = re.fullmatch(r"— (\S+) (\S+)", line)
            need(match, "note: a signature line")
            assert match is not None
            signature = unbase64(match[2])
            self.lines.append((match[1], signature[:4], signature[4:]))
        need(len(set(self.lines)) == len(self.lines), "note: no line twice")

    def times(self, *keys: Vkey) -> list[int]:
        """Return the times of all lines by these keys, each of which must be valid."""
        return [
            key.check(self.text, signature)
            for name, keyid, signature in self.lines
            for key in keys
            if (key.name, key.keyid) == (name, keyid)
        ]

    def checkpoint(self) -> tuple[str, int, bytes]:
        match = re.fullmatch(r"([^\n]+)\n(0|[1-9]\d*)\n(\S+)\n", self.text.decode())
        need(match, "checkpoint: origin, size and root")
        assert match is not None
        return match[1], int(match[2]), unbase64(match[3])


# The pages' tables, and the values of members.


def _table(page: str, mark: str) -> list[list[str]]:
    text = (PAGES / page).read_text().split(f"<!-- {mark}: written by scripts/reference -->")[1].split("<!-- end")[0]
    rows = [line[1:].removesuffix("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _ticks(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


@cache
def entry_types() -> dict[str, dict[str, Any]]:
    return {
        _ticks(row[0])[0]: {
            "actor": row[1],
            "outcomes": row[2].split(", "),
            "body": _ticks(row[3]),
            "required": _ticks(re.sub(r"\[[^]]*\]", "", row[4])),
            "documents": _ticks(row[4]),
            "orders": ["any"] if row[5] == "any" else _ticks(row[5]),
        }
        for row in _table("ledger.md", "entries")
    }


@cache
def order_actions() -> dict[str, dict[str, Any]]:
    return {
        _ticks(row[0])[0]: {
            "subjects": [((_ticks(one)[0], (*_ticks(one), None)[1])) for one in row[1].split(", ")],
            "about": _ticks(row[2]),
            "members": _ticks(row[3]),
        }
        for row in _table("order.md", "orders")
    }


@cache
def _members(page: str) -> dict[tuple[str, str | None], str]:
    found: dict[tuple[str, str | None], str] = {}
    for cell, value in _table(page, "members"):
        name, *owners = _ticks(cell)
        found.update({(name, owner): value for owner in owners or [None]})
    return found


PATTERNS = {
    "identifier": r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?",
    "version": r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?@[1-9]\d*",
    "run": r"r-\d{6,}",
    "digest": r"sha256:[0-9a-f]{64}",
    "commitment": r"hmac-sha256:[0-9a-f]{64}",
    "code": r"[a-z][a-z0-9-]{0,63}",
    "word": r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}",
    "decimal text": r"-?(0|[1-9]\d{0,8}|(0|[1-9]\d{0,8})\.\d{1,12})",
    "role": r"administrator|operator|auditor|unit|validator|recovery|(reviewer|release-owner):[a-z0-9][a-z0-9-]*",
    "base64": r"[A-Za-z0-9+/]+=*",
}


def _count(text: str | None, default: int) -> int:
    return int(text.replace(",", "")) if text else default


def _is_array(value: Any, kind: str) -> bool:
    match = re.fullmatch(r"array of (?:(?:(\d+) to |at most )([\d,]+): )?(.*)", kind)
    assert match is not None, kind
    inner = "anything" if match[3].startswith("array of integer and") else match[3]
    fits = isinstance(value, list) and _count(match[1], 0) <= len(value) <= _count(match[2], 10**6)
    return fits and all(has_value(one, inner) for one in value)


def _is_object(value: Any, kind: str) -> bool:
    members = _ticks(kind)
    if members:
        return isinstance(value, dict) and set(value) == set(members)
    return isinstance(value, dict) and all(has_value(one, kind[10:]) for one in value.values())


def _is_integer(value: Any, kind: str) -> bool:
    match = re.fullmatch(r"integer(?: from ([\d,]+)| ([\d,]+) to ([\d,]+))?", kind)
    assert match is not None, kind
    low, high = _count(match[1] or match[2], 0), _count(match[3], 2**53)
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_text(value: Any, kind: str) -> bool:
    match = re.fullmatch(r"text(?: of (?:at most|(\d+) to) ([\d,]+) characters)?", kind)
    assert match is not None, kind
    return isinstance(value, str) and _count(match[1], 0) <= len(value) <= _count(match[2], 65_535)


SIMPLE: dict[str, Callable[[Any], bool]] = {
    "boolean": lambda value: isinstance(value, bool),
    "time": lambda value: isinstance(value, str) and isinstance(ms(value), int),
    "decimal text or digest": lambda value: has_value(value, "decimal text") or has_value(value, "digest"),
    "anything": lambda value: True,
}
COMPOSED: dict[str, Callable[[Any, str], bool]] = {
    "one of ": lambda value, kind: value in _ticks(kind),
    "`": lambda value, kind: isinstance(value, str) and re.fullmatch(_ticks(kind)[0], value, re.ASCII) is not None,
    "array of ": _is_array,
    "object of ": _is_object,
    "integer": _is_integer,
    "text": _is_text,
}


def has_value(value: Any, kind: str) -> bool:
    """Whether it is what the table of members says."""
    if kind.endswith(", or null"):
        return value is None or has_value(value, kind[:-9])
    for start, check in COMPOSED.items():
        if kind.startswith(start):
            return check(value, kind)
    if kind in SIMPLE:
        return SIMPLE[kind](value)
    return isinstance(value, str) and re.fullmatch(PATTERNS[kind], value, re.ASCII) is not None


def check_members(page: str, owner: str, value: dict[str, Any], names: list[str]) -> None:
    table = _members(page)
    need(set(value) == set(names), f"{owner}: its members")
    for name in names:
        kind = table.get((name, owner)) or table.get((name, None))
        need(kind and has_value(value[name], kind), f"{owner}: {name} is {kind}")


def read_proof(text: str) -> tuple[int, list[bytes]]:
    """Return the index and the hashes of a c2sp.org/tlog-proof, up to its checkpoint."""
    first, *rest = text.split("\n\n")[0].split("\n")
    need(first == "c2sp.org/tlog-proof@v1", "proof: its first line")
    if rest and rest[0].startswith("extra "):
        unbase64(rest.pop(0)[6:])
    match = re.fullmatch(r"index (0|[1-9]\d*)", rest.pop(0) if rest else "")
    need(match, "proof: index")
    assert match is not None
    steps = [unbase64(one) for one in rest]
    need(all(len(one) == 32 for one in steps), "proof: hashes of 32 bytes")
    return int(match[1]), steps
