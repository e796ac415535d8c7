"""The one place where objects are built. It alone opens the keyring and hands out signers."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from appliance.config.values import Notices as NoticeSettings
from appliance.config.values import Settings
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.event import Event
from appliance.domain.core.policy import parse_policy
from appliance.domain.governance.service import Administrator, ServiceStarted
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import Trust, encode_trust, parse_trust
from appliance.formats.signatures.keys import Signer, keyid_of
from appliance.runners.decoys import Probes
from appliance.runners.hook import check_hook, run_hook
from appliance.runners.host import describe_host, multiplies_bfloat16
from appliance.runners.slurm.cluster import Cluster, Resources, Site
from appliance.runners.slurm.commands import Commands, command_environment
from appliance.runners.slurm.records import JobRecords
from appliance.store.database.claim import claim_founding
from appliance.store.database.engine import bring_up_to_date, check_migrated, migrate, open_engine
from appliance.store.database.processes import About, Processes
from appliance.store.database.sessions import Sessions
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.calibrations import Calibrations
from appliance.store.files.checkpoints import Checkpoints
from appliance.store.files.disk import write_file
from appliance.store.files.keyring import ADAPTER_KEY, Keyring
from appliance.store.files.local_sets import LocalSets
from appliance.store.files.lock import holder_of, lock_folder
from appliance.store.files.steps import Steps
from appliance.store.files.witnessed import Witnessed
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.snapshots import FindSigner, Snapshots
from appliance.web.console.app import console_app
from appliance.web.console.core.events import Changes
from appliance.web.console.home.tasks import waiting_for_all
from appliance.web.console.units.ask import Asks
from appliance.web.core.activity import Activity
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.logs import configure_logs, log_entry
from appliance.web.core.server import Door, Heart
from appliance.web.core.server import serve as serve_doors
from appliance.web.core.sockets import listen, open_people, open_tcp, raise_descriptors
from appliance.web.core.tls import open_tls, read_private
from appliance.web.operations import notices
from appliance.web.operations.health import LEAST_TOKEN, Readiness, operations_app
from appliance.web.operations.limits import Limits, Quotas
from appliance.web.operations.metrics import Metrics
from appliance.web.operations.notices import Waiting, mail_sender, program_sender
from appliance.web.people.api import people_app
from appliance.web.people.gate import Gate
from appliance.web.people.waiting import wait_for_clock
from appliance.web.units.asking import Asking
from appliance.web.units.gate import MOST
from appliance.web.units.openai import units_app
from appliance.workflows.core.code import describe_code
from appliance.workflows.core.context import Code, Context
from appliance.workflows.core.progress import Progress
from appliance.workflows.data.uploads import sweep_uploads
from appliance.workflows.integrity import rehash, snapshots, writeback
from appliance.workflows.lifecycle import founding
from appliance.workflows.lifecycle.following import Following
from appliance.workflows.lifecycle.garbage import tune_garbage_collector
from appliance.workflows.lifecycle.heartbeat import BEAT_S, beat, note_stall
from appliance.workflows.lifecycle.recovery import recover
from appliance.workflows.lifecycle.shutdown import shut_down
from appliance.workflows.operations.doctor import diagnose
from appliance.workflows.operations.findings import Finding
from appliance.workflows.operations.installation import Installation
from appliance.workflows.runs import checkpoints, steps
from appliance.workflows.serving.serve import Serving
from appliance.workflows.witnesses import exchange as witness

if TYPE_CHECKING:
    from appliance.web.operations.traces import Traces

log = logging.getLogger("appliance")

IDLE_S = 600.0
LONGEST_PAUSE_DAYS = 31
"""Between two entries, where nobody says that it was longer."""


@dataclass(frozen=True)
class Person:
    """An administrator at init: a name and a public key (SubjectPublicKeyInfo, DER)."""

    name: str
    spki: bytes


def init(
    settings: Settings,
    administrators: Sequence[Person],
    *,
    origin: str | None,
    single_administrator: bool,
    policy: bytes,
) -> Trust:
    """Folders, database, keys and the ledger's first entry; returns what is to be kept elsewhere. `policy`: the first
    policy set's document.

    BadInput, before anything is made, for a policy set that could not decide every order; Denied for one that these
    administrators could not replace. Conflict where a ledger
    stands already, before any key is made. What an interrupted init left is gone on with, if the same is asked for.
    """
    people = tuple(
        Administrator(name=p.name, key=encode_base64(p.spki), keyid=keyid_of(p.spki)) for p in administrators
    )
    wanted = founding.FoundingRequest(origin, people, single_administrator, policy)
    founding.check_policy(parse_policy(policy), wanted, encode_time(datetime.now(UTC)))
    with _home(settings), lock_folder(settings.lock):
        # A power cut may have come between the first entry and the trust file, never the other way round.
        if settings.trust.exists():
            raise Conflict(f"appliance in {settings.home}: expected none yet, got one with a ledger")
        # From before the tables are made until the first entry stands: two homes at once would each make keys.
        with claim_founding(open_engine(settings.migration_url)):
            return _found(settings, origin or founding.make_origin(), wanted)


@contextmanager
def _home(settings: Settings) -> Iterator[None]:
    """The folder; one that was made for this goes again where nothing came of it."""
    is_new = not settings.home.exists()
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if is_new and os.listdir(settings.home) == [settings.lock.name]:
                settings.lock.unlink()
                settings.home.rmdir()
        raise


def _found(settings: Settings, name: str, wanted: founding.FoundingRequest) -> Trust:
    engine = open_engine(settings.migration_url)
    try:
        migrate(engine)
    finally:
        engine.dispose()
    keyring = Keyring(settings.keys)
    first = _first_entry(_open_ledger(settings, name, "", keyring))
    if first is None:
        first = _append_first(settings, name, keyring, wanted)
    else:
        founding.check_begun(first, wanted, keyring)
        founding.make_keys(keyring)
    trust = founding.trust_of(first)
    # Whole on disk or not there.
    write_file(settings.trust, encode_trust(trust))
    return trust


def _first_entry(ledger: Ledger) -> Entry | None:
    """That of the log in the database, also where it is another installation's."""
    try:
        return parse_entry(ledger.entry_bytes(0))
    except NotFound:
        return None
    finally:
        ledger.close()


