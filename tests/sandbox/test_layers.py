"""A layer that is missing stops the start, by name, before any code of the worker runs; unless policy excuses it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput, Unavailable
from appliance.sandbox import description, launcher, local, processes
from appliance.sandbox.description import PACKAGE, Sandbox, detect_layers, places_of
from appliance.sandbox.launcher import Launch
from appliance.sandbox.local import start_worker
from appliance.sandbox.processes import LAYERS

RunService = Callable[..., Any]

# Layers that fall with another, because the kernel builds the second only on the first.
FALLS_TOO = {"no-new-privs": {"landlock", "seccomp"}}


def test_every_layer_stands_on_this_machine() -> None:
    assert detect_layers() == dict.fromkeys(LAYERS, True)


def test_every_layer_stands_for_a_service_that_is_no_root(run_service: RunService) -> None:
    assert run_service(detect=True, ordinary=True) == dict.fromkeys(LAYERS, True)


@pytest.mark.parametrize("missing", sorted(LAYERS))
def test_a_missing_layer_is_named_and_nothing_starts(service: Any, folder: Path, missing: str) -> None:
    order = service.Order(str(folder), module="inmates.crowd", without=[missing])
    with pytest.raises(Unavailable, match=missing) as caught:
        service.begin(order)
    assert caught.value.code == "sandbox-unavailable"
    time.sleep(0.1)
    assert os.listdir(folder / "output") == [".tmp"]  # the crowd writes as soon as it runs


def test_the_launcher_itself_refuses_to_execute(service: Any, folder: Path) -> None:
    """Whatever the service would do with its report: here it does nothing, and holds the parent-death pipe."""
    launch = Launch(
        command=(sys.executable, "-I", "-S", "-c", "open('ran', 'w')"),
        environment={},
        folder=str(folder / "output"),
        places=places_of(Sandbox(read=(), write=(folder / "output",)), service.INMATES),
        limits={},
        devices=False,
        layers=LAYERS - {"seccomp"},
        accepted_missing=frozenset(),
    )
    for accepted, ran in ((frozenset[str](), False), (frozenset({"seccomp"}), True)):
        launch = dataclasses.replace(launch, accepted_missing=accepted)
        started = launcher.start(launch, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, log=subprocess.DEVNULL)
        assert started.process.wait(60) == (0 if ran else 1)
        os.close(started.control)
        assert (started.report.failure is None, (folder / "output" / "ran").exists()) == (ran, ran)


@pytest.mark.parametrize(("abi", "root", "stands"), [(2, False, False), (2, True, True), (3, False, True)])
def test_an_old_landlock_stands_only_beside_a_root_of_its_own(
    monkeypatch: pytest.MonkeyPatch, abi: int, root: bool, stands: bool
) -> None:
    """Before ABI 3 it lets a file be emptied that it would not let be written."""
    monkeypatch.setattr(processes.kernel, "restrict", lambda rules: abi)
    build = processes.SandboxBuild(
        {"layers": ["landlock"], "places": [], "devices": False}, {"mount-ns"} if root else set(), {}
    )
    processes._restrict(build)
    assert ("landlock" in build.active) is stands


def test_packages_beside_the_prefixes_are_shown_and_a_person_s_own_are_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's dist-packages, or those of the environment whose torch this one uses."""
    shared, own = folder / "lib" / "dist-packages", folder / "home" / "site-packages"
    for path in (shared, own):
        path.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(shared), str(own)])
    monkeypatch.setattr(description.site, "getusersitepackages", lambda: str(own))
    shown = {place.path: place.kind for place in places_of(Sandbox(read=(), write=(folder / "output",)), PACKAGE)}
    assert shown.get(str(shared)) == "run"
    assert str(own) not in shown


def test_a_card_s_worker_finds_the_driver_where_containers_mount_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a path of our own: nothing of the service's environment passes."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/usr/local/nvidia/lib64")
    for devices, expected in ((True, "/usr/local/nvidia/lib64"), (False, None)):
        made = local._environment(Sandbox(read=(), write=(Path("/output"),), devices=devices))
        assert made.get("LD_LIBRARY_PATH") == expected


@pytest.mark.parametrize("missing", sorted(LAYERS - {"no-new-privs", "user-ns"}))
def test_an_accepted_layer_is_reported_as_missing(service: Any, folder: Path, missing: str) -> None:
    order = service.Order(str(folder), without=[missing], accepted=[missing])
    with service.begin(order) as worker:
        assert worker.layers == {name: name != missing for name in LAYERS}
        assert service.attempt(worker, "see", ["/proc/self/status"]) == "open"


def test_accepting_one_layer_excuses_no_other(service: Any, folder: Path) -> None:
    order = service.Order(str(folder), without=["seccomp", "landlock"], accepted=["seccomp"])
    with pytest.raises(Unavailable, match="landlock"):
        service.begin(order)


def test_without_no_new_privs_the_filter_and_landlock_fall_and_are_named(service: Any, folder: Path) -> None:
    with pytest.raises(Unavailable, match=r"landlock.*seccomp"):
        service.begin(service.Order(str(folder), without=["no-new-privs"], accepted=["no-new-privs"]))


