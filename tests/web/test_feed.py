"""The feed gives every entry once and in order, to who has its token; the command gives each at least once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from appliance.client.feed import (
    MAX_UNSETTLED,
    FeedForwarder,
    FeedPosition,
    FeedSource,
    FeedState,
    Line,
    StreamReceiver,
    find_start,
)
from appliance.client.support.connection import parse_address
from appliance.client.syslog import SyslogReceiver, encode_message
from appliance.errors import BadInput, Conflict, Tampered, Unavailable
from appliance.formats.core.merkle import hash_leaf
from appliance.formats.log.export import encode_removed
from appliance.web.operations.health import OperationsTokens, Readiness, operations_app, read_feed
from scripts.kit.certificates import Authority
from scripts.kit.ports import free_port
from tests.cli.conftest import type_alone
from tests.kit.console import Console, console, listening

TOKEN = b"feed-" + b"t" * 20


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("serving", tmp_path_factory.mktemp("feed") / "home") as made:
        yield made


def app_of(desk: Console, feed: bytes | None = TOKEN) -> Any:
    metrics: Any = None
    return operations_app(
        Readiness(desk.context), metrics, partial(read_feed, desk.context), OperationsTokens(b"metrics", feed)
    )


def ask(desk: Console, query: str = "", token: bytes = TOKEN) -> Any:
    header = {"Authorization": f"Bearer {token.decode()}"}
    return TestClient(app_of(desk)).get(f"/feed{query}", headers=header)


def indexes(text: str) -> list[int]:
    return [json.loads(line)["metadata"]["sequence"] for line in text.splitlines()]


def test_every_entry_is_given_in_order_in_parts_of_any_size(desk: Console) -> None:
    size = desk.site.state.size
    assert indexes(ask(desk).text) == list(range(size))
    assert indexes(ask(desk, "?after=3&limit=2").text) == [4, 5]
    assert indexes(ask(desk, f"?after={size - 2}").text) == [size - 1]
    assert ask(desk, f"?after={size - 1}").text == ""
    first = json.loads(ask(desk, "?limit=1").text)
    assert first["metadata"]["log_name"] == desk.site.state.site.origin


def test_an_index_that_the_log_lacks_is_a_conflict_and_a_wrong_parameter_is_refused(desk: Console) -> None:
    size = desk.site.state.size
    ahead = ask(desk, f"?after={size}")
    assert ahead.status_code == 409 and "feed-ahead" in ahead.text and "auditor" in ahead.text
    for query in ("?after=-2", "?limit=0", "?limit=1001", "?after=x", "?before=3", "?after=1e3", f"?after={'9' * 99}"):
        assert ask(desk, query).status_code == 400, query


def test_the_feed_has_a_token_of_its_own_and_is_off_without_one(desk: Console) -> None:
    assert ask(desk, token=b"metrics").status_code == 401
    assert TestClient(app_of(desk)).get("/feed").status_code == 401
    only_metrics = TestClient(app_of(desk, None))
    assert only_metrics.get("/feed", headers={"Authorization": "Bearer None"}).status_code == 404


# The command.


@pytest.fixture
def served(desk: Console, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the options of the command for the listener of a running service."""
    port, token = free_port(), tmp_path / "feed.token"
    token.touch(0o600)
    token.write_bytes(TOKEN + b"\n")
    with listening(desk, port, app_of(desk)):
        yield "ledger", "feed", "--service", f"127.0.0.1:{port}", "--token", str(token), "--once"


