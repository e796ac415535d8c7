"""What `appliance doctor` looks at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime

from appliance.config.values import Settings
from appliance.errors import ApplianceError
from appliance.store.files.lock import holder_of
from appliance.wiring.listening import tls_of_console, tls_of_people, tls_of_units
from appliance.workflows.operations.doctor import diagnose
from appliance.workflows.operations.findings import Finding
from appliance.workflows.operations.installation import Installation


def doctor(settings: Settings) -> Iterator[Finding]:
    """What is in order for this appliance and what is not; beside its service, without one, and before `init`."""
    unfit: str | None = None
    try:
        tls_of_units(settings)
        tls_of_people(settings)
        tls_of_console(settings)
    except ApplianceError as error:
        unfit = error.message
    private = [settings.home / "trust.json"]
    private += [] if settings.database_file is None else [settings.database_file]
    certificate, operations = settings.certificate, settings.operations
    private += [] if certificate is None else [certificate.key]
    private += [] if operations is None else [operations.token]
    listeners = [("units' port", *settings.listen)] if settings.listen is not None else []
    people = settings.people
    listeners += [] if people is None else [("people's port", *people.listen)]
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
