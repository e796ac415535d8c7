"""A desk, gateways and runners on one PostgreSQL: entries take effect everywhere, and lost processes are replaced."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from appliance.domain.core.credentials import parse_token
from appliance.domain.core.names import add_seconds
from appliance.domain.core.order import Order
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.releases.suspensions import ResumeRelease, SuspendRelease
from appliance.domain.serving.tokens import RevokeTokens
from appliance.formats.core.commitment import Disclosure, disclose
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.hosts import Hosts, copy_of, ended, on_hosts
from scripts.kit.postgres import Server, postgres
from scripts.kit.waiting import wait_for
from tests.attacks import ahead
from tests.attacks.conftest import golden
from tests.attacks.streaming import under_way

__all__ = ["golden", "postgres"]
GATEWAYS = ("gateway-1", "gateway-2")
LONG = {"epochs": 60, "batch_size": 8, "save_steps": 20, "dropout": "0.1"}


@pytest.fixture(scope="module")
def hosts(golden: Appliance, postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Their homes share the desk's folder, as hosts share a file system."""
    with on_hosts(copy_of(golden, tmp_path_factory.mktemp("h")), postgres) as hosts:
        for name in GATEWAYS:
            hosts.start(hosts.add(name, "units"))
        hosts.start(hosts.add("runner-1", "people, runs"))
        hosts.desk.approve()
        hosts.desk.activate()
        yield hosts


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """Run all at once. Return each one's result, or the refusal that it raised."""

    def act(one: Callable[[], Any]) -> Any:
        try:
            return one()
        except Refused as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(act, acts))


@contextmanager
def paused(*sites: Appliance) -> Iterator[None]:
    """As a machine is that sleeps, or that its hypervisor moves."""
    services = [site.service for site in sites if site.service is not None]
    for service in services:
        service.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for service in services:
            service.send_signal(signal.SIGCONT)


def sources(hosts: Hosts, kind: str) -> set[str]:
    return {entry["source"] for entry in hosts.desk.entries(type=kind)}


@pytest.mark.thorough
def test_both_gateways_answer_and_each_has_its_own_word_in_the_log(hosts: Hosts) -> None:
    for name in GATEWAYS:
        assert hosts.others[name].chat("legal", "labels")["choices"]
    assert sources(hosts, "adapter.loaded") == {f"service:{name}" for name in GATEWAYS}
    admitted = hosts.desk.entries(type="adapter.admitted")
    assert {entry["body"]["process"] for entry in admitted} == set(GATEWAYS)
    found = hosts.desk.get("/v1/status")["processes"]
    assert [(one["name"], one["roles"], one["this"]) for one in found] == [
        ("desk", ["people"], True),
        ("gateway-1", ["units"], False),
        ("gateway-2", ["units"], False),
        ("runner-1", ["people", "runs"], False),
    ]
    assert all(one["contact_s"] <= 5 for one in found)


def test_each_process_keeps_its_last_head_where_the_others_compare_theirs_with_it(hosts: Hosts) -> None:
    folder, names = hosts.desk.home / "witnessed", ("desk", *GATEWAYS, "runner-1")
    wait_for(lambda: all((folder / f"process-{name}.note").exists() for name in names), "each has stored its head")
    assert hosts.desk.get("/v1/status")["service"]["ready"]
    assert hosts.others["gateway-1"].chat("legal", "labels")["choices"]


def test_a_session_opened_at_one_is_valid_at_another_and_ended_there(hosts: Hosts) -> None:
    other = hosts.others["runner-1"]
    other.sessions["axel"] = hosts.desk.session("axel")
    assert other.get("/v1/status", "axel")["log"]["size"] > 0
    other.ask("DELETE", "/v1/sessions/own", "axel")
    with pytest.raises(Refused):
        hosts.desk.get("/v1/status", "axel")
    hosts.desk.sessions.pop("axel")
    other.sessions.clear()


@pytest.mark.thorough
def test_one_order_sent_to_two_processes_at_once_counts_once(hosts: Hosts) -> None:
    other = hosts.others["runner-1"]
    for number in range(4):
        envelope, printed, proof = hosts.desk.propose_enrolment(f"twice-{number}", "operator")
        orders = [partial(site.send, envelope, printed, possession=proof) for site in (hosts.desk, other)]
        assert sorted(type(one).__name__ for one in at_once(*orders)) == ["Refused", "dict"]
        seconds = [hosts.desk.sign(Countersign(order=envelope.pae_digest, **hosts.desk.terms("ben"))) for _ in range(2)]
        ends = [partial(site.send, second) for site, second in zip((hosts.desk, other), seconds, strict=True)]
        assert sorted(type(one).__name__ for one in at_once(*ends)) == ["Refused", "dict"]
    enrolled = hosts.desk.entries(type="principal.enrolled")
    names = [subject for entry in enrolled for subject in entry["subjects"] if subject.startswith("principal:twice")]
    assert sorted(set(names)) == sorted(names) == [f"principal:twice-{number}" for number in range(4)]


