"""The service process, from its lock to its end."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from appliance.build import COMPATIBILITY
from appliance.config.settings import Settings
from appliance.domain.core.entry import Entry, Event
from appliance.domain.queries.alarms import find_alarms
from appliance.errors import ApplianceError, Unavailable
from appliance.formats.core.timestamp import encode_time
from appliance.sandbox.host import run_hook
from appliance.store.database.engine import bring_up_to_date, open_engine
from appliance.store.database.processes import ProcessDescription, Processes
from appliance.store.files.disk import sweep_partial
from appliance.store.files.lock import FolderLock, lock_folder
from appliance.systemd import notify
from appliance.web.console.app import console_app
from appliance.web.console.core.events import RecentEntries
from appliance.web.console.home.home import waiting_for_all
from appliance.web.console.pages import make_pages
from appliance.web.console.units.ask import Playground
from appliance.web.console.units.requests import measure
from appliance.web.core.auth import CallerAuthenticator
from appliance.web.core.logs import configure_logs, log_entry, set_level
from appliance.web.core.server import Activity, Heart
from appliance.web.core.server import serve as serve_listeners
from appliance.web.core.sockets import open_people, raise_descriptors
from appliance.web.operations import notifications
from appliance.web.operations.health import NotReady
from appliance.web.operations.limits import Quotas, UnitLimits
from appliance.web.operations.metrics import Metrics
from appliance.web.operations.notifications import Waiting, mail_sender, program_sender
from appliance.web.people.api import people_app
from appliance.web.people.middleware import PeopleLimitsMiddleware, missing_entries, serve_while_blocked, wrong_clock
from appliance.web.units.middleware import MOST, RequestRunner
from appliance.web.units.openai import units_app
from appliance.wiring.backups import backup_ages
from appliance.wiring.building import open_reserve, read_trust, service
from appliance.wiring.installing import doctor
from appliance.wiring.listening import (
    answer_probes,
    hold_hangups,
    list_network_listeners,
    open_listeners,
    open_people_socket,
    reload,
)
from appliance.workflows import integrity
from appliance.workflows.backups import making
from appliance.workflows.backups.listing import start_watch
from appliance.workflows.backups.restoring import refuse_restored
from appliance.workflows.core.context import Context, LedgerContext, RunContext, ServingContext, describe_code
from appliance.workflows.data.imports import sweep_uploads
from appliance.workflows.lifecycle.following import LogFollower
from appliance.workflows.lifecycle.recovery import is_alone, recover
from appliance.workflows.lifecycle.running import BEAT_S, beat, note_stall, shut_down, tune_garbage_collector
from appliance.workflows.queries import measures
from appliance.workflows.runs import checkpoints, places, train
from appliance.workflows.serving import previews
from appliance.workflows.serving.answering import SERVICE_ENDS
from appliance.workflows.serving.places import SharedPlaces, count_units
from appliance.workflows.serving.serve import ServingWorkflow

if TYPE_CHECKING:
    from appliance.web.operations.traces import Traces


def observe(metrics: Metrics, changes: RecentEntries, traces: Traces | None, entry: Entry, body: Event) -> None:
    """Report an appended entry to the log, the metrics, the traces and the console's live pages."""
    changes.note(entry)
    values = vars(body)
    log_entry(entry, values, metrics.observe(entry, values))
    if traces is not None:
        traces.observe(entry, values)


def start_notifications(settings: Settings, context: LedgerContext) -> None:
    """Start the thread that notifies people of pending items by mail or through a program, if one of them is set."""

    def find() -> Iterator[tuple[str, list[Waiting]]]:
        state = context.ledger.state
        return waiting_for_all(state, context.now(state), find_alarms(measures.measure(context)))

    senders = []
    if settings.notification_command is not None:
        senders.append(program_sender(partial(run_hook, settings.notification_command)))
    if (
        settings.notification_smtp is not None
        and settings.notification_from is not None
        and settings.notification_to is not None
    ):
        senders.append(mail_sender(settings.notification_smtp, settings.notification_from, settings.notification_to))
    if senders:
        found = notifications.Notifications(find, tuple(senders), settings.console_url or "")
        notifications.start(context, settings.notification_minutes * 60, found)


def open_traces(settings: Settings, context: LedgerContext) -> Traces | None:
    """Return the exporter of traces, or None. The library is imported only if traces are configured."""
    if settings.traces is None:
        return None
    from appliance.web.operations.traces import Collector, Traces

    return Traces(
        Collector(settings.traces),
        {"service.name": "appliance", "service.instance.id": context.ledger.state.site.origin},
    )


