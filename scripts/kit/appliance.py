"""A whole appliance for tests: a real service process, real workers in real sandboxes, people with keys.

The base is a tiny random model, so that a run takes seconds. tests/journeys uses a real one.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai

from appliance import wiring
from appliance.client.support.connection import is_answering
from appliance.config.settings import Settings, load_settings
from appliance.domain.core import credentials
from appliance.domain.core.names import add_seconds, encode_value
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.records.data import BoundSet
from appliance.domain.data.imports import ImportBase, ImportDataset, ImportValidationSet
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.people import Enrol
from appliance.domain.governance.policies import assemble_policy
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import ResolutionFacts, resolve_recipe
from appliance.domain.releases.activations import Activate
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.domain.runs.training import Train
from appliance.formats.artifacts.manifest import Manifest, ManifestFile, encode_manifest
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.commitment import Disclosure, disclose, disclosure_value
from appliance.formats.core.digest import digest_bytes, digest_file
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import Trust, parse_trust
from appliance.formats.signatures.dsse import Envelope, encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Ed25519Signer, encode_key_file, generate_ed25519
from scripts.kit import forks
from scripts.kit.certificates import Authority

ROOT = Path(__file__).resolve().parents[2]
ROLES = {
    "legal": "unit",
    "claims": "unit",
    "olga": "operator",
    "rita": "reviewer:privacy",
    "rob": "reviewer:model-risk",
    "lou": "release-owner:legal",
    "cleo": "release-owner:claims",
    "axel": "auditor",
}
PASSPHRASE = b"correct horse battery"
START_S = 180.0
"""Seconds in which a service starts, or ends, on a machine that does other work, too."""
QUICK = {"rank": 4, "alpha": 8, "epochs": 1, "batch_size": 8, "learning_rate": "0.01", "gradient_checkpointing": "none"}


class Refused(Exception):
    """The service answered with an error: HTTP status, code, message, reasons, and the codes of its refusals."""

    def __init__(self, answer: httpx.Response) -> None:
        self.status = answer.status_code
        error = answer.json()["error"]
        # A unit is told OpenAI's code, and ours behind it.
        self.code, self.message = error.get("appliance_code", error["code"]), error["message"]
        refusals = error.get("refusals", [])
        self.codes = [one["code"] for one in refusals]
        self.reasons = [f"{one['sentence']} {one['remedy']}" for one in refusals] or error.get("reasons", [])
        super().__init__(f"{self.status} {self.code}: {self.message} {' '.join(self.reasons)}")


@dataclass
class Appliance:
    """One home and the people around it. `start` runs the service, `kill` ends it as a power cut would."""

    home: Path
    keys: dict[str, Ed25519Signer]
    launcher: tuple[str, ...] = ("-m", "appliance", "serve")
    environment: dict[str, str] = field(default_factory=dict)
    service: subprocess.Popen[bytes] | forks.Forked | None = None
    sessions: dict[str, str] = field(default_factory=dict)
    clients: list[httpx.Client] = field(default_factory=list)
    """Clients that stay open until the service ends."""
    authority: Authority | None = None
    """The site's own CA, where units are spoken to over TLS."""

    @property
    def settings(self) -> Settings:
        return load_settings(self.home, self.environment)

    @property
    def trust(self) -> Trust:
        return parse_trust(self.settings.trust.read_bytes())

    # --- the service --------------------------------------------------------------------------------------------------

    def start(self, *extra: str, wait: bool = True) -> None:
        own = {"PYTHONPATH": str(ROOT), "APPLIANCE_HOME": str(self.home), "APPLIANCE_DISK_RESERVE": "1"}
        environment = {**os.environ, **own, **self.environment}
        with open(self.home / "service.log", "ab") as log, open(os.devnull, "rb") as nothing:
            command = [*self.launcher, *extra]
            if "PYTEST_VERSION" in os.environ:
                self.service = forks.run(command, environment, (nothing.fileno(), log.fileno(), log.fileno()))
            else:
                # What a bench measures is a process of its own.
                self.service = subprocess.Popen(
                    [sys.executable, *command], env=environment, stdout=log, stderr=log, cwd=ROOT
                )
        self.sessions.clear()
        if wait:
            self.wait_until_up()

    def wait_until_up(self, timeout_s: float = START_S) -> None:
        deadline, path = time.monotonic() + timeout_s, self.settings.socket
        while time.monotonic() < deadline:
            assert self.service is not None
            if self.service.poll() is not None:
                raise RuntimeError(f"service ended with {self.service.returncode}: {self.log()[-2000:]}")
            if is_answering(path):
                return
            time.sleep(0.05)
        raise RuntimeError(f"service did not answer: {self.log()[-2000:]}")

    def log(self) -> str:
        return (self.home / "service.log").read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.service is not None
        while self.clients:
            self.clients.pop().close()
        if self.service.poll() is None:
            self.service.send_signal(number)
        code = self.service.wait(START_S)
        self.service = None
        return code

    def kill(self) -> int:
        return self.stop(signal.SIGKILL)

    # --- listeners ----------------------------------------------------------------------------------------------------

    def http(self) -> httpx.Client:
        # Without TLS, as in `units`: to verify, httpx would read the CAs of the system for every client.
        transport = httpx.HTTPTransport(uds=str(self.settings.socket), verify=False)
        return httpx.Client(transport=transport, base_url="http://appliance", timeout=120)

    @property
    def url(self) -> str:
        """The units' API."""
        host, port = self.settings.listen or ("127.0.0.1", 0)
        return f"{'http' if self.settings.certificate is None else 'https'}://{host}:{port}"

    def units(self) -> httpx.Client:
        """At the units' API; over TLS it trusts only the site's own CA."""
        verify = False if self.authority is None else self.authority.trusting()
        self.clients.append(httpx.Client(base_url=self.url, timeout=120, verify=verify))
        return self.clients[-1]

    def openai(self, unit: str = "legal", token: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=token or self.token(unit),
            http_client=self.units(),
            max_retries=0,
        )

    def secure(self) -> None:
        """From its next start on, units are spoken to over TLS."""
        self.authority = Authority(self.home.parent / f"{self.home.name}-ca")
        files = self.authority.issue("appliance")
        self.environment["APPLIANCE_CERTIFICATE"] = str(files.chain)
        self.environment["APPLIANCE_CERTIFICATE_KEY"] = str(files.key)

    def ask(self, method: str, path: str, who: str | None = "olga", **more: Any) -> Any:
        headers = {} if who is None else {"Authorization": f"Bearer {self.session(who)}"}
        with self.http() as client:
            answer = client.request(method, path, headers=headers, **more)
        if answer.status_code >= 400:
            raise Refused(answer)
        return answer.json() if answer.headers["content-type"] == "application/json" else answer.content

    def get(self, path: str, who: str | None = "olga", **parameters: Any) -> Any:
        return self.ask("GET", path, who, params=parameters)

    def session(self, who: str, lifetime_s: int = 900) -> str:
        if who not in self.sessions:
            nonce = self.ask("POST", "/v1/sessions/challenge", None)["nonce"]
            now = self.now()
            statement = credentials.SessionStatement(
                origin=self.trust.origin,
                signer=who,
                nonce=nonce,
                issued_at=now,
                expires_at=add_seconds(now, lifetime_s),
            )
            envelope = sign_envelope(credentials.encode_credential(statement), self.keys[who])
            body = {"envelope": parse_canonical(encode_envelope(envelope))}
            self.sessions[who] = self.ask("POST", "/v1/sessions", None, json=body)["token"]
        return self.sessions[who]

    def token(
        self, unit: str, key: Ed25519Signer | None = None, *, origin: str | None = None, ttl_s: int = 3600
    ) -> str:
        now = self.now()
        token = credentials.UnitToken(
            origin=origin or self.trust.origin,
            signer=unit,
            nonce=os.urandom(16).hex(),
            issued_at=now,
            expires_at=add_seconds(now, ttl_s),
        )
        return credentials.encode_token(sign_envelope(credentials.encode_credential(token), key or self.keys[unit]))

    def chat(self, unit: str, model: str, text: str = "the parties agree", **more: Any) -> dict[str, Any]:
        """One chat completion through the units' API; Refused with its status when it is refused."""
        token = more.pop("token", None) or self.token(unit)
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": text}], **more}
        with self.units() as client:
            answer = client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {token}"})
        if answer.status_code >= 400:
            raise Refused(answer)
        return dict(answer.json())

    # --- orders -------------------------------------------------------------------------------------------------------

    def now(self) -> str:
        return encode_time(datetime.now(UTC))

    def terms(self, who: str, lifetime_s: int = 600) -> dict[str, Any]:
        now = self.now()
        return {
            "origin": self.trust.origin,
            "signer": who,
            "nonce": os.urandom(16).hex(),
            "issued_at": now,
            "expires_at": add_seconds(now, lifetime_s),
        }

    def sign(self, order: Order, key: Ed25519Signer | None = None) -> Envelope:
        return sign_envelope(encode_order(order), key or self.keys[order.signer])

    def send(self, envelope: Envelope, *texts: Disclosure, **documents: bytes) -> dict[str, Any]:
        """Submit an order. Return its entry as the service answers, with the result. Raise Refused if refused."""
        body = {
            "envelope": parse_canonical(encode_envelope(envelope)),
            "disclosures": [disclosure_value(text) for text in texts],
            "documents": {role: base64.b64encode(data).decode() for role, data in documents.items()},
        }
        answer = self.ask("POST", "/v1/orders", None, json=body)
        entry = parse_canonical(base64.b64decode(answer["bytes"]))
        made = {name: value for name, value in entry["body"].items() if name != "policy"}
        return {**answer, **entry, "order": envelope.pae_digest, "result": {"order": envelope.pae_digest} | made}

    def order(self, order: Order, *texts: Disclosure, **documents: bytes) -> dict[str, Any]:
        return self.send(self.sign(order), *texts, **documents)

    def prove(self, name: str, key: Ed25519Signer) -> Envelope:
        """Sign the key's statement of possession under this name."""
        possession = credentials.Possession(
            origin=self.trust.origin,
            signer=name,
            nonce=os.urandom(16).hex(),
            issued_at=self.now(),
            key=base64.b64encode(key.spki).decode(),
            keyid=key.keyid,
        )
        return sign_envelope(credentials.encode_credential(possession), key)

    def propose_enrolment(self, name: str, *roles: str, by: str = "anna") -> tuple[Envelope, Disclosure, bytes]:
        key = self.keys.setdefault(name, generate_ed25519())
        spki = base64.b64encode(key.spki).decode()
        proof = self.prove(name, key)
        printed = disclose(name.title(), os.urandom(32))
        order = Enrol(
            principal=name,
            printed_name=printed.commitment,
            roles=roles,
            key=spki,
            keyid=key.keyid,
            possession=proof.pae_digest,
            **self.terms(by),
        )
        return self.sign(order), printed, encode_envelope(proof)

    def enrol(self, name: str, *roles: str) -> None:
        envelope, printed, proof = self.propose_enrolment(name, *roles)
        self.send(envelope, printed, possession=proof)
        self.countersign(envelope.pae_digest)

    def countersign(self, digest: str, by: str = "ben") -> dict[str, Any]:
        return self.order(Countersign(order=digest, **self.terms(by)))

    # --- making -------------------------------------------------------------------------------------------------------

    def upload(self, data: bytes, by: str = "olga") -> str:
        digest, size = digest_bytes(data), 1 << 20
        # In pieces: given whole, what is left is copied again for every write to the socket.
        pieces = (data[start : start + size] for start in range(0, len(data), size))
        headers = {"Authorization": f"Bearer {self.session(by)}", "Content-Length": str(len(data))}
        with self.http() as client:
            answer = client.put(f"/v1/uploads/{digest}", content=pieces, headers=headers)
        if answer.status_code >= 400:
            raise Refused(answer)
        return digest

    def import_base(self, folder: Path, name: str = "tiny") -> dict[str, Any]:
        return self.wait_import(self.order_base(folder, name))

    def order_base(self, folder: Path, name: str = "tiny") -> str:
        """Order the import and return the order's digest without waiting."""
        files = tuple(
            ManifestFile(path.name, path.stat().st_size, digest_file(path)) for path in sorted(folder.iterdir())
        )
        for path in sorted(folder.iterdir()):
            self.upload(path.read_bytes())
        source = self.upload(encode_manifest(Manifest(name, 1, files)))
        order = ImportBase(base=name, format="safetensors", source=source, licence="Apache-2.0", **self.terms("olga"))
        return str(self.order(order)["order"])

    def import_dataset(
        self, rows: bytes, name: str = "clauses", base_name: str = "tiny", **terms: Any
    ) -> dict[str, Any]:
        return self.wait_import(self.order_dataset(rows, name, base_name, **terms))

    def order_dataset(
        self,
        rows: bytes,
        name: str = "clauses",
        base_name: str = "tiny",
        *,
        instruction: str = "",
        held_out: bytes | None = None,
        **terms: Any,
    ) -> str:
        """Order the import and return the order's digest without waiting."""
        told, owner = disclose(instruction, os.urandom(32)), disclose("Legal", os.urandom(32))
        order = ImportDataset(
            dataset=name,
            **{"dataset_kind": "classification", "format": "csv", "columns": {}, "labels": (), **terms},
            file=self.upload(rows),
            instruction=told.commitment,
            base=base_name,
            base_digest=self.get(f"/v1/bases/{base_name}")["digest"],
            seed=1,
            held_out="0.25" if held_out is None else self.upload(held_out),
            owner=owner.commitment,
            licence="CC0-1.0",
            classification="internal",
            **self.terms("olga"),
        )
        return str(self.order(order, told, owner)["order"])

    def order_rows(self, kind: type[ImportDataset | ImportValidationSet], file: str, by: str) -> str:
        """Order the import of an upload by its digest alone, and return the order's digest."""
        told, owner = disclose("", os.urandom(32)), disclose("Legal", os.urandom(32))
        own = (
            {"dataset": "ordered", "seed": 1, "held_out": "0.25"}
            if kind is ImportDataset
            else {"validation_set": "ordered", "blind": False, "final": False}
        )
        order = kind(
            **{"dataset_kind": "classification", "format": "csv", "columns": {}, "labels": (), **own},
            file=file,
            instruction=told.commitment,
            base="tiny",
            base_digest=self.get("/v1/bases/tiny")["digest"],
            owner=owner.commitment,
            licence="CC0-1.0",
            classification="public",
            **self.terms(by),
        )
        return str(self.order(order, told, owner)["order"])

    def import_set(self, rows: bytes, name: str = "exam", by: str = "vera", **terms: Any) -> dict[str, Any]:
        """Import a validation set; by default it is not blind and not final."""
        told, owner = disclose("", os.urandom(32)), disclose("Legal", os.urandom(32))
        defaults = {"dataset_kind": "classification", "format": "csv", "columns": {}, "labels": ()}
        order = ImportValidationSet(
            validation_set=name,
            **{**defaults, "blind": False, "final": False, **terms},
            file=self.upload(rows, by),
            instruction=told.commitment,
            base="tiny",
            base_digest=self.get("/v1/bases/tiny")["digest"],
            owner=owner.commitment,
            licence="CC0-1.0",
            classification="internal",
            **self.terms(by),
        )
        return self.wait_import(str(self.order(order, told, owner)["order"]))

    def bind_sets(self, *names: str) -> tuple[BoundSet, ...]:
        """Their first versions, as an order to train binds them."""
        rows = {name: self.get(f"/v1/validation-sets/{name}@1") for name in sorted(names)}
        return tuple(BoundSet(validation_set=f"{name}@1", digest=row["digest"]) for name, row in rows.items())

    def wait_import(self, order: str) -> dict[str, Any]:
        while (found := self.get(f"/v1/imports/{order}", wait_s=5))["status"] == "requested":
            continue
        return dict(found)

    def write_key(self, who: str, folder: Path) -> list[str]:
        """Write a person's key file and passphrase file; return the options that name them."""
        key = encode_key_file(self.keys[who].private, PASSPHRASE, salt=who.encode().ljust(32), nonce=bytes(12))
        files = {folder / "own.key": key, folder / "pass": PASSPHRASE}
        for path, data in files.items():
            path.write_bytes(data)
            path.chmod(0o600)
        return ["--key", str(folder / "own.key"), "--passphrase-file", str(folder / "pass")]

    def train_order(self, name: str = "clauses", by: str = "olga", **recipe: Any) -> Train:
        written = {"name": name, "base": "tiny", "dataset": "clauses@1", **QUICK, **recipe}
        found = self.get("/v1/recipes/facts", base=written["base"], dataset=written["dataset"])
        resolved = resolve_recipe(parse_recipe(written), ResolutionFacts(**found["facts"]))
        return Train(
            recipe=resolved,
            base_digest=found["base_digest"],
            dataset_digest=found["dataset_digest"],
            **self.terms(by),
        )

    def train(self, name: str = "clauses", **recipe: Any) -> dict[str, Any]:
        return self.wait_run(self.order(self.train_order(name, **recipe))["result"]["run"])

    def wait_run(self, run: str) -> dict[str, Any]:
        after = 0
        while not (found := self.get(f"/v1/runs/{run}/progress", after=after, wait_s=5))["ended"]:
            after = found["next"]
        return dict(found)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def adapter(self, name: str = "clauses@1") -> dict[str, Any]:
        return dict(self.get(f"/v1/adapters/{name}"))

    def on(self, name: str) -> dict[str, Any]:
        row = self.adapter(name)
        return {"adapter": row["name"], "version": row["version"], "manifest": row["manifest"]}

    def review_order(self, who: str, unit: str = "legal", name: str = "clauses@1", **changes: Any) -> tuple[Any, Any]:
        meaning = disclose("I reviewed it and approve.", os.urandom(32))
        values = {
            "decision": "approve",
            "unit": unit,
            "review_function": ROLES.get(who, "reviewer:privacy").partition(":")[2] or "privacy",
            "meaning": meaning.commitment,
            "valid_until": None if changes.get("decision") == "reject" else add_seconds(self.now(), 30 * 86_400),
            "request": None,
            "conditions": None,
            "on_behalf_of": None,
            "opened": (),
            **self.on(name),
            **self.terms(who),
            **changes,
        }
        return ReviewAdapter(**values), meaning

    def review(self, who: str, unit: str = "legal", name: str = "clauses@1", **changes: Any) -> dict[str, Any]:
        order, meaning = self.review_order(who, unit, name, **changes)
        return self.order(order, meaning)

    def approve(self, unit: str = "legal", name: str = "clauses@1") -> None:
        for who in ("rita", "rob"):
            self.review(who, unit, name)

    def activate(
        self,
        unit: str = "legal",
        name: str = "clauses@1",
        served_model: str = "labels",
        *,
        adds_instruction: bool = False,
    ) -> dict[str, Any]:
        owner = {"legal": "lou", "claims": "cleo"}[unit]
        terms = {"adds_instruction": adds_instruction, **self.on(name), **self.terms(owner)}
        return self.order(Activate(unit=unit, served_model=served_model, **terms))

    # --- the ledger ---------------------------------------------------------------------------------------------------

    def entries(self, **filters: Any) -> list[dict[str, Any]]:
        found = self.get("/v1/ledger", "axel", limit=1000, **filters)["entries"]
        return [parse_canonical(base64.b64decode(entry["bytes"])) for entry in found]

    def types(self) -> list[str]:
        return [entry["type"] for entry in self.entries()]

    def verify(self) -> dict[str, Any]:
        trust = parse_canonical(self.settings.trust.read_bytes()[:-1])
        return dict(self.ask("POST", "/v1/ledger/verify", "axel", json={"trust": trust}))

    def copy(self, home: Path, port: int) -> Appliance:
        """Copy a stopped site, for a test that damages the copy."""
        assert self.service is None
        shutil.copytree(self.home, home, symlinks=True)
        return Appliance(
            home, dict(self.keys), self.launcher, {**self.environment, "APPLIANCE_LISTEN": f"127.0.0.1:{port}"}
        )


def found_site(home: Path, port: int, roles: Mapping[str, str] = ROLES, **environment: str) -> Appliance:
    """Found an appliance, start its service, and enrol everybody in `roles`."""
    keys = {name: generate_ed25519() for name in ("anna", "ben", *roles)}
    site = Appliance(home, keys, environment={"APPLIANCE_LISTEN": f"127.0.0.1:{port}", **environment})
    policy = ROOT / "policies" / "default"
    wiring.init(
        site.settings,
        [wiring.Person(name, keys[name].spki) for name in ("anna", "ben")],
        origin="bank.example/test",
        single_administrator=False,
        policy=encode_value(assemble_policy("default", {path.name: path.read_bytes() for path in policy.iterdir()})),
    )
    site.start()
    for name, role in roles.items():
        site.enrol(name, role)
    return site
