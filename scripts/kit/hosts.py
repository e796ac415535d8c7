"""Several service processes of one appliance on one PostgreSQL, each with a home of its own as on a host of its own."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from appliance.store.database.engine import migrate, open_engine
from appliance.store.database.tables import head, metadata
from scripts.kit.appliance import Appliance
from scripts.kit.ports import free_port
from scripts.kit.postgres import APPLICATION, Server
from scripts.kit.waiting import wait_for


def move_to_postgresql(site: Appliance, server: Server) -> str:
    """Copy a stopped site's ledger row by row into a new database. Return its name."""
    database = server.create_database()
    source, target = open_engine(f"sqlite:///{site.home}/ledger.db"), open_engine(server.url(database))
    migrate(target)
    server.let_application_log_in()
    with source.connect() as old, target.begin() as new:
        for table in metadata.sorted_tables:
            found = [row._asdict() for row in old.execute(select(table))]
            if table is head:
                new.execute(update(head).values(**found[0]))
            elif found:
                new.execute(insert(table), found)
    for engine in (source, target):
        engine.dispose()
    (site.home / "ledger.db").unlink()
    return database


def add_process(desk: Appliance, name: str, roles: str, **environment: str) -> Appliance:
    """Add a process with its own home. The desk's folder has the keys and sealed folders of all."""
    home = desk.home.parent / name
    home.mkdir(mode=0o700)
    shutil.copy(desk.home / "trust.json", home / "trust.json")
    given = {
        **desk.environment,
        "APPLIANCE_PROCESS": name,
        "APPLIANCE_ROLES": roles,
        "APPLIANCE_SHARED": str(desk.home),
        "APPLIANCE_KEYS": str(desk.home / "keys"),
        "APPLIANCE_WITNESSED": str(desk.home / "witnessed"),
        "APPLIANCE_LISTEN": f"127.0.0.1:{free_port()}",
        **environment,
    }
    return Appliance(home, desk.keys, desk.launcher, given)


@dataclass
class Hosts:
    """`desk` takes orders; each of the others has its roles. Their homes lie beside the first, whose folder holds the
    keys and the sealed folders of all."""

    desk: Appliance
    server: Server
    database: str
    others: dict[str, Appliance] = field(default_factory=dict)

    def add(self, name: str, roles: str, **environment: str) -> Appliance:
        """Not started yet."""
        self.others[name] = add_process(self.desk, name, roles, **environment)
        return self.others[name]

    def start(self, site: Appliance) -> Appliance:
        start_process(site)
        return site

    def processes(self) -> list[tuple[Any, ...]]:
        return self.server.execute("SELECT name, epoch, about IS NOT NULL FROM processes ORDER BY name", self.database)

    def stop(self) -> None:
        for site in (*self.others.values(), self.desk):
            if site.service is not None:
                site.service.send_signal(signal.SIGCONT)
                site.stop()


def start_process(*sites: Appliance) -> None:
    """Start processes and wait until each listener answers, and a runner is among the processes."""
    for site in sites:
        site.start(wait=False)
    for site in sites:
        roles = site.environment.get("APPLIANCE_ROLES", "people")
        if "people" in roles:
            site.wait_until_up()
        elif "units" in roles:
            wait_for(partial(_is_open_or_ended, site), f"{site.home.name}: {site.log()[-2000:]}")
        else:
            wait_for(partial(_is_running_or_ended, site), f"{site.home.name} starts")
        assert not ended(site), site.log()[-2000:]


def _is_open_or_ended(site: Appliance) -> bool:
    return is_open(site) or ended(site)


def _is_running_or_ended(site: Appliance) -> bool:
    return "service.started" in site.log() or ended(site)


@contextmanager
def on_hosts(site: Appliance, server: Server) -> Iterator[Hosts]:
    """Start the stopped site's desk on the server. The caller adds the other hosts."""
    database = move_to_postgresql(site, server)
    site.environment |= {
        "APPLIANCE_DATABASE_URL": server.url(database, APPLICATION),
        "APPLIANCE_MIGRATION_URL": server.url(database),
        "APPLIANCE_PROCESS": "desk",
        "APPLIANCE_ROLES": "people",
    }
    hosts = Hosts(site, server, database)
    try:
        hosts.start(site)
        yield hosts
    finally:
        hosts.stop()
        server.drop_database(database)


def ended(site: Appliance) -> bool:
    return site.service is not None and site.service.poll() is not None


def is_open(site: Appliance) -> bool:
    assert site.settings.listen is not None
    with socket.socket() as probe:
        return probe.connect_ex(site.settings.listen) == 0


def copy_of(golden: Appliance, folder: Path) -> Appliance:
    return golden.copy(folder / "desk", free_port())