@pytest.mark.thorough
def test_a_revocation_cuts_the_answers_of_both_gateways(hosts: Hosts) -> None:
    token = hosts.desk.token("legal")
    sites = [hosts.others[name] for name in GATEWAYS]
    with under_way(sites[0], [(token, 1)]) as first, under_way(sites[1], [(token, 2)]) as second:
        revoked = RevokeTokens(
            unit="legal",
            token=parse_token(token).pae_digest,
            issued_before=None,
            application=None,
            **hosts.desk.terms("legal"),
        )
        hosts.desk.order(revoked)
        ends = [stream.result(60) for stream in (*first, *second)]
    assert all(end != "[DONE]" and "error" in end for end in ends), ends
    for site in sites:
        with pytest.raises(Refused):
            site.chat("legal", "labels", token=token)


def test_a_host_whose_clock_is_off_is_refused_and_leaves_the_logs_time_alone(hosts: Hosts) -> None:
    late = hosts.add("gateway-3", "units")
    late.launcher = (ahead.__file__,)
    late.start(wait=False)
    wait_for(lambda: ended(late), "it ends")
    assert "expected a time within 60 s (clock_skew_s) of the database server's, got one 480 s after it" in late.log()
    last = hosts.desk.get("/v1/status")["log"]["last_entry"]
    assert last < add_seconds(hosts.desk.now(), 30)
    late.service = None


@pytest.mark.thorough
def test_a_second_of_the_same_name_is_refused_and_one_that_was_killed_comes_back_at_once(hosts: Hosts) -> None:
    killed = hosts.others["gateway-1"]
    again = Appliance(killed.home.parent / "twin", killed.keys, killed.launcher, dict(killed.environment))
    again.home.mkdir()
    (again.home / "trust.json").write_bytes((killed.home / "trust.json").read_bytes())
    again.environment["APPLIANCE_LISTEN"] = "off"
    again.start(wait=False)
    wait_for(lambda: ended(again), "the twin ends")
    assert "expected no other process named gateway-1" in again.log()
    with under_way(killed, [(hosts.desk.token("legal"), 3)]) as streams:
        killed.kill()
        for stream in streams:
            stream.exception(60)
    hosts.start(killed)
    assert killed.chat("legal", "labels")["choices"]
    wait_for(lambda: hosts.desk.get("/v1/status")["engine"]["requests"] == 0, "no request stays open")
    assert hosts.desk.entries(type="request.finished", outcome="interrupted")


@pytest.mark.thorough
def test_who_is_paused_is_replaced_once_and_can_do_nothing_when_it_wakes(hosts: Hosts) -> None:
    gateway, runner = hosts.others["gateway-2"], hosts.others["runner-1"]
    second = hosts.start(hosts.add("runner-2", "runs"))
    assert gateway.chat("legal", "labels")["choices"]
    run = hosts.desk.order(hosts.desk.train_order("long", **LONG))["result"]["run"]
    wait_for(lambda: hosts.desk.get(f"/v1/runs/{run}")["step"] > 0, lambda: f"a checkpoint: {runner.log()[-800:]}")
    last = hosts.desk.get("/v1/status")["log"]["size"] - 1
    with paused(gateway, runner):
        wait_for(lambda: len(hosts.desk.entries(type="process.lost", after=last)) == 2, "both are lost")
        lost = hosts.desk.entries(type="process.lost", after=last)
        assert sorted(entry["body"]["process"] for entry in lost) == ["gateway-2", "runner-1"]
        found = hosts.desk.wait_run(run)
        assert found.get("adapter") == "long@1", (found, second.log()[-2000:])
        (resumed,) = hosts.desk.entries(type="run.resumed", subject=f"run:{run}")
        assert resumed["source"] == "service:runner-2"
    for site in (gateway, runner):
        wait_for(partial(ended, site), f"{site.home.name} ends")
        assert "other processes took over from this one" in site.log()
        index = next(entry["index"] for entry in lost if entry["body"]["process"] == site.home.name)
        late = [entry for entry in hosts.desk.entries(after=index) if entry["source"] == f"service:{site.home.name}"]
        assert late == [], "nothing of a process that others took over from"
        site.service = None
        hosts.start(site)
    assert gateway.chat("legal", "labels")["choices"]
    assert len(hosts.desk.entries(type="process.lost", after=last)) == 2, "once"


