"""Cedar text that would end the process that parses it, or hold it up, never reaches Cedar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.access import cedar
from appliance.access.bounds import MAX_BRACKETS, MAX_DEPTH, MAX_TERM, check_bounds
from appliance.access.cedar import SitePolicies
from appliance.access.trial import try_policies
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.errors import BadInput, TooLarge

POLICIES = Path(__file__).resolve().parents[2] / "policies"
SCHEMA = (POLICIES / "default" / "schema.cedarschema").read_text()


def policy(text: str, schema: str = SCHEMA) -> PolicySet:
    return PolicySet(name="site", parameters=Parameters(), cedar=text, cedar_schema=schema)


def when(condition: str) -> PolicySet:
    return policy(f'@id("a") permit (principal, action, resource) when {{ {condition} }};')


def nested(start: str, inner: str, end: str, times: int) -> str:
    return start * times + inner + end * times


MANY = 20_000
DEEP = {
    "parentheses": nested("(", "true", ")", 1_500),
    "sets": nested("[", "1", "]", MANY) + " == 1",
    "records": nested('{"a": ', "1", "}", MANY) + " == 1",
    "calls": nested("[1].contains(", "1", ")", MANY),
    "functions": nested("ip(", '"::1"', ")", MANY) + " == 1",
    "negations": nested("!(", "true", ")", MANY),
    "chain of not": "!" * MANY + "true",
    "chain of minus": "-" * MANY + "1 == 1",
    "chain of and": "true" + " && true" * MANY,
    "chain of or": "true" + " || true" * MANY,
    "chain of plus": "1" + " + 1" * MANY + " == 1",
    "chain of times": "1" + " * 1" * MANY + " == 1",
    "chain of attributes": "context" + ".a" * MANY + " == 1",
    "chain of indices": "context" + '["a"]' * MANY + " == 1",
    "chain of has": "context has a" + ".a" * MANY,
    "chain of calls": "[1]" + ".contains(1)" * MANY,
    "else if": "if true then true else " * MANY + "true",
    "then if": nested("if true then ", "true", " else true", MANY),
    "if if": nested("if ", "true", " then true else true", MANY),
    "behind a comment that ends at a carriage return": "true //\r && " + nested("(", "true", ")", MANY),
    "behind a string with a quote": r'"\"//" == "" || ' + nested("(", "true", ")", MANY),
    "chains in brackets": nested("(" + "true && " * 20, "true", ")", MAX_BRACKETS),
    "chains behind brackets": nested("(", "true", " && true" * 20 + ")", MAX_BRACKETS),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_condition_that_is_too_deep_for_cedar_is_refused(name: str) -> None:
    with pytest.raises(TooLarge, match=r"policy set site, policies, line [1-4]: expected at most"):
        SitePolicies(when(DEEP[name]))
    with pytest.raises(TooLarge):
        SitePolicies.for_adoption(when(DEEP[name]))


def test_a_scope_that_is_too_deep_is_refused() -> None:
    scope = nested("[", 'Action::"train"', "]", MANY)
    with pytest.raises(TooLarge):
        SitePolicies(policy(f'@id("a") permit (principal, action in {scope}, resource);'))


DOUBLING = "type T0 = { a: Long };" + "".join(f"type T{n + 1} = {{ a: T{n}, b: T{n} }};" for n in range(30))
SCHEMAS = {
    "records": f"entity P = {{ a: {nested('{ a: ', 'Long', '}', 2_000)} }};",
    "sets": f"entity P = {{ a: {nested('Set<', 'Long', '>', 2_000)} }};",
    "types that double": DOUBLING + "entity P = { a: T30 };",
    "a chain of entities": "entity P0;" + "".join(f"entity P{n + 1} in [P{n}];" for n in range(2_000)),
    "a chain of actions": "action a0;" + "".join(f"action a{n + 1} in [a{n}];" for n in range(2_000)),
    "names": "entity " + ", ".join(f"P{n}" for n in range(2_000)) + ";",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_would_hold_cedar_up_is_refused(name: str) -> None:
    text = '@id("a") permit (principal, action, resource);'
    with pytest.raises(TooLarge, match="policy set site, schema, line 1: expected at most"):
        SitePolicies(policy(text, SCHEMAS[name]))


def test_a_string_is_at_most_4096_characters() -> None:
    with pytest.raises(TooLarge, match="characters in a string"):
        SitePolicies(when(f'"{"a" * 5_000}" like "*{"a" * 2_500}b"'))


LARGEST = {
    "brackets": nested("(", "true", ")", MAX_BRACKETS - 1),
    "chain": "true" + " || true" * (MAX_DEPTH - 3),
    "brackets and chains": nested("(" + "true || " * 4, "true", ")", MAX_BRACKETS - 1),
    "term": "1" + " + 1" * (MAX_TERM - 1) + " == 1",
    "else if": "if 1 == 2 then true else " * (MAX_DEPTH - 4) + "true",
    "then if": nested("if 1 == 1 then ", "true", " else true", MAX_DEPTH - 4),
    "long set": "[" + ", ".join(f'"{n}"' for n in range(5_000)) + '].contains("1")',
    "brackets in a comment": f"true // {'(' * 99}\n",
    "brackets in a string": f'"{"(" * 99}" == ""',
}
_IN_A_SMALL_STACK = """
import sys, threading
from tests.access.test_bounds import LARGEST, SitePolicies, when
threading.stack_size(2 << 20)
failures = []
threading.excepthook = lambda args: failures.append(args.exc_value)
for name, condition in LARGEST.items():
    thread = threading.Thread(target=SitePolicies, args=(when(condition),))
    thread.start(); thread.join()
sys.exit(str(failures) if failures else 0)
"""


def test_what_the_bounds_take_cedar_takes_in_a_thread_of_2_mib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_SMALL_STACK], cwd=POLICIES.parent, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["default", "strict-example"])
def test_the_sets_that_come_with_the_appliance_are_far_from_the_bounds(name: str) -> None:
    text, schema = ((POLICIES / name / file).read_text() for file in ("policies.cedar", "schema.cedarschema"))
    examples = text.replace("// ", "").replace("//", "")  # with what is a comment there
    for policies in (text, *(["@id" + part for part in examples.split("@id")[1:]])):
        check_bounds(policy(policies, schema))
    check_bounds(policy(text, schema + schema.replace("type Standing", "type Another")))


def test_what_ends_the_process_that_tries_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were there an input that the bounds do not know."""
    monkeypatch.setattr(cedar, "check_bounds", lambda _: None)
    with pytest.raises(BadInput, match="process of its own can parse and decide, got one that ended it by signal 11"):
        SitePolicies.for_adoption(when(DEEP["parentheses"]))


def test_what_holds_up_the_process_that_tries_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.access.trial.LIMIT_S", 1)
    with pytest.raises(BadInput, match=r"got one that (ended it by signal|did not end)"):
        try_policies(policy('@id("a") permit (principal, action, resource);', SCHEMAS["types that double"]), [])


def test_a_process_that_tries_a_set_runs_no_code_from_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cedarpy.py").write_text("raise SystemExit(9)")
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    try_policies(when("true"), [])
