"""A diagnosis has the facts that a maintainer needs, and no text, prompt, key, token or row."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.store.database.tables import REVISION
from appliance.web.core import logs
from appliance.web.operations.health import OperationsTokens, Readiness, operations_app, read_feed
from appliance.web.operations.metrics import Metrics
from appliance.workflows.operations.diagnosis import LOG_ATTRIBUTES, filter_line
from scripts.kit.ports import free_port
from tests.cli.conftest import Desk, type_alone
from tests.kit.console import listening
from tests.kit.founded import HELD_OUT, ROWS

MARKER = "Jane Doe, HIV positive 4f1c"
SECRET = "s3cr3t-of-the-site"


TRACEBACK = "Traceback (most recent call last):"


def line(**values: Any) -> str:
    return json.dumps(values)


LOG = [
    line(time="2026-11-24T12:00:00Z", level="info", event="run.finished", entry=7, actor="service", run="r-000001"),
    line(time="2026-11-24T12:00:01Z", level="critical", event=f"ALARM: disk-full: {MARKER}"),
    line(time="2026-11-24T12:00:02Z", level="warning", event=MARKER, prompt=MARKER, unit=MARKER, code="disk"),
    line(
        level="error",
        event="an error",
        exception=f'{TRACEBACK}\n  File "/opt/x/serve.py", line 12, in act\n    act(x)\nValueError: {MARKER}',
        stack="ValueError serve.py:12 act",
    ),
    line(APPLIANCE_EVENT="heartbeat", APPLIANCE_ENTRY="9", MESSAGE=MARKER, PRIORITY="6", _CMDLINE=MARKER),
    f"no JSON: {MARKER}",
    '"a text"',
]


@pytest.fixture
def desk(open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Return a desk with every kind of secret in its settings and files."""
    made = open_desk("serving")
    token = made.folder / "operations.token"
    token.touch(0o600)
    token.write_text(f"{SECRET}-token-of-operations")
    monkeypatch.setenv("APPLIANCE_OPERATIONS", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("APPLIANCE_OPERATIONS_TOKEN", str(token))
    monkeypatch.setenv("APPLIANCE_MIGRATION_URL", f"postgresql://owner:{SECRET}@127.0.0.1:1/ledger?password={SECRET}")
    monkeypatch.setenv("APPLIANCE_NOTIFICATION_COMMAND", f"/usr/bin/tell --token {SECRET}")
    (made.service.settings.home / "uploads").mkdir(exist_ok=True)
    (made.service.settings.home / "uploads" / MARKER).write_text(MARKER)
    (made.folder / "log").write_text("\n".join(LOG))
    return made


def diagnose(desk: Desk, name: str = "diagnosis.json") -> tuple[str, dict[str, Any]]:
    file = desk.folder / name
    told = desk.type("diagnose", str(file), "--service-log", str(desk.folder / "log"), "--yes")
    assert told.code == 0, told.err
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    return text + told.out + told.err, json.loads(text)


def test_no_text_row_key_or_token_is_in_it(desk: Desk) -> None:
    text, _ = diagnose(desk)
    assert SECRET not in text and "Jane" not in text and "HIV" not in text
    home = desk.service.settings.home
    for path in (home / "keys").rglob("*"):
        data = path.read_bytes()
        lines = data.decode("latin-1").splitlines()
        assert not [one for one in lines if len(one) > 20 and "PRIVATE KEY" not in one and one in text], path
        assert data.hex() not in text
    texts = [one.text for one in desk.site.ledger.signed_texts()[1]]
    assert texts and not [one for one in texts if len(one) > 3 and one in text]
    for row in (*ROWS, *HELD_OUT):
        assert len(str(row["text"])) < 4 or (json.dumps(row) not in text and str(row["text"]) not in text.split('"'))


def test_it_has_what_a_maintainer_needs(desk: Desk) -> None:
    _, found = diagnose(desk)
    assert set(found) == {
        *("settings", "build", "machine", "packages", "doctor", "database", "files", "log", "metrics", "alarms"),
    }
    values = {one["name"]: one["value"] for one in found["settings"]}
    assert values["migration_url"] == "postgresql://owner:***@127.0.0.1:1/ledger?***"
    assert values["notification_command"] == "/usr/bin/tell ***"
    assert found["machine"]["kernel"].startswith("Linux ") and found["machine"]["memory_bytes"] > 0
    assert found["packages"]["pydantic"] and found["build"]["python"]
    assert {"disk", "keys", "database"} <= {one["check"].partition(",")[0] for one in found["doctor"]}
    database = found["database"]
    assert (database["kind"], database["expected_revision"]) == ("sqlite", REVISION)
    assert database["entries"] == desk.site.state.size and database["rows"]["adapters"] == 1
    assert found["files"]["artifacts"]["files"] > 3 and found["files"]["uploads"]["files"] == 1
    assert found["log"] == [
        {"time": "2026-11-24T12:00:00Z", "level": "info", "event": "run.finished", "entry": 7, "actor": "service",
         "run": "r-000001"},
        {"time": "2026-11-24T12:00:01Z", "level": "critical", "event": "disk-full"},
        {"time": "2026-11-24T12:00:02Z", "level": "warning", "code": "disk"},
        {"level": "error", "exceptions": [{"class": "ValueError", "frames": ["serve.py:12 act"]}]},
        {"entry": "9", "event": "heartbeat", "level": "6"},
    ]  # fmt: skip
    assert found["metrics"][0].startswith("# none: metrics, 127.0.0.1:") and found["alarms"] == []


def test_a_running_service_adds_its_metrics_and_alarms(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    context: Any = desk.service.context
    context.missing_from_log.append(ValueError(MARKER))
    context.missing_from_log[0].message = MARKER
    app = operations_app(
        Readiness(context),
        Metrics(context, None),
        partial(read_feed, context),
        OperationsTokens(f"{SECRET}-token-of-operations".encode()),
    )
    with listening(desk, int(os.environ["APPLIANCE_OPERATIONS"].split(":")[1]), app):  # type: ignore[arg-type]
        text, found = diagnose(desk)
    assert "log-lost" in found["alarms"] and f"appliance_ledger_size {desk.site.state.size}.0" in found["metrics"]
    assert SECRET not in text and "Jane" not in text


def test_it_lists_its_contents_and_asks_before_it_writes(desk: Desk) -> None:
    file = desk.folder / "asked.json"
    told = desk.type("diagnose", str(file))
    assert told.code == 2 and "expected --yes" in told.err and not file.exists()
    assert "would contain" in told.err and "  settings: " in told.err and "  doctor: " in told.err


def test_it_overwrites_nothing(desk: Desk) -> None:
    file = desk.folder / "there.json"
    file.write_text("mine")
    (desk.folder / "link.json").symlink_to(desk.folder / "nowhere")
    for path in (file, desk.folder / "link.json"):
        told = desk.type("diagnose", str(path), "--yes")
        assert told.code == 5 and "existing file" in told.err
    assert file.read_text() == "mine"
    told = desk.type("diagnose", str(desk.folder / "none" / "x.json"), "--yes")
    assert told.code == 2 and "mkdir" in told.err


def test_before_init_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "diagnose", str(tmp_path / "d.json"), "--yes", "--home", str(tmp_path / "none"))
    assert told.code == 0, told.err
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["database"]["entries"] == 0 if "entries" in found["database"] else found["database"]["error"]
    assert not (tmp_path / "none").exists()


CHAINED = "During handling of the above exception, another exception occurred:"
HIV = f'{TRACEBACK}\n  File "/home/Jane/HIV.py", line 3, in HIV\nJane: HIV'


def raise_everything(message: str) -> None:
    """Raise a group with a cause, a member that followed another exception, and a group inside; each has a note."""

    def fail() -> None:
        error = KeyError(message)
        error.add_note(message)
        raise error

    def follow() -> None:
        try:
            fail()
        except KeyError:
            raise TypeError(message) from None

    def handle() -> None:
        try:
            fail()
        except KeyError:
            raise ValueError(message)  # noqa: B904 - the message of the first is printed as well

    members: list[Exception] = []
    for act in (handle, follow):
        try:
            act()
        except (ValueError, TypeError) as error:
            error.add_note(message)
            members.append(error)
    try:
        fail()
    except KeyError as cause:
        group = ExceptionGroup(message, [members[0], ExceptionGroup(message, members[1:])])
        group.add_note(message)
        raise group from cause


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Exception], str]]:
    """`logged(error)`: the line that the service's log has of an exception."""
    handlers, level = logging.root.handlers[:], logging.root.level
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    logs.configure_logs()
    out = io.StringIO()
    (handler,) = logging.root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(out)

    def log(error: Exception) -> str:
        out.truncate(out.seek(0))
        logging.getLogger("appliance").error("an error", exc_info=error)
        return out.getvalue()

    yield log
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.mark.parametrize(
    "message",
    [
        "Jane",
        "two lines\nJane: HIV",
        'a text with File "Jane has HIV", line 3, in HIV\nand more',
        f"a quotation:\n{HIV}",
        f"a chain:\n\n{CHAINED}\n\n{HIV}",
        f"a group:\n    +---------------- 2 ----------------\n    | {HIV}\nExceptionGroup: Jane (1 sub-exception)",
        "Jane serve.py:1 HIV; HIV",
    ],
)
def test_a_log_without_messages_has_the_places_of_chained_and_grouped_exceptions(
    message: str, logged: Callable[[Exception], str]
) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        raise_everything(message)
    text = logged(raised.value)
    assert "Jane" in text, "the machine's own log has the messages"
    kept = filter_line(text)
    assert kept is not None and "Jane" not in json.dumps(kept) and "HIV" not in json.dumps(kept)
    found = [(one["class"], [frame.partition(" ")[2] for frame in one["frames"]]) for one in kept["exceptions"]]
    assert [name for name, _ in found] == [
        *("KeyError", "ExceptionGroup", "KeyError", "ValueError", "ExceptionGroup", "TypeError"),
    ]
    assert [frames[-1:] for _, frames in found] == [
        ["fail"],
        ["raise_everything"],
        ["fail"],
        ["handle"],
        [],
        ["follow"],
    ]
    assert all(frame.startswith("test_diagnosis.py:") for one in kept["exceptions"] for frame in one["frames"])


def test_a_traceback_in_words_of_another_program_is_left_out() -> None:
    assert filter_line(line(level="error", exception=HIV, stack=f"KeyError: {MARKER}")) == {"level": "error"}


_names = st.sampled_from(
    sorted(LOG_ATTRIBUTES | {"exception", "stack", "prompt", "MESSAGE", "APPLIANCE_EVENT", "APPLIANCE_UNIT"})
)
_texts = st.sampled_from([MARKER, f"ALARM: {MARKER}", f"ALARM: disk-full: {MARKER}", f"{MARKER}: x", f"x: {MARKER}"])
_values = st.one_of(_texts, st.lists(_texts), st.dictionaries(_names, _texts), st.integers(), st.none())


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_names, _values))
def test_no_attribute_of_a_line_lets_a_text_through(values: dict[str, Any]) -> None:
    kept = json.dumps(filter_line(json.dumps(values)))
    assert "Jane" not in kept and "HIV" not in kept