@pytest.mark.thorough
def test_a_gateway_whose_row_somebody_changed_sends_nothing_after_the_log_says_that_it_is_lost(hosts: Hosts) -> None:
    gateway = hosts.others["gateway-2"]
    last = hosts.desk.get("/v1/status")["log"]["size"] - 1
    with under_way(gateway, [(hosts.desk.token("legal"), 6)]) as (stream,):
        hosts.server.execute("UPDATE processes SET about = NULL WHERE name = 'gateway-2'", hosts.database)
        end = stream.exception(60) or stream.result()
    assert end != "[DONE]", end
    wait_for(partial(ended, gateway), f"the gateway ends: {gateway.log()[-500:]}")
    (lost,) = hosts.desk.entries(type="process.lost", after=last)
    late = [one for one in hosts.desk.entries(after=lost["index"]) if one["source"] == "service:gateway-2"]
    assert late == []
    gateway.service = None
    hosts.start(gateway)
    assert gateway.chat("legal", "labels")["choices"]


@pytest.mark.thorough
def test_a_gateway_that_cannot_reach_the_ledger_answers_nothing_until_it_can(hosts: Hosts) -> None:
    gateway, token = hosts.others["gateway-1"], hosts.desk.token("legal", ttl_s=900)
    lost = len(hosts.desk.entries(type="process.lost"))
    with under_way(gateway, [(token, 4)]) as (stream,):
        hosts.server.stop(signal.SIGQUIT)
        began = time.monotonic()
        try:
            end = stream.result(60)
            assert end != "[DONE]"
            wait_for(lambda: time.monotonic() - began > 6, "past the five seconds")
            with pytest.raises(Refused) as info:
                gateway.chat("legal", "labels", token=token)
            assert (info.value.status, info.value.code) == (503, "no-contact")
            wait_for(lambda: time.monotonic() - began > 11, "longer than a process may be silent")
        finally:
            hosts.server.start()
    wait_for(lambda: answers(gateway, token), "it answers again")
    assert len(hosts.desk.entries(type="process.lost")) == lost, "nobody is lost for a database that was gone"


def answers(site: Appliance, token: str) -> bool:
    try:
        return bool(site.chat("legal", "labels", token=token)["choices"])
    except Refused:
        return False


def takes(desk: Appliance, order: Order, *texts: Disclosure) -> bool:
    try:
        return bool(desk.order(order, *texts))
    except Refused as error:
        if error.code == "no-contact":
            return False
        raise


@pytest.mark.thorough
def test_a_suspension_stops_every_gateway_and_after_its_lift_each_answers_again(hosts: Hosts) -> None:
    desk, reason = hosts.desk, disclose("A response names a client.", bytes(32))
    for name in GATEWAYS:
        wait_for(partial(answers, hosts.others[name], desk.token("legal")), f"{name} answers")
    on = {**desk.on("clauses@1"), "unit": "legal", "reason": reason.commitment}
    order = SuspendRelease(served_model=None, role="reviewer:privacy", **on, **desk.terms("rita"))
    with under_way(hosts.others[GATEWAYS[0]], [(desk.token("legal"), 5)]) as (stream,):
        wait_for(partial(takes, desk, order, reason), "the desk takes orders")
        last = stream.result(60)
    assert last["error"]["code"] == "cut-off"
    index = desk.entries(type="release.suspended")[-1]["index"]
    wait_for(partial(unloaded_by_all, hosts, index), "the word of each gateway")
    assert {entry["body"]["reason"] for entry in desk.entries(type="adapter.unloaded", after=index)} == {
        "release-suspended"
    }
    for name in GATEWAYS:
        with pytest.raises(Refused) as refused:
            hosts.others[name].chat("legal", "labels")
        assert refused.value.code == "release-suspended"
    lift = ResumeRelease(entry=index, **on, **desk.terms("rita"))
    wait_for(partial(takes, desk, lift, reason), "the desk takes orders")
    for name in GATEWAYS:
        wait_for(partial(answers, hosts.others[name], desk.token("legal")), f"{name} answers again")


def unloaded_by_all(hosts: Hosts, index: int) -> bool:
    found = hosts.desk.entries(type="adapter.unloaded", after=index)
    return {entry["source"] for entry in found} == {f"service:{name}" for name in GATEWAYS}


@pytest.mark.thorough
def test_a_revoked_adapter_is_unloaded_by_each_gateway_and_the_log_verifies(hosts: Hosts) -> None:
    for name in GATEWAYS:
        wait_for(partial(answers, hosts.others[name], hosts.desk.token("legal")), f"{name} answers")
    revoked = RevokeAdapter(**hosts.desk.on("clauses@1"), **hosts.desk.terms("rita"))
    wait_for(partial(takes, hosts.desk, revoked), "the desk is in contact with the database and takes orders")
    index = hosts.desk.entries(type="adapter.revoked")[-1]["index"]
    wait_for(partial(unloaded_by_all, hosts, index), "the word of each gateway")
    for name in GATEWAYS:
        with pytest.raises(Refused):
            hosts.others[name].chat("legal", "labels")
    found = hosts.desk.verify()["local_findings"]
    assert [one for one in found if "fsync" not in one] == [], "the tests' server may lose what it has"
    assert len(found) == 1
