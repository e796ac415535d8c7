"""A small service on a real Unix socket: the spec's routes over a ledger in memory that the real rules guard.

What it answers can be bent by a test (`bend`), so that the client is seen to refuse an answer that lies.
"""

from __future__ import annotations

import base64
import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from appliance.domain import events as e
from appliance.domain.credentials import Session, parse_credential
from appliance.domain.entry import parse_entry
from appliance.domain.orders import TWO_ADMINISTRATORS, Endorse, Erase, Order, RotateLogKey, parse_order
from appliance.domain.questions import COUNTED_OF_ADAPTERS, could_load, used_by
from appliance.errors import ApplianceError, BadInput, Denied, NotAuthenticated, NotFound
from appliance.formats.canonical import encode_canonical, parse_canonical
from appliance.formats.commitment import disclosure_value, parse_disclosure_value
from appliance.formats.digest import digest_bytes
from appliance.formats.dsse import encode_envelope, parse_envelope, verify_envelope
from appliance.formats.export import write_export
from appliance.formats.keys import Ed25519Signer, generate_ed25519
from appliance.formats.merkle import Frontier, hash_leaf, inclusion_proof
from appliance.formats.note import vkey_of
from appliance.formats.rows import prove_row, row_digest, row_proof_value
from appliance.formats.timestamp import encode_time
from tests.domain.builder import ORIGIN, STEPS, Site, b64

NONCE = "5" * 32
FILES = {
    "adapter_model.safetensors": b"weights",
    "metrics.json": b'{"adapter":{"accuracy":"0.900000"},"base":{"accuracy":"0.400000"}}',
    "recipe.json": b'{"rank":8}',
    "steps.jsonl": STEPS,
}

_EVENTS: dict[str, type[e.Ordered]] = {
    "enroll": e.PrincipalEnrolled,
    "grant": e.RoleGranted,
    "revoke-principal": e.PrincipalRevoked,
    "adopt-policy": e.PolicyAdopted,
    "import-base": e.ImportRequested,
    "import-dataset": e.ImportRequested,
    "cancel": e.RunCancelled,
    "cancel-import": e.ImportCancelled,
    "resume": e.ResumeRequested,
    "replay": e.ReplayRequested,
    "review": e.ReviewRecorded,
    "activate": e.ReleaseActivated,
    "roll-back": e.ReleaseRolledBack,
    "revoke-adapter": e.AdapterRevoked,
    "export-adapter": e.AdapterExported,
    "revoke-base": e.BaseRevoked,
    "revoke-dataset": e.DatasetRevoked,
    "replace-key": e.KeyEnrolled,
    "rotate-key": e.KeyEnrolled,
    "revoke-key": e.KeyRevoked,
    "revoke-tokens": e.TokensRevoked,
    "rotate-log-key": e.LogKeyRotated,
    "erase": e.TextErased,
    "place-hold": e.HoldPlaced,
    "lift-hold": e.HoldLifted,
}

Answer = Any
Bend = Callable[[Any], Any]


def seal(site: Site, version: int = 1) -> None:
    """The last run's adapter, with files that people read."""
    body, documents = site.sealing(f"r-{len(site.state.runs):06d}", version, files=FILES)
    site.add(body, documents=documents)


def export_of(site: Site) -> bytes:
    """The whole log as the service exports it."""
    known = {disclosure.commitment: disclosure for disclosure in site.disclosures}
    return b"".join(
        write_export(
            origin=ORIGIN,
            size=len(site.entries),
            checkpoint=site.checkpoint(),
            entries=lambda: site.entries,
            document=lambda digest: site.documents[digest],
            disclosures=lambda wanted: {name: known[name] for name in wanted if name in known},
        )
    )


SHAPE = {"layers": 30, "hidden": 576, "inner": 1536, "heads": 9, "key_heads": 3, "head_size": 64, "words": 49152}
BASE_FACTS = {"dtype": "bfloat16", "parameters": 134_515_008, "shape": {**SHAPE, "tied": True}}
DATASET_FACTS = {
    "train_rows": 400,
    "held_out_rows": 100,
    "max_tokens": 80,
    "lengths": {"quantiles": [20, 40, 60, 80], "shared": 12, "trained": 4},
}
MACHINE = {
    "host": "a machine",
    "device": "cpu",
    "threads": 2,
    "bfloat16": True,
    "memory_bytes": 16_000_000_000,
    "disk_free_bytes": 50_000_000_000,
}