def test_the_command_prints_each_entry_once_and_continues_after_the_last(
    desk: Console, served: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = str(tmp_path / "feed.state")
    size = desk.site.state.size
    assert _type(capsys, *served, "--state", state) == list(range(size))
    leaf = f"sha256:{hash_leaf(desk.site.entries[-1]).hex()}"
    assert json.loads(Path(state).read_text()) == {"log": desk.site.state.site.origin, "after": size - 1, "leaf": leaf}
    assert _type(capsys, *served, "--state", state) == []
    desk.site.rotate("olga", desk.site.now)
    assert _type(capsys, *served, "--state", state) == [size]
    assert _type(capsys, *served, "--after", str(size - 1)) == [size]


def test_the_command_passes_entries_that_were_archived(
    desk: Console, served: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIEM that begins after an archive gets all entries that are left."""
    read, removed = desk.context.ledger.entries, {2, 3, 5}
    line = encode_removed(bytes(32))

    def read_archived(start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return (line if index in removed else data for index, data in enumerate(read(start, end), start))

    monkeypatch.setattr(desk.context.ledger, "entries", read_archived)
    expected = [index for index in range(desk.site.state.size) if index not in removed]
    assert _type(capsys, *served) == expected
    assert indexes(ask(desk, "?after=1&limit=2").text) == [4, 6]
    counts = [json.loads(line)["unmapped"]["archived"] for line in ask(desk, "?after=2&limit=3").text.splitlines()]
    assert counts == [1, 1, 0]


def _type(capsys: pytest.CaptureFixture[str], *words: str) -> list[int]:
    told = type_alone(capsys, *words)
    assert told.code == 0, told.err
    return indexes(told.out)


def test_the_command_refuses_another_log_and_a_shorter_one(
    desk: Console, served: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "feed.state"
    FeedState(state).write(FeedPosition(log="other.example/log", after=2))
    told = type_alone(capsys, *served, "--state", str(state))
    assert told.code == 6 and "other.example/log" in told.err and told.out == ""
    FeedState(state).write(FeedPosition(log=desk.site.state.site.origin, after=10**6))
    told = type_alone(capsys, *served, "--state", str(state))
    assert told.code == 5 and "auditor" in told.err
    assert json.loads(state.read_text())["after"] == 10**6
    told = type_alone(capsys, *served, "--state", str(state), "--after", "3")
    assert told.code == 5 and "remove the file" in told.err
    # A log that was restored and has grown since is longer, and another one.
    FeedState(state).write(FeedPosition(log=desk.site.state.site.origin, after=4, leaf=f"sha256:{'0' * 64}"))
    told = type_alone(capsys, *served, "--state", str(state))
    assert told.code == 6 and "[split-view]" in told.err and "another history" in told.err and told.out == ""


def test_options_that_do_not_fit_are_refused(
    served: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ("--home", str(tmp_path))
    for words, expected in (
        (("ledger", "feed", *home), "expected the setting operations"),
        ((*served, "--ca", "x"), "expected --syslog"),
        ((*served, "--syslog", "127.0.0.1:1"), "expected --ca"),
        ((*served, "--syslog", "127.0.0.1:1", "--ca", "x", "--certificate", "y"), "expected --certificate and"),
    ):
        told = type_alone(capsys, *words)
        assert told.code == 2 and expected in told.err, told.err


def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    state = FeedState(tmp_path / "state")
    assert find_start(state, None) == (-1, None) and find_start(state, 7) == (7, None)
    state.path.write_text("{}")
    with pytest.raises(BadInput, match="expected log and after"):
        state.read()
    state.path.write_text('{"log":"a","after":4}')
    assert find_start(state, None) == (4, FeedPosition(log="a", after=4))


class Source:
    """A feed of `size` entries that fails `failures` times."""

    def __init__(self, size: int, failures: int = 0) -> None:
        self.size, self.failures, self.origin = size, failures, "log"
        self.limits: list[int] = []

    def read(self, after: int, limit: int) -> list[Line]:
        self.limits.append(limit)
        if self.failures:
            self.failures -= 1
            raise Unavailable("feed: expected a response, got none")
        last = min(self.size, after + 1 + limit)
        return [Line(n, "t", "heartbeat", 1, b"%d" % n) for n in range(after + 1, last)]

    def find_leaf(self, index: int) -> str:
        return f"leaf {index}"


class Slow:
    """A receiver that takes lines when a test says so, and loses what it has not taken when `fails`."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.taken: int | None = None
        self.fails = self.closed = 0

    def send(self, lines: Any) -> None:
        self.seen += [line.entry for line in lines]

    def find_taken(self) -> int | None:
        if self.fails:
            self.fails -= 1
            raise Unavailable("syslog: expected the server to take lines, got: gone")
        return self.taken

    def close(self) -> None:
        self.closed += 1


class Ended(Exception):
    pass


def follow(source: Any, receiver: Any, *, pauses: int, state: FeedState | None = None, at: Any = None) -> list[float]:
    """Follow until that many pauses, and return their seconds. `at` is called in each."""
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if at is not None:
            at(len(waited))
        if len(waited) == pauses:
            raise Ended

    with pytest.raises(Ended):
        FeedForwarder(source, receiver, -1, state, pause=pause).follow()
    return waited


def test_what_was_not_taken_is_sent_again_and_the_state_is_written_after_it_was_taken(tmp_path: Path) -> None:
    source, receiver, state = Source(10), Slow(), FeedState(tmp_path / "state")
    taken = FeedPosition(log="log", after=4, leaf="leaf 4")

    def act(count: int) -> None:
        if count == 1:
            assert not state.path.exists(), "nothing was taken"
            receiver.taken = 4
        elif count == 2:
            assert state.read() == taken
            receiver.fails = 1

    waited = follow(source, receiver, pauses=4, state=state, at=act)
    assert receiver.seen == [*range(10), *range(5, 10)] and receiver.closed == 1
    assert waited == [1.0, 1.0, 1.0, 1.0] and state.read() == taken


def test_a_service_that_does_not_respond_is_tried_ever_more_rarely_and_nothing_is_sent_twice() -> None:
    source, receiver = Source(3, failures=9), Slow()
    assert follow(source, receiver, pauses=10) == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1]
    assert receiver.seen == [0, 1, 2] and receiver.closed == 0


def test_at_most_so_many_lines_wait_for_the_receiver() -> None:
    source, receiver = Source(MAX_UNSETTLED * 2), Slow()
    follow(source, receiver, pauses=3)
    assert len(receiver.seen) == MAX_UNSETTLED and source.limits == [1_000] * 5


def test_a_part_with_more_removed_entries_than_may_wait_asks_for_no_lines_until_it_was_taken() -> None:
    source, receiver = Source(MAX_UNSETTLED * 3), Slow()
    read = source.read
    source.read = lambda after, limit: read(max(after, MAX_UNSETTLED * 2), limit)  # type: ignore[method-assign]

    def take(_: int) -> None:
        receiver.taken = receiver.seen[-1]

    follow(source, receiver, pauses=2, at=take)
    assert source.limits[0] == 1_000 and min(source.limits) > 0


def line(index: int, *, archived: int = 0, leaf: str = "", prev: str = "") -> bytes:
    about = {"sequence": index, "original_time": "t", "event_code": "heartbeat", "log_name": "log"}
    place = {"leaf": leaf or f"leaf {index}", "prev": prev or f"leaf {index - 1}", "archived": archived}
    return json.dumps({"metadata": about, "severity_id": 1, "unmapped": place}).encode() + b"\n"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[int]]]:
    """Yield a function that reads lines as those after an index."""
    source = FeedSource(parse_address("127.0.0.1:1", None), TOKEN)
    source.begin("log", 2, "leaf 2")

    def read(after: int, *lines: bytes) -> list[int]:
        data = b"".join(lines)
        monkeypatch.setattr(httpx.Client, "get", lambda *_, **__: httpx.Response(200, content=data))
        return [one.entry for one in source.read(after, 10)]

    yield read
    source.close()


