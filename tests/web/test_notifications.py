"""Notifications: what is new for each person, once an interval, without a name or text of anything, and bounded."""

from __future__ import annotations

import json
import os
import socketserver
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.config.settings import load_settings
from appliance.domain.queries.alarms import find_alarms
from appliance.domain.queries.measures import Expiry, Measures
from appliance.errors import ApplianceError, BadInput, Denied, Unavailable
from appliance.sandbox.host import check_hook, run_hook
from appliance.web.console.home.home import LISTS, waiting_for_all
from appliance.web.console.pages import PAGES
from appliance.web.operations import notifications
from appliance.web.operations.notifications import (
    Notification,
    Notifications,
    PendingCount,
    Waiting,
    mail_sender,
    program_sender,
)
from scripts.kit.log_builder import stage
from scripts.kit.waiting import wait_for
from tests.domain.runs.test_authorisation import asking

REVIEW = Waiting("Review", "/reviews", "a@1 for legal")


class Desk:
    """What waits for whom, and a carrier that fails when a test wants it to."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Waiting]] = {"rita": [REVIEW]}
        self.sent: list[Notification] = []
        self.is_broken = False
        self.notifications = Notifications(lambda: list(self.waiting.items()), (self.send,), "https://desk.example")

    def send(self, notification: Notification) -> None:
        if self.is_broken:
            raise Unavailable("mail server: expected it to take a notification, got none")
        self.sent.append(notification)


def test_a_person_is_told_once_of_what_waits_and_again_only_of_what_is_new() -> None:
    desk = Desk()
    assert [desk.notifications.make_round() for _ in range(3)] == [1, 0, 0]
    desk.waiting["rita"] += [
        Waiting("Review", "/reviews", "b@1 for legal"),
        Waiting("Order to countersign", "/orders", "x"),
    ]
    assert desk.notifications.make_round() == 1
    assert desk.sent[-1].items == (
        PendingCount("Review", 1, "/reviews"),
        PendingCount("Order to countersign", 1, "/orders"),
    )
    desk.waiting["rita"] = []
    assert desk.notifications.make_round() == 0
    desk.waiting["rita"] = [REVIEW]
    assert desk.notifications.make_round() == 1, "it was over, and waits again"


def test_a_round_sends_one_notification_a_person_whatever_waits() -> None:
    desk = Desk()
    desk.waiting = {"rita": [REVIEW, REVIEW._replace(key="b")], "raul": [REVIEW], "olga": []}
    assert desk.notifications.make_round() == 2
    assert [(one.person, one.items[0].number) for one in desk.sent] == [("rita", 2), ("raul", 1)]


def test_a_notification_that_fails_is_logged_and_tried_again_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = Desk()
    desk.is_broken = True
    assert desk.notifications.make_round() == 0
    assert "a notification to rita was not sent" in caplog.text and REVIEW.key not in caplog.text
    desk.is_broken = False
    assert desk.notifications.make_round() == 1


def test_a_carrier_that_does_not_work_ends_the_round_and_a_flood_of_people_is_spread() -> None:
    desk = Desk()
    desk.waiting = {f"p{number}": [REVIEW] for number in range(notifications.MOST_A_ROUND + 20)}
    tries: list[str] = []

    def fail(notification: Notification) -> None:
        tries.append(notification.person)
        raise Unavailable("no")

    desk.notifications.senders = (fail,)
    assert desk.notifications.make_round() == 0 and len(tries) == notifications.MOST_FAILURES
    desk.notifications.senders = (desk.send,)
    assert [desk.notifications.make_round() for _ in range(3)] == [notifications.MOST_A_ROUND, 20, 0]
    assert len({one.person for one in desk.sent}) == len(desk.sent)


def test_a_round_ends_with_the_service() -> None:
    desk = Desk()
    desk.notifications.pause = lambda: True
    assert desk.notifications.make_round() == 0


def test_a_notification_names_nothing_of_the_log_but_its_person() -> None:
    """Every name that the log knows is looked for in every notification of everybody."""
    site = stage("sealed")
    site.request_release()
    site.adopt(asking("high"))
    site.request_run(tier="high")
    order, documents = site.enrolment("newcomer", ("operator",))
    site.pend(order, documents)
    state, told = site.state, []
    for person, waiting in waiting_for_all(state, site.now):
        notification = Notification(person, notifications._count(waiting), "https://desk.example")
        told += (
            [(person, notification.encode().decode(), str(notification.message("a@b.example", f"{person}@b.example")))]
            if waiting
            else []
        )
    assert {person for person, *_ in told} >= {"rita", "raul", "ben"}
    names = {
        name.partition("@")[0] for table in (state.adapters, state.datasets, state.bases) for name, _ in table.items()
    }
    names |= {one.name for one in state.principals.values()} | {run.id for run in state.runs.values()}
    for person, *texts in told:
        for text in texts:
            for name in sorted(names - {person}):
                assert name not in text, (person, name, text)
            assert "sha256:" not in text and "expected" not in text


def test_administrators_and_operators_are_notified_of_each_alarm_without_its_text() -> None:
    site = stage("staffed")
    certificates = tuple(Expiry(name, "2026-01-01T00:00:00.000Z") for name in ("chain.pem", "people-ca.pem"))
    alarms = find_alarms(Measures(now=site.now, certificates=certificates))
    found = dict(waiting_for_all(site.state, site.now, alarms))
    told = {name for name, waiting in found.items() if any(one.kind == "Alarm" for one in waiting)}
    assert told == {
        name for name, one in site.state.principals.items() if one.has("administrator") or one.has("operator")
    }
    text = Notification("anna", notifications._count(found["anna"]), "").encode()
    assert b'{"kind": "Alarm", "number": 2, "path": "/health"}' in text and b".pem" not in text


def test_each_kind_of_served_model_has_a_page_that_lists_it_and_names_nothing() -> None:
    paths = {page.path for page in PAGES}
    assert {path.partition("?")[0] for path in LISTS.values()} <= paths
    assert not any("{" in path for path in LISTS.values())


# The program.


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a program that writes its input and its environment into a file beside it."""
    path = tmp_path / "carry"
    path.write_text(f'#!/bin/sh\n{{ cat; pwd; env; echo "$@"; }} > {tmp_path}/told\n')
    path.chmod(0o755)
    return path


