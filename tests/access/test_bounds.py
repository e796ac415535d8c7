"""Tests of the limits on Cedar text: text that would crash or block its parser is refused before parsing."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.access import process
from appliance.access.bounds import MAX_BRACKETS, MAX_DEPTH, check_bounds
from appliance.access.cedar import CedarPolicies
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.core.records.people import Principal
from appliance.domain.retention import PlaceHold
from appliance.errors import BadInput, TooLarge, Unavailable
from scripts.kit.log_builder import LogBuilder
from tests.kit.cedar_policies import read_without_bounds

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
    "behind a string with a quote": r'"\"//" == "" || ' + nested("(", "true", ")", MANY),
    "chains in brackets": nested("(" + "true && " * 20, "true", ")", MAX_BRACKETS),
    "chains behind brackets": nested("(", "true", " && true" * 20 + ")", MAX_BRACKETS),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_condition_that_is_too_deep_for_cedar_is_refused(name: str) -> None:
    with pytest.raises(TooLarge, match=r"policy set site, policies, line [1-4]: expected at most"):
        CedarPolicies(when(DEEP[name]))


def test_a_separate_process_has_the_same_bounds() -> None:
    with pytest.raises(TooLarge, match=r"policy set site, policies, line 1: expected at most"):
        CedarPolicies.for_adoption(when(DEEP["parentheses"]))


def test_a_scope_that_is_too_deep_is_refused() -> None:
    scope = nested("[", 'Action::"train"', "]", MANY)
    with pytest.raises(TooLarge):
        CedarPolicies(policy(f'@id("a") permit (principal, action in {scope}, resource);'))


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
        CedarPolicies(policy(text, SCHEMAS[name]))


@pytest.mark.parametrize("character", ["\r", "\x0b", "\x85", "\xa0", "\u2028", "\u202e", "\u200b", "\U000e0041"])
@pytest.mark.parametrize("part", ["policies", "schema"])
def test_what_a_person_cannot_see_is_no_character_of_a_text(part: str, character: str) -> None:
    """A comment goes on behind U+2028 for Cedar, and a page shows another line."""
    line = f"// read by counsel{character}// on 3 March\n"
    text = '@id("a")\npermit (principal, action, resource);\n'
    given = (f"{text}{line}", SCHEMA) if part == "policies" else (text, f"{SCHEMA}{line}")
    with pytest.raises(BadInput, match=rf"{part}, line [0-9]+: expected visible .*, got U\+{ord(character):04X}"):
        check_bounds("site", *given)


def test_a_string_ends_in_its_line() -> None:
    with pytest.raises(BadInput, match="line 2: expected strings that end in their line"):
        check_bounds("site", '@id("a")\n@note("\n//") permit (principal, action, resource);', SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        '@note("") @id("b") forbid (principal, action, resource);\n@id("a")\npermit (principal, action, resource);',
        '@id ("a") permit (principal, action, resource);',
        '@id("a")\npermit (principal, action, resource); @id("b") forbid (principal, action, resource);',
    ],
)
def test_each_policy_begins_with_its_id_so_that_a_comparison_names_it(text: str) -> None:
    with pytest.raises(BadInput, match="expected each policy to begin with its @id"):
        CedarPolicies(policy(text))


def test_a_string_is_at_most_4096_characters() -> None:
    with pytest.raises(TooLarge, match="characters in a string"):
        CedarPolicies(when(f'"{"a" * 5_000}" like "*{"a" * 2_500}b"'))


LARGEST = {
    "brackets": nested("(", "true", ")", MAX_BRACKETS - 2),
    "or": "true" + " || true" * (MAX_DEPTH - 8),
    "and": "principal has name" + " && principal has name" * (MAX_DEPTH - 8),
    "brackets and chains": nested("(true || ", "true", ")", MAX_DEPTH // 2 - 4),
    "plus": "1" + " + 1" * (MAX_DEPTH - 8) + " == 1",
    "else if": "if 1 == 2 then true else " * (MAX_DEPTH - 8) + "true",
    "then if": nested("if 1 == 1 then ", "true", " else true", MAX_DEPTH - 8),
    "long set": "[" + ", ".join(f'"{n}"' for n in range(1_000)) + '].contains("1")',
    "brackets in a comment": f"true // {'(' * 99}\n",
    "brackets in a string": f'"{"(" * 99}" == ""',
}
NOW = "2026-11-29T00:00:00.000Z"
PEOPLE = [
    Principal(name=name, printed_name=None, roles=("administrator",), keyid="sha256:" + "0" * 64, enrolled=0)
    for name in ("anna", "ben")
]


@pytest.mark.parametrize("name", LARGEST)
def test_what_the_bounds_take_is_decided_also_at_its_worst(name: str) -> None:
    """The check for lock-outs writes Cedar's JSON, whose reader ends at a depth of its own."""
    never = policy(
        f'@id("a") permit (principal, action, resource) when {{ {LARGEST[name]} }};\n'
        f'@id("b") permit (principal, action, resource) unless {{ ({LARGEST[name]}) && false }};\n'
        f'@id("c") forbid (principal, action, resource) when {{ ({LARGEST[name]}) && false }};'
    )
    with CedarPolicies.for_adoption(never) as site:
        assert site.list_lockout_reasons(PEOPLE, single=False, now=NOW) == ()


