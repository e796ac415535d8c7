"""The allowed imports between packages. The table below is the architecture; a new arrow or library is a change to this
file."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# room -> the rooms it may import. Its own modules are always allowed.
ARROWS: dict[str, set[str]] = {
    "build": set(),
    "errors": set(),
    "addresses": set(),
    "systemd": set(),
    "config": {"errors", "formats"},
    "formats": {"errors"},
    "domain": {"errors", "formats"},
    "access": {"errors", "formats", "domain"},
    "store": {"build", "errors", "formats", "domain"},
    "signer": {"errors", "formats", "domain", "store"},
    "sandbox": {"build", "errors", "formats", "domain"},
    "slurm": {"build", "errors", "formats", "domain", "sandbox"},
    "api": {"errors", "formats", "domain"},
    "client": {"build", "errors", "formats", "domain", "api"},
    "ml": {"errors", "formats", "domain"},
    "worker": {"errors", "formats", "domain", "ml"},
    "workflows": {"build", "errors", "formats", "domain", "access", "api", "store", "sandbox", "slurm"},
    "web": {"build", "errors", "addresses", "systemd", "formats", "domain", "api", "workflows", "reports"},
    "wiring": {
        "build",
        "errors",
        "systemd",
        "config",
        "formats",
        "domain",
        "access",
        "api",
        "store",
        "signer",
        "sandbox",
        "slurm",
        "workflows",
        "web",
    },
    "cli": {
        "build",
        "errors",
        "addresses",
        "systemd",
        "config",
        "formats",
        "domain",
        "api",
        "client",
        "reports",
        "signer",
        "witness",
        "wiring",
    },
    "reports": {"errors", "formats", "domain"},
    "verifier": {"build", "errors", "formats", "domain", "access"},
    "witness": {"build", "errors", "formats"},
    "loader": {"errors", "formats", "domain", "ml"},
    "migrations": {"errors", "config", "store"},
    "__main__": {"cli"},
    "__init__": set(),
}
# room -> the libraries it may import beside the standard library.
LIBRARIES: dict[str, set[str]] = {
    "build": set(),
    "errors": set(),
    "addresses": set(),
    "systemd": set(),
    "config": {"pydantic", "pydantic_settings"},
    "formats": {"cryptography"},
    "domain": {"pydantic"},
    "access": {"cedarpy", "joserfc", "pydantic"},
    "api": {"pydantic"},
    "store": {"alembic", "cryptography", "psycopg", "pydantic", "pyrage", "sqlalchemy"},
    "signer": {"cryptography", "pkcs11", "sqlalchemy"},
    "sandbox": set(),
    "slurm": {"pydantic"},
    "client": {"httpx", "pydantic", "yaml"},
    "ml": {
        *("bitsandbytes", "evaluate", "gguf", "huggingface_hub", "jinja2", "lm_eval", "numpy", "peft", "pyarrow"),
        *("llguidance", "pydantic", "safetensors", "tokenizers", "torch", "transformers", "vllm"),
    },
    "worker": {"bitsandbytes", "numpy", "peft", "pydantic", "safetensors", "torch", "transformers"},
    "workflows": {"pydantic"},
    "web": {
        *("fastapi", "h11", "httpx", "jinja2", "opentelemetry", "prometheus_client", "pydantic", "starlette"),
        *("structlog", "uvicorn"),
    },
    "wiring": {"pydantic", "starlette"},
    "cli": {"click", "packaging", "yaml"},
    "reports": {"jinja2", "matplotlib", "wandb"},
    "verifier": {"cryptography", "pydantic"},
    "witness": set(),
    "loader": set(),
    "migrations": {"alembic", "sqlalchemy"},
    "__main__": set(),
    "__init__": set(),
}
# room -> its folders, each of which may import those before it; "" stands for the files that lie in the room itself.
FOLDERS: dict[str, tuple[str, ...]] = {
    "formats": ("core", "artifacts", "signatures", "log"),
    "domain": (
        *("core", "recipe", "planning"),
        *("governance", "retention", "witnesses", "data", "evaluation", "runs", "releases", "serving", "operations"),
        *("actions", "audit", "queries"),
    ),
    "ml": (
        "",
        "quantised",
        "layers",
        "model",
        "data",
        "inference",
        "training",
        "evaluation",
        "serving",
        "vllm",
    ),
    "store": ("files", "database", "ledger"),
    "sandbox": ("",),
    "workflows": (
        *("core", "integrity", "governance", "witnesses", "data", "evaluation", "runs", "releases", "serving"),
        *("queries", "", "backups", "lifecycle", "operations"),
    ),
    "web": ("core", "people", "operations", "units", "console"),
    "client": ("support", ""),
    "cli": ("support", "runs", "releases", ""),
}
MOST_LINES = 600
"""In one module of the appliance."""
# `wiring` builds the service, so the command line may reach it in the commands of the service's host, and only when
# they run.
WIRING_COMMANDS = (
    *("serve", "init", "doctor", "diagnose"),
    *("create", "list_backups", "verify", "remove", "restore", "confirm", "check_database", "migrate_database"),
)
# Cedar need not be there where an auditor works: `access` is imported in one function, which says whether it is.
CEDAR_FUNCTION = "load_cedar_policy"
# Programs that run alone on another machine, whole: what their zipapps hold.
PROGRAM_ROOMS = {
    "verifier": {"build", "errors", "formats", "domain", "access", "verifier", "__init__"},
    "witness": {"build", "errors", "formats", "witness", "__init__"},
}


@dataclass(frozen=True)
class Import:
    """One import statement's target: `name` is dotted; `function` is the innermost function it stands in, or None."""

    module: str
    name: str
    line: int
    function: str | None


