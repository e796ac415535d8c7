"""What leaves the service beside its answers: log lines, metrics, traces, notices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from appliance.config.values import Notices as NoticeSettings
from appliance.config.values import Settings
from appliance.domain.core.entry import Entry
from appliance.domain.core.event import Event
from appliance.runners.hook import run_hook
from appliance.web.console.core.events import Changes
from appliance.web.console.home.tasks import waiting_for_all
from appliance.web.core.logs import log_entry
from appliance.web.operations import notices
from appliance.web.operations.metrics import Metrics
from appliance.web.operations.notices import Waiting, mail_sender, program_sender
from appliance.workflows.core.context import Context

if TYPE_CHECKING:
    from appliance.web.operations.traces import Traces


def observe(metrics: Metrics, changes: Changes, traces: Traces | None, entry: Entry, body: Event) -> None:
    changes.note(entry.type)
    values = vars(body)
    log_entry(entry, values, metrics.observe(entry, values))
    if traces is not None:
        traces.observe(entry, values)


def start_notices(settings: NoticeSettings, context: Context, url: str) -> None:

    def find() -> Iterator[tuple[str, list[Waiting]]]:
        state = context.ledger.state
        return waiting_for_all(state, context.now(state))

    senders = [] if settings.command is None else [program_sender(partial(run_hook, settings.command))]
    if (mail := settings.mail) is not None:
        senders.append(mail_sender(mail.server, mail.sender, mail.to))
    notices.start(context, settings.every_s, notices.Notices(find, tuple(senders), url))


def open_traces(settings: Settings, context: Context) -> Traces | None:
    """The library is loaded only where it is used."""
    if settings.traces is None:
        return None
    from appliance.web.operations.traces import Collector, Traces

    return Traces(
        Collector(settings.traces),
        {"service.name": "appliance", "service.instance.id": context.ledger.state.site.origin},
    )


def close_traces(traces: Traces | None) -> None:
    if traces is not None:
        traces.close()
