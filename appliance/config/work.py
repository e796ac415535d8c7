"""What this process does, and where its work is done: roles, the engine, Slurm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from appliance.config.keys import ROLES
from appliance.config.parsing import parse_number
from appliance.config.values import Slurm
from appliance.errors import BadInput

_PROCESS = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_SLURM_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:+=-]{0,127}")


def parse_process(name: str | None) -> str:
    if name is not None and _PROCESS.fullmatch(name) is None:
        raise BadInput(
            "settings, process: expected lower-case letters, digits and hyphens, at most 40, such as gateway-1, "
            f"got {name!r:.60}"
        )
    return name or ""


def read_roles(values: Mapping[str, str], database_url: str) -> frozenset[str]:
    given = [role.strip() for role in values["roles"].split(",")]
    for role in given:
        if role not in ROLES:
            raise BadInput(f"settings, roles: expected some of people, units, runs, with commas between, got {role!r}")
    roles = frozenset(given)
    if roles == ROLES:
        return roles
    if database_url.startswith("sqlite:"):
        raise BadInput(
            f"settings, roles: expected people, units, runs, since one process serves a ledger on SQLite, got "
            f"{values['roles']!r}; several processes need PostgreSQL (database_url)"
        )
    if "process" not in values:
        raise BadInput(
            f"settings, roles {values['roles']!r}: expected a name for this process too (process), which is one of "
            "several, got none"
        )
    return roles


def read_vllm(values: Mapping[str, str], place: Path) -> Path | None:
    engine, packages = values["engine"], values.get("vllm_packages")
    if engine not in ("builtin", "vllm"):
        raise BadInput(f"settings, engine: expected builtin or vllm, got {engine!r}")
    if engine == "builtin":
        return None
    if packages is None:
        raise BadInput("settings, vllm_packages: expected the site-packages of an environment with vLLM, got none")
    return place / packages


def read_runs_on(values: Mapping[str, str]) -> str:
    if values["runs_on"] not in ("here", "slurm"):
        raise BadInput(f"settings, runs_on: expected here or slurm, got {values['runs_on']!r}")
    if values["runs_on"] == "slurm" and "slurm_folder" not in values:
        raise BadInput("settings, runs_on: expected slurm_folder beside it, got none")
    return values["runs_on"]


def read_slurm(values: Mapping[str, str]) -> Slurm | None:
    """None where no shared folder is set."""
    if "slurm_folder" not in values:
        return None
    for name in ("slurm_folder", "slurm_scratch", "slurm_commands", "slurm_python"):
        if name in values and not values[name].startswith("/"):
            raise BadInput(f"settings, {name}: expected an absolute path, got {values[name]!r}")
    words = {name: values.get(f"slurm_{name}") for name in ("partition", "account", "time_limit", "memory", "gres")}
    for name, word in words.items():
        if word is not None and _SLURM_WORD.fullmatch(word) is None:
            raise BadInput(f"settings, slurm_{name}: expected one word as sbatch takes it, got {word!r}")
    numbers = {name: parse_number(values[f"slurm_{name}"], f"slurm_{name}") for name in ("cpus", "warning", "patience")}
    return Slurm(
        folder=Path(values["slurm_folder"]),
        **words,
        cpus=numbers["cpus"],
        python=values.get("slurm_python"),
        scratch=values["slurm_scratch"],
        warning_s=numbers["warning"],
        patience_s=60.0 * numbers["patience"],
        commands=Path(values["slurm_commands"]),
    )