def room_of(module: str) -> str:
    """`appliance.store.ledger.ledger` -> `store`; migrations are a room of their own, wherever their folder lies."""
    parts = module.split(".")
    if "migrations" in parts:
        return "migrations"
    return parts[1] if len(parts) > 1 else "__init__"


def _walk(node: ast.AST, function: str | None) -> Iterator[tuple[ast.AST, str | None]]:
    for child in ast.iter_child_nodes(node):
        yield child, function
        inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield from _walk(child, inner)


def imports_of(module: str, tree: ast.AST, modules: set[str]) -> Iterator[Import]:
    """Every import in the file, in functions and under TYPE_CHECKING too; `from a import b` names module a.b if any."""
    for node, function in _walk(tree, None):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, function)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                below = f"{base}.{alias.name}"
                is_module = below in modules or (base == "appliance" and not alias.name.startswith("__"))
                yield Import(module, below if is_module else base, node.lineno, function)


def folder_of(module: str) -> str:
    """Return the folder inside its package: `appliance.store.files.disk` -> `files`; "" without one."""
    parts = module.split(".")
    return parts[2] if len(parts) > 3 or (len(parts) == 3 and parts[2] in FOLDERS.get(parts[1], ())) else ""


def check_folder(found: Import) -> Iterator[str]:
    """Between the folders of a room imports go one way."""
    room = room_of(found.module)
    if room not in FOLDERS or room_of(found.name) != room or not found.name.startswith("appliance."):
        return
    here, there = folder_of(found.module), folder_of(found.name)
    order = FOLDERS[room]
    where = f"{found.module}:{found.line}"
    if here not in order or there not in order:
        yield f"{where}: no such folder of {room}: expected one of {order}, got {here!r} and {there!r}"
    elif order.index(there) > order.index(here):
        yield f"{where}: {room}/{here} imports {room}/{there}: expected only {order[: order.index(here) + 1]}"