def _append_first(settings: Settings, origin: str, keyring: Keyring, wanted: founding.FoundingRequest) -> Entry:
    log_signer, adapter_signer = founding.make_keys(keyring)
    ledger = _open_ledger(settings, origin, vkey_of(origin, log_signer), keyring)
    try:
        appended = ledger.append(founding.draft_first(wanted, origin, log_signer, adapter_signer))
        return parse_entry(appended.entry_bytes)
    finally:
        ledger.close()


def _open_ledger(settings: Settings, origin: str, log_key: str, keyring: Keyring, code: Code | None = None) -> Ledger:
    """`code`: what folds the log, where that is kept between one start and the next."""
    engine = open_engine(settings.database_url, process=settings.process)
    try:
        check_migrated(engine)
    except BaseException:
        engine.dispose()
        raise
    held = keyring.log_signers(origin)

    def signer(vkey: str) -> Signer:
        if vkey not in held:
            # Made since, to rotate to.
            held.update(keyring.log_signers(origin))
        if vkey not in held:
            raise NotFound(f"log key {vkey}: expected it in {settings.keys}, got none")
        return held[vkey]

    return Ledger(
        engine,
        origin=origin,
        log_key=log_key,
        signers=signer,
        clock=lambda: datetime.now(UTC),
        snapshots=None if code is None else _snapshots(settings, origin, code, signer),
        longest_pause_days=LONGEST_PAUSE_DAYS,
    )


def _snapshots(settings: Settings, origin: str, code: Code, signers: FindSigner) -> Snapshots:
    digest = digest_bytes(repr(code).encode())
    return Snapshots(settings.snapshot, origin=origin, code=digest, signers=signers, least=snapshots.LEAST)