class Double:
    """The service's side of the wire. `bend[path]` changes what a path answers; `seen` are the requests."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tokens: set[str] = set()
        self.seen: list[tuple[str, str]] = []
        self.bend: dict[str, Bend] = {}
        self.uploads: dict[str, bytes] = {}
        self.imports: dict[str, dict[str, Any]] = {}
        self.progress: list[dict[str, Any]] = []
        self.files = dict(FILES)
        self.cases: list[dict[str, Any]] = []
        self.report: dict[str, Any] = {}
        self.dataset_rows: list[dict[str, Any]] = []
        self.log_keys: dict[str, Ed25519Signer] = {}

    def answer(self, method: str, target: str, body: bytes, token: str) -> Answer:
        url = urlsplit(target)
        self.seen.append((method, url.path))
        for pattern, needs_session, route in _ROUTES:
            match = re.fullmatch(pattern, f"{method} {url.path}")
            if match is None:
                continue
            if needs_session and token not in self.tokens:
                raise NotAuthenticated("session: expected a standing one, got none")
            found = route(self, *match.groups(), **({"query": _query(url.query)} if url.query else {}))(body)
            return self.bend.get(url.path, lambda value: value)(found)
        raise NotFound(f"{method} {url.path}: expected a known path, got another")

    # What the routes do.

    def about(self) -> Answer:
        trust, row = self.site.trust, self.site.state.site
        return {
            "origin": trust.origin,
            "log_key": row.log_key,
            "genesis": trust.genesis,
            "version": "test",
            "device": "cpu",
            "bfloat16": True,
            "single_administrator": row.single_administrator,
            "policy": row.policy,
            "parameters": row.parameters.model_dump(mode="json"),
        }

    def open_session(self, body: bytes) -> Answer:
        envelope = parse_envelope(encode_canonical(json.loads(body)["envelope"]))
        statement = parse_credential(Session, envelope.payload)
        key = self.site.state.keys.get(envelope.signature.keyid)
        if key is None or key.principal != statement.signer or statement.nonce != NONCE:
            raise NotAuthenticated(f"signature by {statement.signer}: expected an enrolled key, got another")
        verify_envelope(envelope, base64.b64decode(key.spki))
        token = f"token-{len(self.tokens)}-{statement.signer}"
        self.tokens.add(token)
        principal = self.site.state.principals.get(statement.signer)
        roles = [] if principal is None else list(principal.roles)
        return {
            "token": token,
            "principal": statement.signer,
            "roles": roles,
            "expires_at": statement.expires_at,
        }

    def submit(self, body: bytes) -> Answer:
        value = json.loads(body)
        envelope = parse_envelope(encode_canonical(value["envelope"]))
        order = parse_order(envelope.payload)
        documents = {role: base64.b64decode(text) for role, text in value["documents"].items()}
        documents["order"] = encode_envelope(envelope)
        signed = [(envelope.pae_digest, order)]
        verb, policy = order.verb, self.site.in_force
        if isinstance(order, Endorse):
            pending = self.site.state.pending.get(order.order)
            if pending is None:
                raise NotFound(f"order: expected a pending one, got {order.order}")
            stored = self._documents(pending.index)
            documents |= {"endorsed": stored.pop("order"), **stored}
            first = parse_order(parse_envelope(documents["endorsed"]).payload)
            signed.append((order.order, first))
            verb = first.verb
        elif verb in TWO_ADMINISTRATORS and not self.site.state.site.single_administrator:
            verb = "pending"
        result: dict[str, Any] = {"order": envelope.pae_digest}
        event: e.Ordered
        if verb == "pending":
            event = e.OrderPending(policy=policy)
        elif verb == "train":
            event = e.RunRequested(policy=policy, run=f"r-{len(self.site.state.runs) + 1:06d}")
            result["run"] = event.run
        else:
            event = _EVENTS[verb](policy=policy)
        self.site.now = max(self.site.now, encode_time(datetime.now(UTC)))
        entry = self.site.add(event, documents=documents, signed=tuple(signed))
        known = {disclosure.commitment for disclosure in self.site.disclosures}
        given = [parse_disclosure_value(text) for text in value["disclosures"]]
        self.site.disclosures += [text for text in given if text.commitment not in known]
        self._keep(entry.type, signed[-1][1])
        return {
            "index": entry.index,
            "type": entry.type,
            "outcome": entry.outcome,
            "order": envelope.pae_digest,
            "checkpoint": self.site.checkpoint().decode(),
            "result": result,
        }

    def _keep(self, type_: str, order: Order) -> None:
        """What lies beside the log follows its entries."""
        if type_ == "text.erased" and isinstance(order, Erase):
            self.site.disclosures = [d for d in self.site.disclosures if d.commitment != order.commitment]
        if type_ == "log-key.rotated" and isinstance(order, RotateLogKey):
            self.site.log = self.log_keys[order.log_key]
            self.site.log_signers = {**self.site.log_signers, order.log_key: self.site.log}

    def next_log_key(self) -> Answer:
        key = generate_ed25519()
        vkey = vkey_of(ORIGIN, key)
        self.log_keys[vkey] = key
        return {"vkey": vkey}

    def pending(self) -> Answer:
        rows = []
        for row in self.site.state.pending.values():
            documents = self._documents(row.index)
            envelope = documents.pop("order")
            rows.append(
                {
                    **row.model_dump(mode="json"),
                    "envelope": parse_canonical(envelope),
                    "disclosures": self._disclosed(parse_envelope(envelope).payload),
                    "documents": {role: b64(data) for role, data in documents.items()},
                }
            )
        return rows

    def _documents(self, index: int) -> dict[str, bytes]:
        bound = json.loads(self.site.entries[index])["documents"]
        return {role: self.site.documents[digest] for role, digest in bound.items()}

    def _disclosed(self, *sources: bytes) -> list[dict[str, str]]:
        whole = b"".join(sources).decode("utf-8", "replace")
        return [disclosure_value(d) for d in self.site.disclosures if d.commitment in whole]

    def upload(self, digest: str, body: bytes) -> Answer:
        if digest_bytes(body) != digest:
            raise BadInput(f"upload: expected {digest}, got {digest_bytes(body)}")
        self.uploads[digest] = body
        return {"digest": digest, "bytes": len(body)}

    def rows(self, table: str) -> Answer:
        if table == "principals":
            names = {d.commitment: d.text for d in self.site.disclosures}
            return [
                {**row.model_dump(mode="json"), "printed_name": names.get(row.printed_name or "")}
                for row in self.site.state.principals.values()
            ]
        return [row.model_dump(mode="json") for row in getattr(self.site.state, table).values()]

    def row(self, table: str, key: str) -> Answer:
        found = getattr(self.site.state, table).get(key)
        if found is None:
            raise NotFound(f"{table}: expected a known one, got {key!r}")
        return found.model_dump(mode="json")

    def run_progress(self, run: str, query: dict[str, str] | None = None) -> Answer:
        row = self.row("runs", run)
        after = int((query or {}).get("after", 0))
        return {
            "status": row["status"],
            "frames": [frame for frame in self.progress if frame["seq"] >= after],
            "next": len(self.progress),
            "detail": None,
            "adapter": next((k for k, a in self.site.state.adapters.items() if a.run == run), None),
        }

    def facts(self, query: dict[str, str]) -> Answer:
        base, dataset = self.row("bases", query["base"]), self.row("datasets", query["dataset"])
        facts = {"train_rows": 400, "max_tokens": 80, "context_length": 2048, "device": "cpu", "bfloat16": True}
        return {
            "base_digest": base["digest"],
            "dataset_digest": dataset["digest"],
            "facts": facts,
            "base_facts": BASE_FACTS,
            "dataset_facts": DATASET_FACTS,
            "machine": MACHINE,
        }

    def packet(self, name: str) -> Answer:
        adapter = self.row("adapters", name)
        run = self.row("runs", adapter["run"])
        return {
            "adapter": adapter,
            "run": run,
            "base": self.row("bases", run["base"]),
            "dataset": self.row("datasets", run["dataset"]),
        }

    def history(self, name: str) -> Answer:
        about = {f"adapter:{name}", f"run:{self.row('adapters', name)['run']}"}
        told = []
        for index, data in enumerate(self.site.entries):
            value = json.loads(data)
            if about & set(value["subjects"]) and value["type"] not in COUNTED_OF_ADAPTERS:
                order = self._documents(index).get("order")
                payload = b"" if order is None else parse_envelope(order).payload
                disclosures = self._disclosed(data, payload)
                told.append({"entry": b64(data), "order": order and b64(order), "disclosures": disclosures})
        return {"entries": told, "requests": {"answered": 1, "failure": 0, "interrupted": 0, "open": 0}}

    def could_load(self, unit: str, query: dict[str, Any] | None = None) -> Answer:
        answer = could_load(self.site.state, unit, self.site.state.last_time)
        named = [(index, json.loads(self.site.entries[index])) for index in answer.rests_on]
        names = [row.printed_name for row in self.site.state.principals.values()]
        return {
            **answer.model_dump(mode="json"),
            "as_of": len(self.site.entries) - 1,
            "policy_entry": 0,
            "rests_on": [{"entry": at, **{n: value[n] for n in ("time", "type", "actor")}} for at, value in named],
            "disclosures": [disclosure_value(d) for d in self.site.disclosures if d.commitment in names],
        }

    def state(self, query: dict[str, Any] | None = None) -> Answer:
        rows = [
            {"kind": kind, "id": key, "since": 0, "value": value}
            for kind, key, value in self.site.state.projections()
            if query is None or query["kinds"] in ([], [kind])
        ]
        return {"as_of": len(self.site.entries) - 1, "time": self.site.state.last_time, "things": rows}

    def uses(self, name: str) -> Answer:
        return [uses.model_dump(mode="json") for uses in used_by(self.site.state, name)]

    def find_rows(self, name: str, body: bytes) -> Answer:
        """The rows that a test has laid into `dataset_rows`, in each version of the dataset."""
        text = json.loads(body)["text"]
        lines = [encode_canonical(row) for row in self.dataset_rows]
        digests = [row_digest(bytes(32), index, line) for index, line in enumerate(lines)]
        proofs = [
            row_proof_value(prove_row(bytes(32), digests, index, line))
            for index, line in enumerate(lines)
            if self.dataset_rows[index]["text"] == text
        ]
        return [
            {"dataset": key, "imported": row.index, "found": len(proofs), "proofs": proofs}
            for key, row in self.site.state.datasets.items()
            if name in (key, row.name)
        ]

    def show(self, index: int) -> Answer:
        frontier, nodes = Frontier.EMPTY, {}
        for at, data in enumerate(self.site.entries):
            frontier, completed = frontier.append_nodes(hash_leaf(data))
            nodes.update({(level, at >> level): node for level, node in enumerate(completed)})
        if index >= len(self.site.entries):
            raise NotFound(f"entry: expected one of {len(self.site.entries)}, got {index}")
        proof = inclusion_proof(index, len(self.site.entries), lambda level, place: nodes[level, place])
        documents = self._documents(index)
        payloads = [parse_envelope(data).payload for role, data in documents.items() if role in ("order", "endorsed")]
        return {
            "index": index,
            "bytes": b64(self.site.entries[index]),
            "documents": {role: b64(data) for role, data in documents.items()},
            "disclosures": self._disclosed(self.site.entries[index], *payloads),
            "proof": [step.hex() for step in proof],
            "checkpoint": self.site.checkpoint().decode(),
        }

    def find(self, query: dict[str, Any]) -> Answer:
        rows = []
        for index, data in enumerate(self.site.entries):
            value = json.loads(data)
            fits = all(value[name] == query[name] for name in ("actor", "outcome") if name in query)
            fits = fits and (not query["types"] or value["type"] in query["types"])
            subjects = [*query["subjects"], *([f"unit:{query['unit']}"] if "unit" in query else [])]
            fits = fits and set(subjects) <= set(value["subjects"])
            fits = fits and query.get("since", "") <= value["time"] <= query.get("until", "9")
            if fits and int(query.get("after", -1)) < index < int(query.get("before", 10**9)):
                rows.append({"index": index, "bytes": b64(data)})
        if query.get("newest") == "true":
            rows.reverse()
        page = rows[: min(int(query["limit"]), 7)]
        return {
            "entries": page,
            "next": page[-1]["index"] if len(page) < len(rows) else None,
            "size": len(self.site.entries),
        }

    def training_checkpoints(self, run: str) -> Answer:
        return [
            made.model_dump(mode="json") for made in self.site.state.training_checkpoints.values() if made.run == run
        ]

    def replay(self, order: str, query: dict[str, Any]) -> Answer:
        """Trained again at once; `bend["replayed"]` makes of the verdict what a test wants."""
        row = self.site.state.replays.get(order)
        assert row is not None
        if row.status == "requested":
            body = self.site.replayed(parse_entry(self.site.entries[row.index]), row.run)
            self.site.add(self.bend.get("replayed", lambda value: value)(body))
            row = self.site.state.replays.get(order) or row
        return {**row.model_dump(mode="json"), "progress": []}

    def policy(self) -> Answer:
        document = self.site.documents[self.site.in_force]
        return {"digest": self.site.in_force, "policy": {}, "document": b64(document)}


def _query(text: str) -> dict[str, Any]:
    """The parameters, the last of each name; those that may be repeated as lists beside them."""
    pairs = parse_qsl(text)
    lists = {f"{name}s": [value for key, value in pairs if key == name] for name in ("type", "subject", "kind")}
    return {**dict(pairs), **lists}


Route = Callable[..., Callable[[bytes], Answer]]


def _plain(method: Callable[..., Answer]) -> Route:
    """A route that does not look at the body."""
    return lambda double, *words, **query: lambda body: method(double, *words, **query)


_ROUTES: list[tuple[str, bool, Route]] = [
    ("GET /v1/about", False, _plain(Double.about)),
    ("POST /v1/sessions/challenge", False, _plain(lambda double: {"nonce": NONCE})),
    ("POST /v1/sessions", False, lambda double: double.open_session),
    ("POST /v1/orders", False, lambda double: double.submit),
    ("GET /v1/orders/pending", True, _plain(Double.pending)),
    ("PUT /v1/uploads/(.*)", True, lambda double, digest: lambda body: double.upload(digest, body)),
    ("GET /v1/(principals|bases|datasets|imports|runs|adapters|releases|holds|witnesses)", True, _plain(Double.rows)),
    ("POST /v1/log-keys", True, _plain(Double.next_log_key)),
    ("GET /v1/(bases|datasets|runs|adapters)/([^/]*)", True, _plain(Double.row)),
    ("GET /v1/imports/([^/]*)", True, _plain(lambda double, order, query: double.imports[order])),
    ("GET /v1/runs/(.*)/checkpoints", True, _plain(Double.training_checkpoints)),
    ("GET /v1/replays/([^/]*)", True, _plain(Double.replay)),
    ("GET /v1/runs/(.*)/steps", True, _plain(lambda double, run: double.files["steps.jsonl"])),
    ("GET /v1/runs/(.*)/progress", True, _plain(Double.run_progress)),
    ("GET /v1/recipes/facts", True, _plain(Double.facts)),
    ("GET /v1/adapters/(.*)/review", True, _plain(Double.packet)),
    ("GET /v1/adapters/.*/files/(.*)", True, _plain(lambda double, path: double.files[path])),
    ("GET /v1/adapters/(.*)/history", True, _plain(Double.history)),
    ("GET /v1/units/(.*)/could-load", True, _plain(Double.could_load)),
    ("GET /v1/datasets/(.*)/uses", True, _plain(Double.uses)),
    ("POST /v1/datasets/(.*)/row", True, lambda double, name: lambda body: double.find_rows(name, body)),
    ("GET /v1/ledger/state", True, _plain(Double.state)),
    ("GET /v1/ledger", True, _plain(Double.find)),
    ("GET /v1/ledger/export", True, _plain(lambda double: b"tar" * 1000)),
    ("GET /v1/ledger/([0-9]+)", True, _plain(lambda double, index: double.show(int(index)))),
    ("POST /v1/ledger/verify", True, _plain(lambda double: double.report)),
    ("POST /v1/policy/test", True, _plain(lambda double: {"results": double.cases})),
    ("GET /v1/policy", True, _plain(Double.policy)),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: Double

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status = 200
        try:
            found = self.double.answer(self.command, self.path, body, token)
        except ApplianceError as error:
            status = error.status
            reasons = list(error.reasons) if isinstance(error, Denied) else []
            found = {"error": {"code": error.code, "message": error.message, "reasons": reasons}}
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def serving(double: Double, path: Path) -> Iterator[None]:
    """Listens at the path until left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = type("Handler", (_Handler,), {"double": double})
    with _Server(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join()
    path.unlink(missing_ok=True)
