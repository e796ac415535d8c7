"""Attacks on serving with both engines: a gateway with each, on one ledger. Then a short soak test of both."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.evaluation.quality import VLLM
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.ports import free_port
from scripts.kit.postgres import Server, find_binaries, run_server
from scripts.kit.waiting import wait_for
from scripts.kit.warm import find_engine
from scripts.soaking.deployment import BUILTIN, SERVED_MODEL, Deployment, Gateway, build_site, settle
from scripts.soaking.questions import SHORT
from scripts.soaking.run import Plan, soak_deployed, use_database
from tests.attacks.test_soak import check_sound

ENGINES = (BUILTIN, VLLM)
WORKERS = {BUILTIN: "appliance.worker.serve", VLLM: "appliance.worker.serve_vllm"}
LIMITED = "unit-3"
SETTINGS = f"[limits.{LIMITED}]\nconcurrent = 1\n"
START_S = 120.0

pytestmark = [pytest.mark.outside, pytest.mark.timeout(600)]
both = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with run_server(find_binaries()) as server:
        yield server


@pytest.fixture(scope="module")
def deployed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three units with random adapters, which their answers identify."""
    if not (Path(__file__).resolve().parents[2] / ".venv-vllm").is_dir():
        pytest.skip("vLLM: scripts/setup --vllm installs it")
    place = tmp_path_factory.mktemp("e")
    site = build_site(place, free_port(), engines=ENGINES, context=2048, **use_database(server))
    made = settle(site, 3, 7, engines=ENGINES, questions=SHORT, settings=SETTINGS)
    yield made
    made.stop()


def gateway_of(deployed: Deployment, engine: str) -> Gateway:
    return next(one for one in deployed.gateways if one.engine == engine)


def next_version(deployed: Deployment, unit: str) -> None:
    """Activate the next version, since one that answered is not used again."""
    deployed.adapters[unit].pop(0)
    deployed.approve(unit, deployed.adapters[unit][0])
    deployed.activate(unit, deployed.adapters[unit][0])


def chat(gateway: Gateway, unit: str, **more: Any) -> Any:
    """Return the answer; repeat the request while the engine restarts."""
    until = time.monotonic() + START_S
    while True:
        try:
            return gateway.site.chat(unit, SERVED_MODEL, temperature=0, **more)
        except Refused as error:
            if error.status != 503 or time.monotonic() > until:
                raise
            time.sleep(0.2)


def worker_of(gateway: Gateway) -> int:
    assert gateway.site.service is not None
    return find_engine(gateway.site.service.pid, WORKERS[gateway.engine])


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def listen(site: Appliance, unit: str, heard: list[float]) -> Any:
    """Read a long answer, add the time of each event to `heard`, and return the last event."""
    last: Any = None
    body = {
        "model": SERVED_MODEL,
        "messages": [{"role": "user", "content": "go on"}],
        "max_tokens": 1000,
        "stream": True,
    }
    head = {"Authorization": f"Bearer {site.token(unit)}"}
    with (
        site.units() as api,
        api.stream("POST", "/v1/chat/completions", json={**body, "seed": 3}, headers=head) as told,
    ):
        for line in told.iter_lines():
            if line.startswith("data: "):
                last = line[6:] if line == "data: [DONE]" else json.loads(line[6:])
                heard.append(time.monotonic())
    return last


@contextmanager
def streaming(*gateways: Gateway, unit: str) -> Iterator[list[tuple[Future[Any], list[float]]]]:
    """Start a long answer at each gateway, and yield them while they run."""
    for gateway in gateways:
        chat(gateway, unit)
    with ThreadPoolExecutor(len(gateways)) as pool:
        lists: list[list[float]] = [[] for _ in gateways]
        found = [
            (pool.submit(listen, one.site, unit, heard), heard) for one, heard in zip(gateways, lists, strict=True)
        ]
        wait_for(lambda: all(len(heard) > 2 for heard in lists), "tokens of each gateway")
        yield found


def words_after(deployed: Deployment, index: int, name: str) -> set[str]:
    found = deployed.site.entries(type="adapter.unloaded", after=index)
    return {one["source"] for one in found if one["body"]["adapter"] == name}


@both
def test_each_gateway_answers_by_its_engine_and_its_entries_say_so(deployed: Deployment, engine: str) -> None:
    gateway, unit = gateway_of(deployed, engine), "unit-1"
    answer = chat(gateway, unit, text="the fee is due", max_tokens=12)
    name = deployed.adapters[unit][0]
    assert name in deployed.given_by(engine, 0, answer["choices"][0]["message"]["content"])
    request = answer["id"].rpartition("-")[2]
    (entry,) = [one for one in deployed.site.entries(type="request.finished") if one["body"]["request"] == request]
    assert (entry["body"]["adapter"], entry["body"]["engine"] or BUILTIN) == (name, engine)