def hidden_imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield imports by string, which no reader sees. The command line may load its own commands so, and the entry of
    all workers the module of one."""
    if room_of(module) == "cli" or module == "appliance.worker.run":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "__import__" or called.split(".")[-1] == "import_module":
                yield f"{module}:{node.lineno}: imports by string: expected an import statement"


def _check_inside(found: Import) -> Iterator[str]:
    here, there = room_of(found.module), room_of(found.name)
    where = f"{found.module}:{found.line}"
    if found.name == "appliance" or there == here:
        return
    if there not in ARROWS:
        yield f"{where}: imports {found.name}: no such room"
    elif there not in ARROWS[here]:
        yield f"{where}: {here} imports {there}: expected only {sorted(ARROWS[here])}"
    elif (here, there) == ("cli", "wiring") and found.function not in WIRING_COMMANDS:
        yield f"{where}: cli imports wiring: expected inside one of {WIRING_COMMANDS}, got {found.function}"
    elif (here, there) == ("verifier", "access") and found.function != CEDAR_FUNCTION:
        yield f"{where}: verifier imports access: expected inside {CEDAR_FUNCTION}, got {found.function}"


def check_import(found: Import) -> Iterator[str]:
    """Yield the findings against one import."""
    top = found.name.split(".")[0]
    here = room_of(found.module)
    where = f"{found.module}:{found.line}"
    if found.name.startswith("."):
        yield f"{where}: relative import: expected an absolute one"
    elif top == "appliance":
        yield from _check_inside(found)
    elif top not in sys.stdlib_module_names and top not in LIBRARIES[here]:
        yield f"{where}: {here} imports {top}: expected only {sorted(LIBRARIES[here])}"
    elif found.module == "appliance.worker.probes" and top not in sys.stdlib_module_names:
        yield f"{where}: the sandbox is probed before a library is loaded: got {top}"


def cycles(graph: dict[str, set[str]]) -> Iterator[str]:
    """Each cycle found by a depth-first walk, once, as `a -> b -> a`."""
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> Iterator[str]:
        if module in path:
            yield "cycle: " + " -> ".join([*path[path.index(module) :], module])
            return
        if module in done:
            return
        path.append(module)
        for target in sorted(graph.get(module, ())):
            yield from visit(target)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        yield from visit(module)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every module that importing `start` brings in."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting.extend(graph.get(module, ()))
    return seen


def check(sources: dict[str, str]) -> list[str]:
    """All findings over a set of modules: dotted name -> source. A package's `__init__` has the package's name."""
    findings: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        if room_of(module) not in ARROWS:
            findings.append(f"{module}: no such room: expected one of {sorted(ARROWS)}")
            continue
        tree = ast.parse(source, module)
        found = list(imports_of(module, tree, set(sources)))
        graph[module] = {i.name for i in found if i.name in sources and i.name != module}
        findings += [finding for one in found for finding in (*check_import(one), *check_folder(one))]
        findings += hidden_imports(module, tree)
    findings += cycles(graph)
    for program, rooms in PROGRAM_ROOMS.items():
        outside = {room_of(module) for module in reachable(graph, f"appliance.{program}")} - rooms
        if outside:
            findings.append(f"appliance.{program} reaches {sorted(outside)}: expected only {sorted(rooms)}")
    return findings


def check_script(module: str, source: str) -> Iterator[str]:
    """Benches, soak and demo run where the tests are not. A name in a text counts too: `python -m tests.kit.alone`."""
    tree = ast.parse(source, module)
    named = [(found.name.lstrip("."), found.line) for found in imports_of(module, tree, set())]
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    named += [(text.value, text.lineno) for text in texts if re.match(r"tests\.[a-z]", text.value)]
    for name, line in named:
        if name.split(".")[0] == "tests":
            yield f"{module}:{line}: scripts import {name}: expected nothing of tests; what both use is in scripts/kit"


def read_sources() -> dict[str, str]:
    """Return the appliance's own files, and the migrations if they are beside it."""
    sources = {}
    for path in [*ROOT.glob("appliance/**/*.py"), *ROOT.glob("migrations/**/*.py")]:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        sources[".".join(parts)] = path.read_text(encoding="utf-8")
    return sources


@pytest.mark.thorough
def test_every_file_keeps_the_import_rules() -> None:
    sources = read_sources()
    assert len(sources) > 10, "the test looks at the wrong folder"
    assert check(sources) == []


@pytest.mark.thorough
def test_no_script_imports_the_tests() -> None:
    paths = sorted(ROOT.glob("scripts/**/*.py"))
    assert len(paths) > 10, "the test looks at the wrong folder"
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    assert [one for name, path in names.items() for one in check_script(name, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import tests.kit.founded",
        "from tests.kit import founded",
        "def f():\n    from tests import kit",
        "run(['python', '-m', 'tests.kit.alone'])",
        "importlib.import_module('tests.kit.founded')",
    ],
)
def test_a_script_that_imports_the_tests_is_found(source: str) -> None:
    (finding,) = check_script("scripts.bench", source)
    assert finding.startswith("scripts.bench:") and "scripts import tests" in finding
    assert list(check_script("scripts.bench", source.replace("tests", "scripts"))) == []


def test_no_module_is_too_long() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.glob("appliance/**/*.py")}
    assert [f"{path}: {size} lines" for path, size in sizes.items() if size > MOST_LINES] == []


CLIENT_ROOMS = ("client", "cli", "reports")
MOST_LITERAL_KEYS = 50
"""Places in the rooms of clients that take a field of decoded JSON by its name; lowered with each conversion."""