def _read_trust(settings: Settings) -> Trust:
    try:
        return parse_trust(settings.trust.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"appliance in {settings.home}: expected one, got none; make it with: appliance init") from None


@contextmanager
def service(
    settings: Settings,
    say: Callable[[str], None] = lambda _: None,
    *,
    after_pause: bool = False,
    rebuild: bool = False,
    processes: Processes | None = None,
) -> Iterator[Context]:
    """A loaded ledger and all that the workflows need. Tampered when the ledger does not hold. `say` hears how far the
    loading is. `after_pause`: the host's clock is right, however long ago the last entry is. `rebuild`: the projections
    are dropped and made anew. `processes`: where this one has its name."""
    trust = _read_trust(settings)
    _check_vllm(settings.vllm_packages)
    keyring = Keyring(settings.keys)
    adapter_signer = keyring.open_signer(ADAPTER_KEY)
    code = describe_code()
    if processes is None:
        processes = Processes()
        bring_up_to_date(settings.database_url, settings.migration_url, say)
    ledger = _open_ledger(settings, trust.origin, trust.log_key, keyring, code)
    ledger.fence, ledger.tells_others = processes.fence, bool(processes.others)
    ledger.clock.ahead_ms = processes.ahead_ms
    ledger.load(lambda folded, size: say(f"reads its log: {folded:,} of {size:,} entries"))
    if after_pause:
        ledger.clock.accept_pause(ledger.state.last_time)
    if rebuild or _is_other_build(ledger, code):
        say("rebuilds the projections")
        ledger.rebuild_projections()
    say("starts")
    _check_keyring(keyring, ledger)
    settings.logs.mkdir(mode=0o700, exist_ok=True)
    cuda = os.path.exists("/dev/nvidiactl")
    shared = settings.shared or settings.home
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    artifacts, run_steps = Artifacts(settings.home, shared, settings.process), Steps(shared)
    context = Context(
        ledger=ledger,
        sessions=Sessions(open_engine(settings.database_url, process=settings.process)),
        artifacts=artifacts,
        checkpoints=Checkpoints(shared),
        steps=run_steps,
        calibrations=Calibrations(settings.home),
        local_sets=LocalSets(settings.home, settings.harness_packages),
        progress=Progress(earlier=lambda key: steps.earlier_frames(ledger.state, artifacts, run_steps, key)),
        keyring=keyring,
        witnessed=Witnessed(settings.witnessed),
        adapter_signer=adapter_signer,
        clock=lambda: datetime.now(UTC),
        code=code,
        logs=settings.logs,
        probes=_probes(settings),
        host=describe_host(cuda),
        device="cuda" if cuda else "cpu",
        bfloat16=cuda or multiplies_bfloat16(),
        import_s=settings.import_s,
        import_cpu_s=settings.import_cpu_s,
        processes=processes,
        roles=settings.roles,
        runs_on=settings.runs_on,
        vllm=settings.vllm_packages,
    )
    context.cluster = _cluster(settings, context)
    context.missing_from_log = witness.compare(context) or witness.missing_cosignatures(context)
    if context.missing_from_log:
        ledger.close()
        raise context.missing_from_log[0]
    try:
        yield context
    finally:
        for worker in list(context.workers.values()):
            worker.kill()
        context.sessions.close()
        ledger.close()


def _join(settings: Settings, say: Callable[[str], None]) -> Processes:
    """This process among those of its log, whose tables are brought up to date on the way."""
    about = About(
        roles=tuple(sorted(settings.roles)),
        host=socket.gethostname(),
        pid=os.getpid(),
        code=describe_code().digest,
        since=encode_time(datetime.now(UTC)),
    )
    engine = open_engine(settings.database_url, process=settings.process)
    prepare = partial(bring_up_to_date, settings.database_url, settings.migration_url, say)
    return Processes(engine, settings.process, about, prepare, clock=lambda: datetime.now(UTC))