def test_the_program_gets_one_line_and_nothing_of_the_service(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_DATABASE_URL", "postgresql://secret")
    notification = Notification("rita", (PendingCount("Review", 2, "/reviews"),), "https://desk.example")
    program_sender(partial(run_hook, (str(program), "--to", "$HOME; rm")))(notification)
    first, *rest = (program.parent / "told").read_text().splitlines()
    assert json.loads(first) == {
        "person": "rita",
        "items": [{"kind": "Review", "number": 2, "path": "/reviews"}],
        "url": "https://desk.example",
    }
    assert rest[0] == "/" and rest[-1] == "--to $HOME; rm", "no shell reads its words"
    assert {line.partition("=")[0] for line in rest[1:-1]} <= {"PATH", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    path = tmp_path / "hang"
    path.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/child\nwait\n")
    path.chmod(0o755)
    started = tmp_path / "child"
    for limit_s in (0.3, 3.0, 30.0):  # until it has started what it starts
        with pytest.raises(Unavailable, match=f"expected its end within {limit_s:.0f} s"):
            run_hook((str(path),), b"{}\n", limit_s=limit_s)
        if started.exists() and started.read_text():
            break
    child = int(started.read_text())
    wait_for(lambda: not _lives(child), "the child's end")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_that_fails_or_does_not_read_fails_the_notification_alone(tmp_path: Path) -> None:
    path = tmp_path / "fail"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    with pytest.raises(Unavailable, match="expected exit code 0, got 3"):
        run_hook((str(path),), b"x" * 100)


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_program_that_others_can_change_is_not_started(program: Path, mode: int) -> None:
    program.chmod(mode)
    with pytest.raises(Denied, match="that others cannot write to, got mode 07"):
        run_hook((str(program),), b"{}\n")
    assert not (program.parent / "told").exists()


def test_a_program_that_is_not_there_or_is_none_is_said_at_the_start(program: Path) -> None:
    with pytest.raises(BadInput, match="expected a program, got: No such file"):
        check_hook((str(program.parent / "nothing"),))
    program.chmod(stat.S_IRUSR)
    if os.geteuid():
        with pytest.raises(BadInput, match="expected a program that the service may run"):
            check_hook((str(program),))
    with pytest.raises(BadInput, match="got another file"):
        check_hook((str(program.parent),))


# The mail server.


class _Mailbox(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as one message needs."""

    def handle(self) -> None:
        server: Any = self.server
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            server.said.append(line.decode().strip())
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                body = b""
                while not body.endswith(b"\r\n.\r\n"):
                    body += self.rfile.readline()
                server.mails.append(body.decode())
            answers = {b"QUIT": b"221 bye\r\n", b"RCPT": b"550 no\r\n" if server.refuses else b"250 ok\r\n"}
            self.wfile.write(answers.get(word, b"250 ok\r\n"))


@contextmanager
def mailbox(refuses: bool = False) -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Mailbox) as server:
        server.daemon_threads = True
        told: Any = server
        told.said, told.mails, told.refuses = [], [], refuses
        thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
        thread.start()
        yield told
        server.shutdown()


def test_a_mail_goes_to_the_person_at_the_sites_own_server() -> None:
    with mailbox() as server:
        send = mail_sender(server.server_address, "appliance@bank.example", "{person}@bank.example")
        send(Notification("rita", (PendingCount("Review", 2, "/reviews"),), "https://desk.example"))
    (mail,) = server.mails
    assert "To: rita@bank.example" in mail and "Subject: Appliance: 2 new pending items" in mail
    assert "Review: 2  https://desk.example/reviews" in mail
    assert "localhost" in server.said[0], "this host's own name is not looked up"


def test_a_mail_server_that_refuses_or_is_not_there_fails_the_notification_alone() -> None:
    notification = Notification("rita", (PendingCount("Review", 1, "/reviews"),), "")
    with mailbox(refuses=True) as server, pytest.raises(Unavailable, match="expected it to take a notification"):
        mail_sender(server.server_address, "a@b.example", "{person}@b.example")(notification)
    with pytest.raises(Unavailable, match="expected it to take a notification"):
        mail_sender(server.server_address, "a@b.example", "{person}@b.example")(notification)


# Settings.


def _settings(tmp_path: Path, **values: str) -> Any:
    (tmp_path / "appliance.toml").write_text(
        "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    )
    return load_settings(tmp_path, {})


def test_notifications_are_off_until_a_program_or_a_server_is_named(tmp_path: Path) -> None:
    for given in ({}, {"notification_minutes": "5", "notification_from": "a@b.example"}):
        made = _settings(tmp_path, **given)
        assert made.notification_command is None and made.notification_smtp is None
    made = _settings(tmp_path, notification_command="/usr/local/bin/tell --to 'the desk'", notification_minutes="5")
    assert made.notification_command == ("/usr/local/bin/tell", "--to", "the desk") and made.notification_smtp is None
    assert made.notification_minutes == 5
    addresses = {"notification_from": "appliance@b.example", "notification_to": "{person}@b.example"}
    made = _settings(tmp_path, notification_smtp="127.0.0.1:25", **addresses)
    assert made.notification_command is None and made.notification_smtp == ("127.0.0.1", 25)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"notification_command": "tell"}, "expected the absolute path of a program"),
        ({"notification_command": '/bin/tell "x'}, "expected the absolute path of a program"),
        ({"notification_smtp": "127.0.0.1:25"}, "notification_smtp: expected notification_from beside it"),
        (
            {"notification_smtp": "127.0.0.1:25", "notification_from": "a@b.example"},
            "notification_smtp: expected notification_to beside it",
        ),
        (
            {"notification_smtp": "127.0.0.1:25", "notification_from": "a@b.example", "notification_to": "x@b.example"},
            "{person} once",
        ),
        (
            {"notification_smtp": "127.0.0.1:25", "notification_from": "a@b.example\nBcc: x@y.example"},
            "notification_from",
        ),
        (
            {
                "notification_smtp": "10.0.0.7:25",
                "notification_from": "a@b.example",
                "notification_to": "{person}@b.example",
            },
            "loopback",
        ),
        ({"notification_minutes": "0"}, "notification_minutes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, values: dict[str, str], words: str) -> None:
    with pytest.raises(ApplianceError, match=words.replace("{", r"\{")):
        _settings(tmp_path, **values)


def test_a_round_is_made_each_interval_until_the_service_ends() -> None:
    desk, closing = Desk(), threading.Event()
    context: Any = SimpleNamespace(closing=closing)
    notifications.start(context, 0.01, desk.notifications)
    wait_for(lambda: desk.sent, "a notification")
    closing.set()
    assert [one.person for one in desk.sent] == ["rita"]