def literal_keys(tree: ast.AST) -> list[int]:
    """List the lines of subscripts and of `.get` with a literal name, except on the environment and on headers."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            key, value = node.slice, node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            key, value = next(iter(node.args), None), node.func.value
        else:
            continue
        is_named = isinstance(key, ast.Constant) and isinstance(key.value, str) and not key.value.startswith("/")
        if is_named and ast.unparse(value).split(".")[-1] not in ("environ", "headers"):
            found.append(node.lineno)
    return found


@pytest.mark.thorough
def test_clients_take_fields_of_typed_values() -> None:
    """The types of `appliance/api` are the one definition of a response; a misspelt key is found by mypy."""
    paths = [path for room in CLIENT_ROOMS for path in (ROOT / "appliance" / room).rglob("*.py")]
    found = {path: literal_keys(ast.parse(path.read_text(encoding="utf-8"))) for path in paths}
    count = sum(map(len, found.values()))
    assert count <= MOST_LITERAL_KEYS, {str(path): lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("a['b']", 1),
        ("a.get('b', 1)", 1),
        ("os.environ.get('B')", 0),
        ("a[0] + a[b]", 0),
        ("connection.get('/v1/b', B)", 0),
    ],
)
def test_a_literal_key_is_counted(source: str, count: int) -> None:
    assert len(literal_keys(ast.parse(source))) == count


def test_every_library_of_the_table_is_a_declared_dependency() -> None:
    """What is imported is asked for by name: never only because another library happens to bring it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *optional["wandb"],
        *optional["harness"],
        *optional["vllm"],
        *optional["pkcs11"],
    ]
    declared = {re.split(r"[^A-Za-z0-9-]", line)[0].lower().replace("-", "_") for line in wanted}
    declared = {name.removesuffix("_cpu").removeprefix("python_") for name in declared}
    declared = {"opentelemetry" if name.startswith("opentelemetry_") else name for name in declared}
    imported = set().union(*LIBRARIES.values()) - {"yaml"} | {"pyyaml"}
    assert imported == declared


def test_both_tables_name_the_same_rooms() -> None:
    assert set(LIBRARIES) == set(ARROWS)
    assert set().union(*ARROWS.values()) <= set(ARROWS)
    assert not any("worker" in rooms for rooms in ARROWS.values())


# Each rule is broken once, on purpose: module, source, and words of the finding it must give.
BROKEN = [
    (
        "appliance.domain.core.state",
        "from appliance.domain.runs.training import Train",
        "domain/core imports domain/runs",
    ),
    ("appliance.domain.runs.training", "import appliance.domain.serving.slots", "domain/runs imports domain/serving"),
    ("appliance.store.files.disk", "import appliance.store.ledger.ledger", "store/files imports store/ledger"),
    ("appliance.domain.misc", "import appliance.domain.core.state", "no such folder of domain"),
    ("appliance.domain.core.state", "from appliance.store.ledger.ledger import Ledger", "domain imports store"),
    ("appliance.domain.core.state", "from appliance import store", "domain imports store"),
    ("appliance.domain.core.state", "import appliance.store.ledger.ledger", "domain imports store"),
    ("appliance.domain.core.state", "def f():\n    from appliance.web import app", "domain imports web"),
    ("appliance.domain.core.state", "if TYPE_CHECKING:\n    import appliance.web", "domain imports web"),
    ("appliance.formats.core.digest", "from appliance.domain.core.names import Name", "formats imports domain"),
    ("appliance.errors", "import appliance.config", "errors imports config"),
    ("appliance.web.app", "from appliance.store.ledger.ledger import Ledger", "web imports store"),
    ("appliance.web.app", "from appliance.config.settings import Settings", "web imports config"),
    ("appliance.workflows.runs.train", "import appliance.wiring", "workflows imports wiring"),
    ("appliance.wiring", "from appliance.client.api import Client", "wiring imports client"),
    ("appliance.wiring", "import appliance.ml.serving.engine", "wiring imports ml"),
    ("appliance.client.api", "import appliance.wiring", "client imports wiring"),
    ("appliance.sandbox.local", "import appliance.worker.train", "sandbox imports worker"),
    ("appliance.wiring", "from appliance.worker import train", "wiring imports worker"),
    ("appliance.loader", "import appliance.store.files.artifacts", "loader imports store"),
    ("appliance.verifier", "import appliance.access.cedar", "expected inside load_cedar_policy, got None"),
    ("appliance.verifier", "def main():\n    import appliance.access.cedar", "got main"),
    ("appliance.verifier", "import cedarpy", "verifier imports cedarpy"),
    ("appliance.witness", "import appliance.domain.core.entry", "witness imports domain"),
    ("appliance.witness", "import pydantic", "witness imports pydantic"),
    ("appliance.cli.service", "import appliance.wiring", "inside one of "),
    ("appliance.cli.runs", "def start():\n    import appliance.wiring", "got start"),
    ("appliance.store.ledger.ledger", "from .tables import entries", "relative import"),
    ("appliance.store.ledger.ledger", "from . import tables", "relative import"),
    ("appliance.workflows.runs.train", "import torch.nn", "workflows imports torch"),
    ("appliance.sandbox.local", "def f():\n    import torch", "sandbox imports torch"),
    ("appliance.domain.recipe.recipe", "from transformers import AutoModel", "domain imports transformers"),
    ("appliance.loader", "import peft", "loader imports peft"),
    ("appliance.web.people.api", "import bitsandbytes", "web imports bitsandbytes"),
    ("appliance.workflows.queries.log", "import sqlalchemy", "workflows imports sqlalchemy"),
    ("appliance.domain.actions.apply", "import cedarpy", "domain imports cedarpy"),
    ("appliance.workflows.serving.serve", "from fastapi import Request", "workflows imports fastapi"),
    ("appliance.wiring", "import uvicorn", "wiring imports uvicorn"),
    ("appliance.client.api", "import click", "client imports click"),
    ("appliance.formats.core.canonical", "import pydantic", "formats imports pydantic"),
    ("appliance.worker.probes", "import torch", "before a library is loaded"),
    ("appliance.workflows.runs.train", "import importlib\nimportlib.import_module('torch')", "imports by string"),
    ("appliance.workflows.runs.train", "__import__('torch')", "imports by string"),
    ("appliance.helpers.text", "", "no such room"),
    ("appliance.web.app", "import appliance.helpers", "no such room"),
    ("migrations.env", "import appliance.workflows.queries.log", "migrations imports workflows"),
    ("appliance.store.migrations.env", "import appliance.domain.core.state", "migrations imports domain"),
]