def _check_vllm(packages: Path | None) -> None:
    if packages is not None and not (packages / "vllm").is_dir():
        expected = "the site-packages of an environment with vLLM"
        raise BadInput(f"settings, vllm_packages: expected {expected}, got {packages}, which has no folder vllm")


def _is_other_build(ledger: Ledger, code: Code) -> bool:
    """Whether another build started last: its projections may lack what this one keeps of the same entries."""
    last = ledger.find(types=(ServiceStarted.type,), newest=True, limit=1)
    return any(parse_entry(data).body["code"] != code.digest for _, data in last)


def _check_keyring(keyring: Keyring, ledger: Ledger) -> None:
    """Whatever must sign the log now is held here: one that has ended since the last entry may have been destroyed."""
    site, now = ledger.state.site, max(encode_time(datetime.now(UTC)), ledger.state.last_time)
    missing = sorted(set(site.signing_keys(now)) - set(keyring.log_signers(site.origin)))
    if missing:
        raise Tampered(f"keyring: expected the log's keys, got none of {', '.join(missing)}; put the keys folder back")


def _cluster(settings: Settings, context: Context) -> Cluster | None:
    """The site's Slurm, where it has one."""
    asked = settings.slurm
    if asked is None:
        return None
    resources = Resources(
        partition=asked.partition,
        account=asked.account,
        time_limit=asked.time_limit,
        cpus=asked.cpus,
        memory=asked.memory,
        gres=asked.gres,
        warning_s=asked.warning_s,
    )
    site = Site(asked.folder, resources, asked.python, asked.scratch, asked.patience_s)
    commands = Commands(asked.commands, command_environment())
    return Cluster(site, commands, JobRecords(settings.home / "jobs"), context.closing)


def _probes(settings: Settings) -> Probes:
    """What no worker may reach: keys, the database where it is a file, the appliance's home."""
    read = {"read-keys": settings.keys}
    if settings.database_url.startswith("sqlite:///"):
        read["read-database"] = Path(settings.database_url.removeprefix("sqlite:///"))
    return Probes(read=read, write={"write-outside": settings.home})


def doctor(settings: Settings) -> Iterator[Finding]:
    """What is in order for this appliance and what is not; beside its service, without one, and before `init`."""
    unfit: str | None = None
    try:
        _tls(settings)
        _people_tls(settings)
        _console_tls(settings)
    except ApplianceError as error:
        unfit = error.message
    private = [settings.home / "trust.json"]
    if settings.database_url.startswith("sqlite:///"):
        private.append(Path(settings.database_url.removeprefix("sqlite:///")))
    certificate, operations = settings.certificate, settings.operations
    private += [] if certificate is None else [certificate.key]
    private += [] if operations is None else [operations.token]
    listeners = [("units' door", *settings.listen)] if settings.listen is not None else []
    people = settings.people
    listeners += [] if people is None else [("people's door", *people.listen)]
    listeners += [] if settings.console is None else [("console", *settings.console.listen)]
    listeners += [] if operations is None else [("operations", *operations.listen)]
    place = Installation(
        home=settings.home,
        keys=settings.keys,
        socket=settings.socket,
        database_url=settings.database_url,
        private=tuple(private),
        certificates=() if certificate is None else (certificate.chain,),
        listeners=tuple(listeners),
        pid=holder_of(settings.lock),
        settings=settings.home / "appliance.toml",
        passed=settings.socket_group is not None,
        unfit=unfit,
    )
    return diagnose(place, os.environ, datetime.now(UTC))