@both
def test_what_is_not_released_to_a_unit_does_not_answer_it_by_any_name(deployed: Deployment, engine: str) -> None:
    gateway, own = gateway_of(deployed, engine), deployed.adapters["unit-1"][0]
    for model in (
        deployed.adapters["unit-2"][0],
        own,
        f"unit-2/{SERVED_MODEL}",
        f"unit-1/{SERVED_MODEL}/1",
        "tiny",
        "",
    ):
        with pytest.raises(Refused) as refused:
            gateway.site.chat("unit-1", model)
        assert refused.value.status == 404


@both
def test_a_unit_has_no_more_answers_at_once_than_it_may(deployed: Deployment, engine: str) -> None:
    gateway = gateway_of(deployed, engine)
    with streaming(gateway, unit=LIMITED), pytest.raises(Refused) as refused:
        gateway.site.chat(LIMITED, SERVED_MODEL)
    assert refused.value.status == 429


def test_a_revocation_cuts_the_streams_of_both_engines_and_the_log_has_the_word_of_each(deployed: Deployment) -> None:
    unit = "unit-1"
    name, last = deployed.adapters[unit][0], deployed.site.get("/v1/status")["log"]["size"] - 1
    with streaming(*deployed.gateways, unit=unit) as streams:
        deployed.revoke(name)
        stands = time.monotonic()
        ends = [end.result(120) for end, _ in streams]
    assert all(end["error"]["appliance_code"] == "cut-off" for end in ends), ends
    assert all(heard[-2] < stands + 1 for _, heard in streams), "the last event is the cut"
    sources = {f"service:{gateway.name}" for gateway in deployed.gateways}
    wait_for(lambda: words_after(deployed, last, name) == sources, "the word of each gateway")
    next_version(deployed, unit)


@both
def test_a_worker_that_hangs_delays_no_cut_and_says_that_it_unloaded_once_it_continues(
    deployed: Deployment, engine: str
) -> None:
    gateway, unit = gateway_of(deployed, engine), "unit-1"
    name, last = deployed.adapters[unit][0], deployed.site.get("/v1/status")["log"]["size"] - 1
    with streaming(gateway, unit=unit) as ((end, _),), hanging(worker_of(gateway)):
        deployed.revoke(name)
        assert end.result(120)["error"]["appliance_code"] == "cut-off"
        assert words_after(deployed, last, name) == set(), "it has not said so yet"
    wait_for(lambda: words_after(deployed, last, name) == {f"service:{gateway.name}"}, "its word")
    next_version(deployed, unit)


@both
def test_a_worker_that_dies_between_admission_and_the_first_token_costs_one_answer(
    deployed: Deployment, engine: str
) -> None:
    gateway, unit = gateway_of(deployed, engine), "unit-2"
    chat(gateway, unit)
    worker, last = worker_of(gateway), deployed.site.get("/v1/status")["log"]["size"] - 1
    with ThreadPoolExecutor(1) as pool, hanging(worker):
        asked = pool.submit(gateway.site.chat, unit, SERVED_MODEL)
        wait_for(lambda: deployed.site.entries(type="request.admitted", after=last), "its admission")
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(Refused) as refused:
            asked.result(120)
    assert refused.value.status == 503
    ((ended),) = wait_for(partial(deployed.site.entries, type="request.finished", after=last), "its end")
    assert (ended["outcome"], ended["body"]["completion_tokens"]) == ("failure", 0)
    assert chat(gateway, unit)["system_fingerprint"] == deployed.manifests[deployed.adapters[unit][0]]
    assert deployed.site.entries(type="adapter.loaded", after=last), "admitted and loaded anew"


@both
def test_a_shared_folder_that_returns_other_bytes_answers_nobody(deployed: Deployment, engine: str) -> None:
    gateway, unit = gateway_of(deployed, engine), "unit-2"
    name = deployed.adapters[unit][1]
    folder = deployed.site.home / "artifacts" / deployed.manifests[name].removeprefix("sha256:")
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    for path in (folder, weights):
        path.chmod(0o700)
    weights.write_bytes(data)
    deployed.approve(unit, name)
    deployed.activate(unit, name)
    with pytest.raises(Refused) as refused:
        chat(gateway, unit)
    assert refused.value.code == "not-admitted"
    assert deployed.site.entries(type="adapter.quarantined")[-1]["body"]["adapter"] == name
    deployed.adapters[unit].pop(0)
    next_version(deployed, unit)
    assert chat(gateway, unit)["choices"]


def test_a_short_soak_over_both_engines_has_no_wrong_answer(
    deployed: Deployment, server: Server, tmp_path: Path
) -> None:
    plan = Plan(150, seed=6, seconds=400, units=2, clients=3, cards=17, engines=ENGINES)
    deployed.units = tuple(unit for unit in deployed.units if unit != LIMITED)
    result = soak_deployed(deployed, tmp_path, plan, server)
    check_sound(result, "injected: database stopped", "injected: worker killed", "injected: worker stopped")
    for gateway in deployed.gateways:
        assert result.record.figures[f"words of what was revoked, service:{gateway.name}"] > 0