_IN_A_SMALL_STACK = """
import sys, threading
from tests.access.test_bounds import LARGEST, CedarPolicies, when
threading.stack_size(2 << 20)
failures = []
threading.excepthook = lambda args: failures.append(args.exc_value)
for name, condition in LARGEST.items():
    thread = threading.Thread(target=CedarPolicies, args=(when(condition),))
    thread.start(); thread.join()
sys.exit(str(failures) if failures else 0)
"""


@pytest.mark.thorough
def test_what_the_bounds_take_cedar_takes_in_a_thread_of_2_mib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_SMALL_STACK], cwd=POLICIES.parent, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["default", "strict-example"])
def test_the_sets_that_come_with_the_appliance_are_far_from_the_bounds(name: str) -> None:
    text = (POLICIES / name / "policies.cedar").read_text()
    examples = text.replace("// ", "").replace("//", "")  # with what is a comment there
    for policies in (text, *(["@id" + part for part in examples.split("@id")[1:]])):
        check_bounds("site", policies, SCHEMA)
    check_bounds("site", text, SCHEMA + SCHEMA)


def test_what_ends_the_process_that_reads_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    read_without_bounds(monkeypatch)
    with pytest.raises(BadInput, match="separate process can read within its limits, got one that ended it by signal"):
        CedarPolicies.for_adoption(when(DEEP["parentheses"]))


def many_has(policies: int, conditions: int) -> PolicySet:
    """Text whose validation takes the square of the conditions in a chain."""
    chain = " && ".join(f'Principal::"p{n}" has name' for n in range(conditions))
    rows = (f'@id("a{n}") permit (principal, action, resource) when {{ {chain} }};' for n in range(policies))
    return policy("\n".join(rows))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "unbounded",
    [policy('@id("a") permit (principal, action, resource);', SCHEMAS["types that double"]), many_has(20, 190)],
)
def test_what_holds_up_the_process_that_reads_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, unbounded: PolicySet
) -> None:
    read_without_bounds(monkeypatch)
    monkeypatch.setattr(process, "LIMITS", process.LIMITS._replace(load_s=1.0))
    with pytest.raises(BadInput, match=r"got (one that ended it by signal|no answer)"):
        CedarPolicies.confine(unbounded)


def test_long_chains_of_has_are_refused_before_cedar_validates_them() -> None:
    with pytest.raises(TooLarge, match="operators in a row"):
        CedarPolicies.confine(many_has(30, 190))


@pytest.mark.thorough
def test_text_within_the_bounds_uses_no_cpu_time_of_this_process() -> None:
    """Cedar holds the interpreter while it validates: text that takes it a second is read elsewhere."""
    slow = many_has(40, MAX_DEPTH - 3)
    began = time.process_time()
    with CedarPolicies.confine(slow) as site:
        used = time.process_time() - began
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        site.close()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - children
    assert used < 0.2 < spent


def test_a_process_that_has_ended_is_a_reason_against_every_order() -> None:
    site = CedarPolicies.confine(when("true"))
    site.close()
    founded = LogBuilder()
    order = founded.order(PlaceHold, "anna", subject="principal:ben")
    (reason,) = site.decide(PEOPLE[0], order, founded.state, NOW)
    assert reason.code == "policy-error" and "ended it by signal 9" in str(reason)


def test_without_a_process_nothing_is_said_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere")
    with pytest.raises(Unavailable, match="got no process"):
        CedarPolicies.confine(when("true"))
    monkeypatch.undo()
    monkeypatch.setattr(process, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(Unavailable, match="exit code 3, before it read the text"):
        CedarPolicies.confine(when("true"))
    monkeypatch.setattr(process, "_PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(process, "MAX_WAIT_S", 0.1)
    with pytest.raises(Unavailable, match=r"no answer in 0\.1 s, before it read the text"):
        CedarPolicies.confine(when("true"))


def test_a_process_that_reads_a_set_runs_no_code_from_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cedarpy.py").write_text("raise SystemExit(9)")
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    CedarPolicies.confine(when("true")).close()


def test_a_process_that_reads_a_set_imports_no_library_but_cedar() -> None:
    """It starts for each set that is checked; pydantic and the records of the domain took four fifths of its time."""
    code = "import sys; from appliance.access.program import main; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"cedarpy", "appliance.access.engine"} <= set(names)
    assert not {"pydantic", "cryptography", "appliance.domain.core"} & set(names)