def test_an_unknown_layer_is_bad_input(folder: Path) -> None:
    sandbox = Sandbox(read=(), write=(folder / "output",))
    with pytest.raises(BadInput, match="firewall"):
        start_worker("x.y", sandbox, log=folder / "log", accepted_missing=frozenset({"firewall"}))


@pytest.mark.thorough
def test_a_kernel_without_landlock_is_noticed(run_service: RunService) -> None:
    absent = {"landlock_create_ruleset": "ENOSYS"}
    assert run_service(detect=True, absent=absent)["landlock"] is False
    answer = run_service(attempts=[["socket_pair", []]], absent=absent)
    assert (
        answer["code"] == "sandbox-unavailable"
        and "landlock" in answer["message"]
        and "seccomp" not in answer["message"]
    )
    assert run_service(attempts=[["socket_pair", []]], absent=absent, accepted=["landlock"]) == ["EPERM"]


@pytest.mark.parametrize("ordinary", [False, True])
def test_a_host_that_forbids_namespaces_is_noticed(run_service: RunService, ordinary: bool) -> None:
    """As inside most containers: unshare is not permitted."""
    found = run_service(detect=True, absent={"unshare": "EPERM"}, ordinary=ordinary)
    assert {name for name, stands in found.items() if not stands} == {
        "user-ns", "network-ns", "pid-ns", "ipc-ns", "mount-ns", "uts-ns"
    }  # fmt: skip


def test_root_without_user_namespaces_still_gets_the_others(service: Any, folder: Path) -> None:
    """A hardened host may forbid user namespaces; root needs none, an ordinary service does."""
    order = service.Order(str(folder), without=["user-ns"], accepted=["user-ns"])
    if os.geteuid() == 0:
        with service.begin(order) as worker:
            assert worker.layers == {name: name != "user-ns" for name in LAYERS}
            assert service.attempt(worker, "change_kernel_setting", []) in {"EACCES", "EROFS"}
    else:
        with pytest.raises(Unavailable, match="network-ns"):
            service.begin(order)


@pytest.mark.parametrize("ordinary", [False, True])
def test_a_worker_has_nothing_but_its_sandbox(
    service: Any, folder: Path, run_service: RunService, ordinary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_DATABASE_URL", "postgresql://user:secret@host/ledger")
    state = run_service(module="inmates.states", state=True, ordinary=ordinary)
    assert state["pid"] == 2 and state["user"] == 1000 and set(state["processes"]) == {1, 2}
    assert sorted(state["descriptors"]) == [0, 1, 2]
    assert "secret" not in json.dumps(state["environment"])
    assert state["environment"]["HOME"] == state["folder"] == str(folder / "output")
    assert state["hostname"] == "worker" and state["core"] == [0, 0]
    assert {state["status"][name].strip() for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
    assert state["status"]["NoNewPrivs"] == "1" and state["status"]["Seccomp"] == "2"
    assert state["dumpable"] == 0
    assert state["out_of_memory_score"] == 500 and state["mask"] == 0o077


def test_the_environment_is_a_list_of_our_own(run_service: RunService) -> None:
    environment = run_service(module="inmates.states", state=True)["environment"]
    assert environment.keys() <= {
        "PATH", "HOME", "TMPDIR", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "XDG_CACHE_HOME", "CUDA_CACHE_PATH",
        "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "DO_NOT_TRACK", "TOKENIZERS_PARALLELISM",
        "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONNOUSERSITE",
    }  # fmt: skip
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"


def test_an_open_file_of_the_service_is_not_inherited(service: Any, folder: Path) -> None:
    (folder / "secret").write_text("secret")
    descriptor = os.open(folder / "secret", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    try:
        with service.begin(service.Order(str(folder), module="inmates.states")) as worker:
            frame = worker.receive(60)
    finally:
        os.close(descriptor)
    assert frame is not None and sorted(frame[0]["descriptors"]) == [0, 1, 2]


def test_the_services_other_groups_do_not_come_along(run_service: RunService) -> None:
    """Being in docker's group, say, is being root. Only root can leave groups, and only root can be given some here."""
    groups = [4, 27] if os.geteuid() == 0 else None
    groups_inside = run_service(module="inmates.states", state=True, groups=groups)["status"]["Groups"].split()
    assert groups_inside == [] if groups else "0" not in groups_inside


def test_device_folders_are_shown_only_when_asked_for(attempt: Callable[..., str]) -> None:
    assert attempt("list_folder", "/sys/module") == "ENOENT"
    assert attempt("list_folder", "/sys/module", without=frozenset({"mount-ns"})) == "EACCES"
    assert attempt("list_folder", "/sys/module", devices=True) == "open"


@pytest.mark.parametrize("bad", ["relative", "/tmp/../etc"])
def test_a_path_that_is_not_plain_is_refused(bad: str, folder: Path) -> None:
    with pytest.raises(BadInput, match="absolute"):
        Sandbox(read=(Path(bad),), write=(folder,))


def test_a_write_path_may_not_hold_what_is_only_read(service: Any, folder: Path) -> None:
    (folder / "output" / "base").mkdir()
    with pytest.raises(BadInput, match="apart"):
        service.begin(service.Order(str(folder), read=[str(folder / "output" / "base")]))


def test_a_missing_read_path_is_refused(service: Any, folder: Path) -> None:
    with pytest.raises(BadInput, match="nothing there"):
        service.begin(service.Order(str(folder), read=[str(folder / "absent")]))
