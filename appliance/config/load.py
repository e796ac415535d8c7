"""Settings: the environment and `<home>/appliance.toml`, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from appliance.config.file import read_file
from appliance.config.keys import DEFAULTS, VARIABLES
from appliance.config.listeners import check_plaintext, read_certificate, read_console, read_operations, read_people
from appliance.config.outlets import read_notices, read_traces
from appliance.config.parsing import parse_listen, parse_mib, parse_minutes, parse_some_minutes
from appliance.config.values import Folder, Settings
from appliance.config.work import parse_process, read_roles, read_runs_on, read_slurm, read_vllm


def find_folder(home: Path | None = None, environment: Mapping[str, str] | None = None) -> Folder:
    """The folder that was named, or that of the environment, or the default; no file is read."""
    env = os.environ if environment is None else environment
    place = home or Path(env.get("APPLIANCE_HOME") or _default_home(env))
    return Folder(place.expanduser().absolute())


def load_settings(home: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Environment over file over default; BadInput names an unknown key or a value that does not fit."""
    env = os.environ if environment is None else environment
    place = find_folder(home, env).home
    given, limits = read_file(place / "appliance.toml")
    values = DEFAULTS | given | {key: env[name] for key, name in VARIABLES.items() if env.get(name)}
    database_url = values.get("database_url", f"sqlite:///{place / 'ledger.db'}")
    listen, certificate = parse_listen(values["listen"]), read_certificate(values, place)
    operations, people = read_operations(values, place), read_people(values, place, certificate)
    console = read_console(values, place, certificate)
    roles = read_roles(values, database_url)
    for door in (listen, *(other.listen for other in (operations, people, console) if other is not None)):
        check_plaintext(values.get("plaintext"), door, certificate)
    if "people" not in roles:
        people = console = None
    if "units" not in roles:
        listen = None
    return Settings(
        home=place,
        database_url=database_url,
        migration_url=values.get("migration_url", database_url),
        listen=listen,
        witnessed=place / values["witnessed"],
        socket_group=values.get("socket_group"),
        certificate=certificate,
        people=people,
        console=console,
        operations=operations,
        notices=read_notices(values),
        traces=read_traces(values["traces"]),
        process=parse_process(values.get("process")),
        roles=roles,
        shared=place / values["shared"] if "shared" in values else None,
        keyring=place / values["keys"],
        rehash_s=parse_minutes(values["rehash"], "rehash"),
        import_s=parse_some_minutes(values["import_minutes"], "import_minutes"),
        import_cpu_s=parse_some_minutes(values["import_cpu_minutes"], "import_cpu_minutes"),
        prompt_cache_bytes=parse_mib(values["prompt_cache"], "prompt_cache"),
        vllm_packages=read_vllm(values, place),
        harness_packages=place / values["harness_packages"] if "harness_packages" in values else None,
        runs_on=read_runs_on(values),
        slurm=read_slurm(values),
        limits=limits,
    )


def _default_home(env: Mapping[str, str]) -> str:
    data = env.get("XDG_DATA_HOME") or os.path.join(env.get("HOME") or "~", ".local", "share")
    return os.path.join(data, "appliance")