def test_lines_out_of_order_are_refused(read: Callable[..., list[int]]) -> None:
    assert read(2, line(3), line(4)) == [3, 4]
    for lines in ((line(5), line(3)), (line(2), line(3)), (line(3), line(3)), (line(3, archived=-1),)):
        with pytest.raises(Tampered, match="in order") as refused:
            read(2, *lines)
        assert refused.value.code == "feed-gap"


def test_an_entry_that_the_service_leaves_out_is_found(read: Callable[..., list[int]]) -> None:
    assert read(2, line(5, archived=2, prev="leaf of an archived one"), line(6)) == [5, 6]
    for lines in ((line(4),), (line(3), line(5)), (line(3), line(6, archived=1)), (line(3), line(4, archived=1))):
        with pytest.raises(Tampered, match="left entries out") as refused:
            read(2, *lines)
        assert refused.value.code == "feed-gap"


def test_entries_that_were_numbered_anew_or_are_of_another_history_are_found(read: Callable[..., list[int]]) -> None:
    """The service left entry 3 out, and gave its index to entry 4; the next page, and one after a restart."""
    for lines in (
        (line(3, leaf="leaf 4", prev="leaf 3"),),
        (line(3), line(4, leaf="leaf 5", prev="leaf 4")),
        (line(3, archived=0, prev="leaf of another log"),),
    ):
        with pytest.raises(Tampered, match="another history") as refused:
            read(2, *lines)
        assert refused.value.code == "split-view"
    assert read(2, line(3), line(4)) == [3, 4]
    with pytest.raises(Tampered, match="expected entry 5 to follow entry 4"):
        read(4, line(5, prev="leaf 3"))
    # Lines that were not taken are read again.
    assert read(3, line(4), line(5)) == [4, 5]


def test_the_leaves_of_all_entries_that_a_receiver_may_not_have_taken_are_known(
    read: Callable[..., list[int]],
) -> None:
    for start in range(3, 3 + MAX_UNSETTLED + 1_000, 10):
        read(start - 1, *map(line, range(start, start + 10)))
    last = start + 9
    with pytest.raises(Tampered, match="another history"):
        read(last - MAX_UNSETTLED, line(last - MAX_UNSETTLED + 1, prev="other"))


