"""The log's last checkpoint, and what witnesses have seen of it."""

from __future__ import annotations

from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.note import parse_note
from appliance.web.console.core.page import PEOPLE, Page, Query, Table, Value, Viewer
from appliance.web.console.core.render import seconds_since
from appliance.web.console.core.shell import LogState, log_state
from appliance.workflows.core.context import Context


class Seen(Value):
    name: str
    vkey: str
    size: int | None
    time: str | None
    age_s: float | None
    counts: bool
    entry: int | None


class LogKeyRow(Value):
    vkey: str
    since: int
    until: str | None


class CheckpointPage(Value):
    log: LogState
    note: str
    size: int
    root: str
    quorum: int
    lifetime_s: int
    witnesses: tuple[Seen, ...]
    log_keys: tuple[LogKeyRow, ...]


def checkpoint(context: Context, viewer: Viewer, query: Query) -> CheckpointPage:
    note = context.ledger.checkpoint()
    parsed = parse_checkpoint(parse_note(note).text)
    state = context.ledger.state
    now, rules = context.now(state), state.parameters
    seen = {one.vkey: one for one in state.witnesses.values()}
    rows = []
    for vkey in rules.witnesses:
        one = seen.get(vkey)
        age = None if one is None else seconds_since(one.time, now)
        rows.append(
            Seen(
                name=vkey.partition("+")[0],
                vkey=vkey,
                size=None if one is None else one.size,
                time=None if one is None else one.time,
                age_s=age,
                counts=age is not None and age <= rules.witness_lifetime_s,
                entry=None if one is None else one.index,
            )
        )
    return CheckpointPage(
        log=log_state(context),
        note=note.decode("utf-8"),
        size=parsed.size,
        root=f"sha256:{parsed.root.hex()}",
        quorum=rules.witness_quorum,
        lifetime_s=rules.witness_lifetime_s,
        witnesses=tuple(rows),
        log_keys=tuple(LogKeyRow(**key.model_dump()) for key in state.site.log_keys),
    )


def _table(value: CheckpointPage) -> Table:
    headers = ("name", "size", "time", "age_s", "counts", "vkey")
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.witnesses])


PAGE = Page(
    *("/checkpoint", "Checkpoint", PEOPLE, Query, checkpoint, "auditors/checkpoint.html", _table),
    group="Audit",
    symbol="seal",
)