def close_traces(traces: Traces | None) -> None:
    """Close the exporter of traces, if there is one."""
    if traces is not None:
        traces.close()


log = logging.getLogger("appliance")

IDLE_S = 600.0
"""Seconds without an open request after which an embedded service ends."""
_ORDERED_ENDS = ("signal", "idle")
"""Reasons of an end with exit code 0. After another one, a supervisor starts the service again."""
END_S = 9.0
"""Most seconds from a signal to the end of the process."""


def serve(
    settings: Settings,
    *,
    embedded: bool,
    after_pause: bool = False,
    rebuild: bool = False,
    restoration: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Run the service until a signal. An embedded service ends after ten minutes without an open request.

    `restoration`: the log lacks entries that others have seen, and the service waits for the administrators' order to
    give them up. `ready` is called once the lock, certificates and ports are held and nothing can prevent the start any
    more.

    Raises:
        Unavailable: It ended for another reason: a listener closed, or another process took over its work.
    """
    read_trust(settings)  # raises before the lock if there is no appliance yet
    refuse_restored(settings.home)
    _prepare_process(settings)
    with (
        _hold_home(settings) as lock,
        open_listeners(settings) as listeners,
        answer_probes(listeners) as (starting, end_starting),
        _join(settings, say := partial(_say, lock)) as processes,
        service(
            settings, say, after_pause=after_pause, rebuild=rebuild, restoration=restoration, processes=processes
        ) as context,
    ):
        context.certificates = listeners.certificates
        authenticator, activity = CallerAuthenticator(context), Activity()
        people_api = activity.watching(people_app(context, authenticator, settings.console_url))
        at_socket = PeopleLimitsMiddleware(people_api, authenticator, local=True)
        open_socket = partial(open_people, settings.home, settings.socket, settings.socket_group)
        ended = partial(_find_end_reason, context, activity, embedded=embedded)
        for obstacle in (wrong_clock(context), missing_entries(context)):
            waiting = partial(serve_while_blocked, obstacle, context, at_socket, open_socket=open_socket, ended=ended)
            if _has_ended_waiting(waiting, say, starting):
                return
        context.awaits_restoration = False
        serving = ServingWorkflow(context)
        context.recheck_answers.connect(serving.reconcile)
        quotas, changes = _make_quotas(settings, context), RecentEntries()
        metrics, traces = Metrics(context, quotas), open_traces(settings, context)
        context.appended.connect(partial(observe, metrics, changes, traces))
        authenticator.refused.connect(metrics.refused)
        serving.refused.connect(authenticator.count)
        _recover(settings, context)
        tune_garbage_collector()
        reason = "failed"
        _start_rounds(settings, context)
        units = activity.watching(units_app(serving, authenticator, quotas, metrics, traces))
        playground = Playground(RequestRunner(serving, metrics, traces), quotas)
        pages = _make_console(settings, context, authenticator, changes, playground, metrics, activity)
        network_listeners = list_network_listeners(
            listeners, context, units, PeopleLimitsMiddleware(people_api, authenticator), pages, metrics
        )
        beats = _make_beats(context, authenticator, serving)
        with LogFollower(context, changes.note, serving.cut_off_all, serving.follow):
            try:
                # The end of the listener of the start can reset a connection that it has accepted. From then on they
                # wait for the listeners below.
                end_starting()
                # The people's socket opens last: clients take it as the sign that the service is up.
                with open_people_socket(settings, open_socket, at_socket) as local:
                    say("")
                    ready()
                    heart = Heart(beats, BEAT_S, partial(note_stall, context))
                    reason = serve_listeners(
                        [*network_listeners, *local],
                        heart=heart,
                        ended=ended,
                        signalled=_end_in_time,
                        reload=partial(reload, settings, listeners, context),
                        end_responses=partial(serving.cut_off_all, SERVICE_ENDS()),
                        probe=partial(_probe, context),
                    )
            finally:
                serving.close()
                shut_down(context, authenticator.counted, reason, say)
                close_traces(traces)
    if reason not in _ORDERED_ENDS:
        raise Unavailable(f"service: expected to serve until it is stopped, got its end because of: {reason}")


@contextmanager
def _hold_home(settings: Settings) -> Iterator[FolderLock]:
    """Lock the home, and maintain its disk reserve before anything else is written there."""
    with lock_folder(settings.lock) as lock:
        open_reserve(settings).maintain()
        yield lock


def _say(lock: FolderLock, text: str) -> None:
    """Tell waiting clients and systemd what the service does; an empty text means that it serves."""
    lock.say(text)
    notify(f"STATUS={text or 'serves'}")


def _probe(context: LedgerContext) -> None:
    """Return when the ledger has answered.

    A refusal is an answer, such as that of a full disk, a database that is gone or a clock that went back. It is an
    alarm, `/readyz` reports it, and a restart would not end it. A ledger that hangs does not answer.
    """
    with suppress(ApplianceError):
        context.ledger.probe()


def _prepare_process(settings: Settings) -> None:
    configure_logs()
    set_level(settings.log_level)
    raise_descriptors()
    hold_hangups()


def _make_beats(context: Context, authenticator: CallerAuthenticator, serving: ServingWorkflow) -> Callable[[], None]:
    """Return the heartbeat with its sweeps."""
    sweep = partial(_sweep, context, authenticator)
    return partial(beat, context, counted=authenticator.counted, sweep=sweep, maintain=serving.maintain)


def _make_console(
    settings: Settings,
    context: Context,
    authenticator: CallerAuthenticator,
    changes: RecentEntries,
    playground: Playground,
    metrics: Metrics,
    activity: Activity,
) -> ASGIApp | None:
    """Return the app of the console, or None if it is off."""
    if settings.console_url is None:
        return None
    pages = make_pages(partial(measure, playground.quotas, metrics), partial(doctor, settings))
    return activity.watching(console_app(context, authenticator, settings.console_url, changes, playground, pages))


def _has_ended_waiting(wait: Callable[..., str | None], say: Callable[[str], None], starting: NotReady) -> bool:
    """Return True if the service ends before the obstacle is gone. Until then it answers people and health probes."""

    def say_reason(text: str) -> None:
        say("")
        notify(f"STATUS=its {text}, and it answers people only")
        starting.reason = text

    if wait(is_up=say_reason) is not None:
        return True
    say("starts")
    starting.reason = "starting"
    return False


def _end_in_time() -> None:
    """End the process after END_S, as a power cut would, unless it has ended in order before.

    A busy thread, for example one with a request, cannot be ended otherwise. Workers end with the process. The next
    start closes or resumes what was not recorded.
    """
    timer = threading.Timer(END_S, _give_up)
    timer.daemon = True
    timer.start()


def _give_up() -> None:
    log.critical("the service has not ended within %.0f s of a signal: its threads are left as they are", END_S)
    os._exit(0)


def _join(settings: Settings, say: Callable[[str], None]) -> Processes:
    """Register this process among those of its log, and bring the database's tables up to date."""
    about = ProcessDescription(
        roles=tuple(sorted(settings.roles)),
        host=socket.gethostname(),
        pid=os.getpid(),
        since=encode_time(datetime.now(UTC)),
        version=describe_code().version,
        compatibility=COMPATIBILITY,
    )
    url, owner_url = settings.database_url.get_secret_value(), settings.migration_url.get_secret_value()
    engine = open_engine(url, process=settings.process)
    prepare = partial(bring_up_to_date, url, owner_url, say)
    return Processes(engine, settings.process, about, prepare, clock=lambda: datetime.now(UTC))


def _recover(settings: Settings, context: RunContext) -> None:
    # The lock gives the home to this process alone. Other processes may write into the other two folders as well.
    sweep_partial(settings.home)
    making.empty_work_folder(settings.home)
    for shared in (settings.keys, settings.witnessed):
        sweep_partial(shared, partial(is_alone, context))
    recover(context)


def _start_rounds(settings: Settings, context: RunContext) -> None:
    integrity.start_writeback(context)
    integrity.start_snapshots(context)
    checkpoints.start(context)
    places.start(context, train.requeue_run)
    if settings.rehash is not None:
        integrity.start_rehash(context, settings.rehash * 60)
    start_notifications(settings, context)
    if (ages := backup_ages(settings)) is not None:
        start_watch(context, ages)


def _sweep(context: ServingContext, authenticator: CallerAuthenticator) -> None:
    """Remove expired sessions, old uploads and answers that nobody fetched. Called once a minute."""
    authenticator.sweep()
    sweep_uploads(context)
    previews.close_unfetched(context)


def _make_quotas(settings: Settings, context: LedgerContext) -> Quotas:
    """Return the limits of the units' listener, from the settings and the units that have releases now."""
    places = SharedPlaces("units' API", MOST, lambda: count_units(context.ledger.state))
    limits = {unit: UnitLimits(**given.model_dump()) for unit, given in settings.limits.items()}
    return Quotas(limits, places, time.monotonic)


def _find_end_reason(context: Context, activity: Activity, *, embedded: bool) -> str | None:
    """Return the reason for the service to end now, or None."""
    if context.processes.is_lost:
        return "another service"
    return "idle" if embedded and not context.busy and activity.idle_s() > IDLE_S else None