# The program on the page of the format.


def check_delivered(tmp_path: Path, *lines: str, export: Sequence[bytes] | None = None) -> str:
    """Return what the program on docs/formats/feed.md says of these lines, beside the entries of an export."""
    page = (Path(__file__).parents[2] / "docs" / "formats" / "feed.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "check_feed.py").write_text(program)
    (tmp_path / "events.jsonl").write_text("".join(f"{one}\n" for one in lines))
    words = [sys.executable, "check_feed.py", "events.jsonl"]
    if export is not None:
        (tmp_path / "entries.jsonl").write_bytes(b"".join(one + b"\n" for one in export))
        words.append("entries.jsonl")
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == (0 if ended.stdout else 1)
    return (ended.stdout + ended.stderr).strip()


@pytest.mark.thorough
def test_the_program_of_the_page_finds_what_the_service_leaves_out(desk: Console, tmp_path: Path) -> None:
    lines, entries = ask(desk).text.splitlines(), list(desk.site.entries)
    last, check = len(lines) - 1, partial(check_delivered, tmp_path)
    whole = f"{len(lines)} entries, 0 to {last}"
    assert check(*lines) == check(*lines, export=entries) == check(*lines, *lines[3:9]) == whole
    assert check(*lines[:4], *lines[5:]) == "entries 4 to 4 are missing: 0 were archived"
    # Numbered anew, and counted as archived.
    renumbered = [change(one, sequence=n) for n, one in enumerate([*lines[:4], *lines[5:]])]
    assert check(*renumbered) == "entry 4 does not continue entry 3"
    hidden = [*lines[:4], change(lines[5], archived=1), *lines[6:]]
    assert check(*hidden) == f"{len(lines) - 1} entries, 0 to {last}"
    assert check(*hidden, export=entries) == "entry 4 is missing, and was not archived"
    # Archived indeed, also between two deliveries of the same lines.
    removed = [*entries[:4], encode_removed(hash_leaf(entries[4])), *entries[5:]]
    assert check(*hidden, export=removed) == f"{len(lines) - 1} entries, 0 to {last}"
    assert check(*lines[:5], *hidden[3:], export=removed) == whole
    # A leaf that the log does not have.
    forged = [*lines[:-1], change(lines[-1], leaf=f"sha256:{'0' * 64}")]
    assert check(*forged) == whole and check(*forged, export=entries) == f"entry {last} is another one in the log"


def change(line: str, **fields: Any) -> str:
    event = json.loads(line)
    for name, value in fields.items():
        event["metadata" if name == "sequence" else "unmapped"][name] = value
    return json.dumps(event)


def test_once_ends_with_the_error_and_a_reader_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        FeedForwarder(Source(3, failures=1), Slow(), -1).follow(once=True)  # type: ignore[arg-type]
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(Conflict, match="expected a reader"):
        FeedForwarder(Source(3), StreamReceiver(full), -1).follow(once=True)  # type: ignore[arg-type]


def test_a_message_has_its_length_in_bytes_and_the_form_of_rfc_5424() -> None:
    line = Line(7, "2026-11-24T12:00:00.000Z", "release.emergency", 4, b'{"a":1}')
    message = encode_message(line, "host.example")
    length, _, rest = message.partition(b" ")
    assert int(length) == len(rest)
    assert rest == b'<106>1 2026-11-24T12:00:00.000Z host.example appliance - release.emergency - {"a":1}'


def test_a_syslog_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    ca = Authority(tmp_path).file
    receiver = SyslogReceiver(parse_address(f"127.0.0.1:{free_port()}", ca))
    with pytest.raises(Unavailable, match="Connection refused"):
        receiver.send([Line(1, "t", "heartbeat", 1, b"{}")])
    assert receiver.find_taken() is None
    receiver.close()


def test_a_syslog_server_that_sends_without_end_does_not_hold_the_feed_up() -> None:
    class Flood(Exception):
        """More was read than a look may read."""

    class Flooding:
        read = 0

        def settimeout(self, seconds: float) -> None:
            assert seconds == 0

        def recv(self, size: int) -> bytes:
            self.read += size
            if self.read > 1 << 20:
                raise Flood
            return bytes(size)

    receiver = SyslogReceiver.__new__(SyslogReceiver)
    receiver._address = parse_address("127.0.0.1:6514", None)
    with pytest.raises(Unavailable, match="data without end"):
        receiver._check_open(Flooding())  # type: ignore[arg-type]