@pytest.mark.parametrize(("module", "source", "words"), BROKEN)
def test_a_broken_rule_is_found(module: str, source: str, words: str) -> None:
    findings = check({module: source})
    assert any(words in finding for finding in findings), findings
    if source:
        assert all(finding.startswith(f"{module}:") for finding in findings), "the finding names the file and the line"


KEPT = [
    ("appliance.cli.service", "def serve():\n    from appliance.wiring import service"),
    ("appliance.cli.service", "def init():\n    import appliance.wiring"),
    (
        "appliance.store.migrations.env",
        "import alembic\nfrom appliance.config.settings import Settings\nimport appliance.store",
    ),
    ("appliance.ml.training.loop", "import torch\nfrom appliance.domain.recipe.recipe import Recipe"),
    ("appliance.cli.main", "import importlib\nimportlib.import_module('appliance.cli.runs')"),
    (
        "appliance.verifier",
        "import argparse, appliance.build, appliance.domain.actions.apply",
    ),
    ("appliance.verifier", "def load_cedar_policy():\n    from appliance.access.cedar import CedarPolicies"),
    ("appliance.worker.probes", "import ctypes, socket"),
    ("appliance.worker.run", "from importlib import import_module\nimport_module('appliance.worker.train')"),
]


@pytest.mark.parametrize(("module", "source"), KEPT)
def test_a_kept_rule_gives_no_finding(module: str, source: str) -> None:
    assert check({module: source}) == []


def test_a_cycle_is_named_whole() -> None:
    sources = {
        "appliance.domain.core.a": "import appliance.domain.core.b",
        "appliance.domain.core.b": "from appliance.domain.core import c",
        "appliance.domain.core.c": "def f():\n    from appliance.domain.core.a import x",
    }
    path = " -> ".join(f"appliance.domain.core.{name}" for name in "abca")
    assert check(sources) == [f"cycle: {path}"]


def test_what_the_verifier_reaches_through_others_counts() -> None:
    sources = {
        "appliance.verifier": "import appliance.domain.actions.apply",
        "appliance.domain.actions.apply": "import appliance.store.ledger.ledger",
        "appliance.store.ledger.ledger": "",
    }
    assert any("verifier reaches ['store']" in finding for finding in check(sources))


def test_what_the_witness_reaches_through_others_counts() -> None:
    sources = {
        "appliance.witness": "import appliance.formats.a",
        "appliance.formats.a": "import appliance.domain.core.b",
    }
    assert any("witness reaches ['domain']" in finding for finding in check(sources | {"appliance.domain.core.b": ""}))
