"""Injected failures: the n-th database call of a service fails, before or after it took effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from appliance.store.database import engine as database

Raise = Callable[[Engine], BaseException]


def lost_connection(engine: Engine) -> BaseException:
    """Return the driver's error for a disk or server that is gone."""
    return engine.dialect.loaded_dbapi.OperationalError("injected failure")


class Steps:
    """Counts statements and commits; `fired` is the one at which the failure came."""

    def __init__(self, engine: Engine, at: int | str, after: bool, error: Raise) -> None:
        self._engine, self._at, self._after, self._error = engine, at, after, error
        self._count = -1
        self.fired: str | None = None

    def before(self, what: str) -> None:
        self._count += 1
        if not self._after:
            self._fail(what)

    def after(self, what: str) -> None:
        if self._after:
            self._fail(what)

    def _fail(self, what: str) -> None:
        if self._at in (self._count, what) and self.fired is None:
            self.fired = what
            raise self._error(self._engine)


@contextmanager
def failing(engine: Engine, at: int | str, *, after: bool, error: Raise = lost_connection) -> Iterator[Steps]:
    """Within, the `at`-th statement or commit of this engine fails, once; or the first that is `at`."""
    steps = Steps(engine, at, after, error)
    dialect: Any = engine.dialect
    commit = dialect.do_commit

    def do_commit(connection: Any) -> None:
        steps.before("COMMIT")
        commit(connection)
        steps.after("COMMIT")

    def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        steps.before(statement)

    def after(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        steps.after(statement)

    run_raw = database.run_raw

    def run_prepared(connection: Any, method: str, statement: str, parameters: Any) -> Any:
        if connection.dialect is not dialect:
            return run_raw(connection, method, statement, parameters)
        try:
            steps.before(statement)
            result = run_raw(connection, method, statement, parameters)
            steps.after(statement)
        except dialect.loaded_dbapi.Error as injected:
            raise OperationalError(statement, None, injected) from injected
        return result

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    dialect.do_commit = do_commit
    database.run_raw = run_prepared
    try:
        yield steps
    finally:
        database.run_raw = run_raw
        del dialect.do_commit
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "after_cursor_execute", after)


@contextmanager
def unreachable(engine: Engine) -> Iterator[None]:
    """Within, no new connection can be made."""

    def refuse(*_: Any) -> None:
        raise lost_connection(engine)

    event.listen(engine, "connect", refuse)
    try:
        yield
    finally:
        event.remove(engine, "connect", refuse)
