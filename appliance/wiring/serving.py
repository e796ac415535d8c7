"""The service, from its lock to its end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from appliance.config.values import Settings
from appliance.formats.core.timestamp import encode_time
from appliance.store.database.engine import bring_up_to_date, open_engine
from appliance.store.database.processes import About, Processes
from appliance.store.files.disk import sweep_partial
from appliance.store.files.lock import lock_folder
from appliance.web.console.app import console_app
from appliance.web.console.core.events import Changes
from appliance.web.console.units.ask import Asks
from appliance.web.core.activity import Activity
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.logs import configure_logs
from appliance.web.core.server import Heart
from appliance.web.core.server import serve as serve_doors
from appliance.web.core.sockets import open_people, raise_descriptors
from appliance.web.operations.limits import Limits, Quotas
from appliance.web.operations.metrics import Metrics
from appliance.web.people.api import people_app
from appliance.web.people.gate import Gate
from appliance.web.people.waiting import wait_for_clock
from appliance.web.units.asking import Asking
from appliance.web.units.gate import MOST
from appliance.web.units.openai import units_app
from appliance.wiring.building import service
from appliance.wiring.diagnosis import doctor
from appliance.wiring.ledger import read_trust
from appliance.wiring.listening import open_doors, open_listeners, open_people_socket
from appliance.wiring.telling import close_traces, observe, open_traces, start_notices
from appliance.workflows.core.code import describe_code
from appliance.workflows.core.context import Context
from appliance.workflows.data.uploads import sweep_uploads
from appliance.workflows.integrity import rehash, snapshots, writeback
from appliance.workflows.lifecycle.following import Following
from appliance.workflows.lifecycle.garbage import tune_garbage_collector
from appliance.workflows.lifecycle.heartbeat import BEAT_S, beat, note_stall
from appliance.workflows.lifecycle.recovery import is_alone, recover
from appliance.workflows.lifecycle.shutdown import shut_down
from appliance.workflows.runs import checkpoints, places, train
from appliance.workflows.serving.serve import Serving

IDLE_S = 600.0


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
    read_trust(settings)  # before init there is nothing to lock
    configure_logs()
    raise_descriptors()
    with (
        lock_folder(settings.lock) as lock,
        open_listeners(settings) as listeners,
        _join(settings, lock.say) as processes,
        service(settings, lock.say, after_pause=after_pause, rebuild=rebuild, processes=processes) as context,
    ):
        door, activity = Doorkeeper(context), Activity()
        url = None if settings.console is None else settings.console.url
        people_door = activity.watching(people_app(context, door, url))
        at_socket = Gate(people_door, door, local=True)
        open_door = partial(open_people, settings.home, settings.socket, settings.socket_group)
        if wait_for_clock(
            context,
            settings.home,
            at_socket,
            open_door=open_door,
            is_up=lambda: lock.say(""),
            ended=partial(_why_it_ends, context, activity, embedded=embedded),
        ):
            return
        lock.say("starts")
        serving = Serving(context)
        context.recheck_answers = serving.reconcile
        quotas, changes = Quotas(_limits(settings), MOST, time.monotonic), Changes()
        metrics, traces = Metrics(context, quotas), open_traces(settings, context)
        context.appended, context.examine = partial(observe, metrics, changes, traces), partial(doctor, settings)
        context.usage = lambda unit: (quotas.usage(unit), metrics.answered(unit))
        door.refused = metrics.refused
        _recover(settings, context)
        tune_garbage_collector()
        reason = "failed"
        _start_rounds(settings, context)
        units = activity.watching(units_app(serving, door, quotas, metrics, traces))
        asks = Asks(Asking(serving, metrics, traces), quotas)
        pages = None if url is None else activity.watching(console_app(context, door, url, changes, asks))
        doors = open_doors(listeners, context, units, Gate(people_door, door), pages, metrics)
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
                with open_people_socket(settings, open_door, at_socket) as local:
                    lock.say("")
                    ready()
                    ended = partial(_why_it_ends, context, activity, embedded=embedded)
                    # The people's socket last: where it is open, the service is up.
                    reason = serve_doors([*doors, *local], heart=heart, ended=ended)
            finally:
                serving.close()
                shut_down(context, door.counted, reason, lock.say)
                close_traces(traces)


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


def _recover(settings: Settings, context: Context) -> None:
    # The home is this process's, by its lock. Others may write into the other two as well.
    sweep_partial(settings.home)
    for shared in (settings.keys, settings.witnessed):
        sweep_partial(shared, partial(is_alone, context))
    recover(context)


def _start_rounds(settings: Settings, context: Context) -> None:
    writeback.start(context)
    snapshots.start(context)
    checkpoints.start(context)
    places.start(context, train.put_back)
    if settings.rehash_s is not None:
        rehash.start(context, settings.rehash_s)
    if settings.notices is not None:
        url = "" if settings.console is None else settings.console.url
        start_notices(settings.notices, context, url)


def _sweep(context: Context, door: Doorkeeper) -> None:
    """Once a minute: what has ended, and what was forgotten."""
    door.sweep()
    sweep_uploads(context)


def _limits(settings: Settings) -> dict[str, Limits]:
    return {unit: Limits(**given) for unit, given in settings.limits.items()}


def _why_it_ends(context: Context, activity: Activity, *, embedded: bool) -> str | None:
    if context.processes.is_lost:
        return "another service"
    return "idle" if embedded and not context.busy and activity.idle_s() > IDLE_S else None