def serve(
    settings: Settings,
    *,
    embedded: bool,
    after_pause: bool = False,
    rebuild: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Runs the service until a signal; an embedded one ends after ten minutes without an open request. `ready` is
    called once nothing can refuse the start any more: the lock, certificates and ports are had first."""
    _read_trust(settings)  # before init there is nothing to lock
    configure_logs()
    raise_descriptors()
    with (
        lock_folder(settings.lock) as lock,
        _open_listeners(settings) as listeners,
        _join(settings, lock.say) as processes,
        service(settings, lock.say, after_pause=after_pause, rebuild=rebuild, processes=processes) as context,
    ):
        door, activity = Doorkeeper(context), Activity()
        url = None if settings.console is None else settings.console.url
        people_door = activity.watching(people_app(context, door, url))
        open_door = partial(open_people, settings.home, settings.socket, settings.socket_group)
        if wait_for_clock(
            context,
            settings.home,
            people_door,
            open_door=open_door,
            is_up=lambda: lock.say(""),
            ended=partial(_why_it_ends, context, activity, embedded=embedded),
        ):
            return
        lock.say("starts")
        serving = Serving(context)
        context.recheck_answers = serving.reconcile
        quotas, changes = Quotas(_limits(settings), MOST, time.monotonic), Changes()
        metrics, traces = Metrics(context, quotas), _open_traces(settings, context)
        context.appended, context.examine = partial(_observe, metrics, changes, traces), partial(doctor, settings)
        context.usage = lambda unit: (quotas.usage(unit), metrics.answered(unit))
        door.refused = metrics.refused
        recover(context)
        tune_garbage_collector()
        reason = "failed"
        _start_rounds(settings, context)
        units = activity.watching(units_app(serving, door, quotas, metrics, traces))
        asks = Asks(Asking(serving, metrics, traces), quotas)
        pages = None if url is None else activity.watching(console_app(context, door, url, changes, asks))
        doors = _doors(listeners, context, units, Gate(people_door, door), pages, metrics)
        heart = Heart(
            partial(
                beat,
                context,
                settings.home,
                counted=door.counted,
                sweep=partial(_sweep, context, door),
                maintain=serving.maintain,
            ),
            BEAT_S,
            partial(note_stall, context),
        )
        with Following(context, changes.note, serving.cut_all, serving.follow):
            try:
                with _open_people(settings, open_door, people_door) as local:
                    lock.say("")
                    ready()
                    ended = partial(_why_it_ends, context, activity, embedded=embedded)
                    # The people's socket last: where it is open, the service is up.
                    reason = serve_doors([*doors, *local], heart=heart, ended=ended)
            finally:
                serving.close()
                shut_down(context, door.counted, reason, lock.say)
                _close_traces(traces)


@contextmanager
def _open_people(
    settings: Settings, open_door: Callable[[], AbstractContextManager[socket.socket]], app: ASGIApp
) -> Iterator[list[Door]]:
    """The people's socket, where people come to this process."""
    if "people" not in settings.roles:
        yield []
        return
    with open_door() as opened:
        yield [Door(app, opened, guarded=False)]


@dataclass(frozen=True)
class _Listeners:
    """What the doors to a network stand on, as far as they are asked for."""

    tls: ssl.SSLContext | None
    units: socket.socket | None
    people_tls: ssl.SSLContext | None
    people: socket.socket | None
    """For people without an account on this machine."""
    console_tls: ssl.SSLContext | None
    console: socket.socket | None
    operations: socket.socket | None
    token: bytes


@contextmanager
def _open_listeners(settings: Settings) -> Iterator[_Listeners]:
    """Before the ledger is read: a port that is taken, or a certificate or a program that does not fit, is told at
    once."""
    if settings.notices is not None and settings.notices.command is not None:
        check_hook(settings.notices.command)
    tls, people_tls, console_tls = _tls(settings), _people_tls(settings), _console_tls(settings)
    people, console, operations = settings.people, settings.console, settings.operations
    token = b"" if operations is None else _read_operations_token(operations.token)
    with ExitStack() as opened:
        units = None if settings.listen is None else opened.enter_context(open_tcp(settings.listen))
        desks = None if people is None else opened.enter_context(open_tcp(people.listen, "people's door"))
        pages = None if console is None else opened.enter_context(open_tcp(console.listen, "console"))
        numbers = None if operations is None else opened.enter_context(open_tcp(operations.listen, "operations"))
        yield _Listeners(tls, units, people_tls, desks, console_tls, pages, numbers, token)


def _read_operations_token(path: Path) -> bytes:
    token = read_private(path, "operations token").strip()
    if len(token) < LEAST_TOKEN:
        raise BadInput(f"operations token: expected {LEAST_TOKEN} characters at least, got {len(token)}")
    return token


def _doors(
    listeners: _Listeners,
    context: Context,
    units: ASGIApp,
    people: ASGIApp,
    console: ASGIApp | None,
    metrics: Metrics,
) -> list[Door]:
    """Those that stand open to a network."""
    doors = []
    if listeners.units is not None:
        doors.append(Door(units, listen(listeners.units), listeners.tls))
    if listeners.people is not None:
        doors.append(Door(people, listen(listeners.people, "people's door"), listeners.people_tls))
    if listeners.console is not None and console is not None:
        doors.append(Door(console, listen(listeners.console, "console"), listeners.console_tls))
    if listeners.operations is not None:
        app = operations_app(Readiness(context), metrics, listeners.token)
        doors.append(Door(app, listen(listeners.operations, "operations"), listeners.tls))
    return doors


def _start_rounds(settings: Settings, context: Context) -> None:
    writeback.start(context)
    snapshots.start(context)
    checkpoints.start(context)
    if settings.rehash_s is not None:
        rehash.start(context, settings.rehash_s)
    if settings.notices is not None:
        url = "" if settings.console is None else settings.console.url
        _start_notices(settings.notices, context, url)


def _start_notices(settings: NoticeSettings, context: Context, url: str) -> None:

    def find() -> Iterator[tuple[str, list[Waiting]]]:
        state = context.ledger.state
        return waiting_for_all(state, context.now(state))

    senders = [] if settings.command is None else [program_sender(partial(run_hook, settings.command))]
    if (mail := settings.mail) is not None:
        senders.append(mail_sender(mail.server, mail.sender, mail.to))
    notices.start(context, settings.every_s, notices.Notices(find, tuple(senders), url))


def _observe(metrics: Metrics, changes: Changes, traces: Traces | None, entry: Entry, body: Event) -> None:
    changes.note(entry.type)
    values = vars(body)
    log_entry(entry, values, metrics.observe(entry, values))
    if traces is not None:
        traces.observe(entry, values)


def _open_traces(settings: Settings, context: Context) -> Traces | None:
    """The library is loaded only where it is used."""
    if settings.traces is None:
        return None
    from appliance.web.operations.traces import Collector, Traces

    return Traces(
        Collector(settings.traces),
        {"service.name": "appliance", "service.instance.id": context.ledger.state.site.origin},
    )


def _sweep(context: Context, door: Doorkeeper) -> None:
    """Once a minute: what has ended, and what was forgotten."""
    door.sweep()
    sweep_uploads(context)


def _close_traces(traces: Traces | None) -> None:
    if traces is not None:
        traces.close()


def _tls(settings: Settings) -> ssl.SSLContext | None:
    files = settings.certificate
    return None if files is None else open_tls(files.chain, files.key, files.client_ca)


def _people_tls(settings: Settings) -> ssl.SSLContext | None:
    files, people = settings.certificate, settings.people
    if files is None or people is None:
        return None
    return open_tls(files.chain, files.key, people.client_ca, not_of=files.client_ca)


def _console_tls(settings: Settings) -> ssl.SSLContext | None:
    files, console = settings.certificate, settings.console
    if files is None or console is None:
        return None
    return open_tls(files.chain, files.key, console.client_ca, not_of=files.client_ca)


def _limits(settings: Settings) -> dict[str, Limits]:
    return {unit: Limits(**given) for unit, given in settings.limits.items()}


def _why_it_ends(context: Context, activity: Activity, *, embedded: bool) -> str | None:
    if context.processes.is_lost:
        return "another service"
    return "idle" if embedded and not context.busy and activity.idle_s() > IDLE_S else None
