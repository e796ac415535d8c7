"""Tests of each sandbox layer by an attack that succeeds without it and is refused with it, by the same worker."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Attempt = Callable[..., str]

SECCOMP = frozenset({"seccomp"})
FILES = frozenset({"landlock", "mount-ns"})
NAMESPACES = frozenset({"network-ns", "ipc-ns", "uts-ns", "pid-ns", "mount-ns", "user-ns"})
PROCESSES = frozenset({"pid-ns", "landlock", "mount-ns"})
X86 = platform.machine() == "x86_64"


def is_stopped_by(attempt: Attempt, name: str, *arguments: Any, layer: frozenset[str], **fields: Any) -> None:
    """Check that the attack works without `layer`, and that the kernel refuses it with the layer."""
    assert attempt(name, *arguments, without=layer, **fields) == "open"
    assert attempt(name, *arguments, **fields) in {"EPERM", "EACCES", "ENOSYS", "ENOENT", "EROFS", "ESRCH", "EXDEV"}


@pytest.fixture
def listeners(folder: Path) -> Iterator[dict[str, Any]]:
    """Live listeners of the service: a TCP port, a UDP port, a Unix socket by path and an abstract one."""
    path, abstract = str(folder / "socket"), f"\0sandbox-test-{os.getpid()}"
    kinds = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        "path": (socket.AF_UNIX, socket.SOCK_STREAM, path),
        "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, abstract),
    }
    opened = {}
    for name, (family, kind, address) in kinds.items():
        opened[name] = socket.socket(family, kind)
        opened[name].bind(address)
        if kind == socket.SOCK_STREAM:
            opened[name].listen()
    addresses = {name: one.getsockname() for name, one in opened.items()}
    yield {"tcp": addresses["tcp"][1], "udp": addresses["udp"][1], "path": path, "abstract": abstract}
    for one in opened.values():
        one.close()


@pytest.fixture
def secret(folder: Path) -> Path:
    """Return a file of the service outside all folders that the worker is shown."""
    (folder / "keys").mkdir()
    path = folder / "keys" / "log.pem"
    path.write_text("secret")
    return path


def test_tcp_does_not_reach_a_live_listener(attempt: Attempt, listeners: dict[str, Any]) -> None:
    is_stopped_by(attempt, "tcp", listeners["tcp"], layer=frozenset({"network-ns", "seccomp", "landlock"}))


@pytest.mark.parametrize("alone", ["network-ns", "seccomp", "landlock"])
def test_each_of_three_layers_alone_stops_tcp(attempt: Attempt, listeners: dict[str, Any], alone: str) -> None:
    others = frozenset({"network-ns", "seccomp", "landlock"}) - {alone}
    assert attempt("tcp", listeners["tcp"], without=others) in {"EPERM", "EACCES", "ENETUNREACH"}


def test_udp_does_not_leave(attempt: Attempt, listeners: dict[str, Any]) -> None:
    is_stopped_by(attempt, "udp", listeners["udp"], layer=frozenset({"network-ns", "seccomp"}))
    assert attempt("udp", listeners["udp"], without=frozenset({"seccomp"})) == "ENETUNREACH"


def test_a_unix_socket_by_path_is_not_reached(attempt: Attempt, listeners: dict[str, Any]) -> None:
    is_stopped_by(attempt, "unix", listeners["path"], layer=frozenset({"seccomp", "mount-ns"}))
    assert attempt("unix", listeners["path"], without=frozenset({"seccomp"})) == "ENOENT"


def test_an_abstract_unix_socket_is_not_reached(attempt: Attempt, listeners: dict[str, Any]) -> None:
    is_stopped_by(attempt, "unix", listeners["abstract"], layer=frozenset({"seccomp", "network-ns", "landlock"}))
    assert attempt("unix", listeners["abstract"], without=frozenset({"seccomp", "landlock"})) == "ECONNREFUSED"


@pytest.mark.parametrize(
    "attack",
    [
        "socket_pair",
        "netlink",
        "io_uring",
        "be_traced",
        "read_memory",
        "new_user_namespace",
        "clone_into_namespace",
        "clone3",
        "add_key",
        "user_faults",
        "process_handle",
        "leave_session",
        "become_dumpable",
        "run_from_memory",
        "run_interpreter",
        "memory_file",
        "set_user_id_by_openat2",
        "sticky_folder",
        "leave_device",
        "lease",
    ],
)
def test_the_call_filter_refuses(attempt: Attempt, attack: str) -> None:
    is_stopped_by(attempt, attack, layer=SECCOMP)


@pytest.mark.parametrize("mode", [0o6777, 0o4700, 0o2700, 0o1600])
def test_a_worker_leaves_no_file_of_a_special_mode(attempt: Attempt, folder: Path, mode: int) -> None:
    is_stopped_by(attempt, "set_user_id_file", mode, layer=SECCOMP)
    (folder / "output" / "program").unlink()
    assert attempt("set_user_id_file", mode & 0o777) == "open"


def test_vsock_is_refused_even_where_the_kernel_has_none(attempt: Attempt) -> None:
    """No namespace holds this family: without the filter, a kernel that has it gives a socket."""
    assert attempt("vsock", without=SECCOMP) in {"open", "EAFNOSUPPORT"}
    assert attempt("vsock") == "EPERM"


def test_a_file_handle_cannot_be_made(attempt: Attempt, folder: Path) -> None:
    is_stopped_by(attempt, "file_handle", str(folder / "output"), layer=SECCOMP)


if X86:  # 64-bit ARM cannot enter its 32-bit table without an exec; test_seccomp.py shows the filter for both

    @pytest.mark.parametrize("attack", ["i386_call", "x32_call"])
    def test_foreign_calls_kill(attempt: Attempt, attack: str) -> None:
        assert attempt(attack, without=SECCOMP) == "open"
        assert attempt(attack) == "killed 31"


@pytest.mark.thorough
def test_shared_memory_of_the_service_is_not_attached(attempt: Attempt) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0, 4096, 0o1666)
    assert segment >= 0
    try:
        assert attempt("shared_memory", segment, without=frozenset({"ipc-ns", "seccomp"})) == "open"
        assert attempt("shared_memory", segment, without=SECCOMP) == "EINVAL"  # no such segment in its namespace
        assert attempt("shared_memory", segment, without=frozenset({"ipc-ns"})) == "EPERM"
    finally:
        libc.shmctl(segment, 0, None)


@pytest.mark.parametrize("attack", ["read", "overwrite", "truncate", "remove", "move_away"])
def test_a_file_outside_is_neither_read_nor_changed(attempt: Attempt, secret: Path, attack: str) -> None:
    assert attempt(attack, str(secret)) == "ENOENT"
    assert attempt(attack, str(secret), without=frozenset({"mount-ns"})) in {"EACCES", "EXDEV"}
    assert secret.read_text() == "secret"
    assert attempt(attack, str(secret), without=FILES) == "open"


def test_a_file_outside_cannot_be_created(attempt: Attempt, secret: Path) -> None:
    planted = secret.parent / "planted"
    is_stopped_by(attempt, "create", str(planted), layer=FILES)


def test_a_folder_outside_cannot_be_listed(attempt: Attempt, secret: Path) -> None:
    is_stopped_by(attempt, "list_folder", str(secret.parent), layer=FILES)


def test_a_file_outside_cannot_even_be_seen(attempt: Attempt, secret: Path) -> None:
    is_stopped_by(attempt, "see", str(secret), layer=frozenset({"mount-ns"}))


@pytest.mark.thorough
@pytest.mark.parametrize("attack", ["chmod", "set_time"])
def test_mode_and_time_outside_cannot_be_changed(attempt: Attempt, secret: Path, attack: str) -> None:
    """Landlock does not govern these: the call filter and the mount namespace do, each alone."""
    is_stopped_by(attempt, attack, str(secret), layer=frozenset({"mount-ns", "seccomp"}))
    assert attempt(attack, str(secret), without=frozenset({"mount-ns"})) == "EPERM"
    assert attempt(attack, str(secret), without=SECCOMP) == "ENOENT"


@pytest.mark.thorough
@pytest.mark.parametrize("attack", ["overwrite", "truncate", "remove", "chmod", "move_away"])
def test_what_may_be_read_may_not_be_changed(attempt: Attempt, folder: Path, attack: str) -> None:
    (folder / "base").mkdir()
    model = folder / "base" / "model"
    model.write_text("weights")
    read = [str(folder / "base")]
    assert attempt("read", str(model), read=read) == "open"
    everything = frozenset({"mount-ns", "landlock", "seccomp"})
    for missing in (frozenset(), frozenset({"mount-ns"}), frozenset({"landlock", "seccomp"})):
        outcome = attempt(attack, str(model), read=read, without=missing)
        assert outcome in {"EPERM", "EACCES", "EROFS", "EXDEV"}, missing
    assert model.read_text() == "weights"
    assert attempt(attack, str(model), read=read, without=everything) == "open"


@pytest.mark.parametrize("attack", ["overwrite", "truncate", "remove"])
def test_the_code_that_runs_may_not_be_changed(attempt: Attempt, folder: Path, service: Any, attack: str) -> None:
    """The interpreter, the libraries and the appliance are shown in the same way."""
    shutil.copytree(service.INMATES, folder / "code" / "inmates")
    target = folder / "code" / "inmates" / "liar.py"
    code, before = str(folder / "code" / "inmates"), target.read_text()
    for alone in ("mount-ns", "landlock"):
        assert attempt(attack, str(target), code=code, without=FILES - {alone}) in {"EACCES", "EROFS"}
    assert target.read_text() == before
    assert attempt(attack, str(target), code=code, without=FILES) == "open"


def test_the_workers_own_root_is_read_only(attempt: Attempt) -> None:
    assert attempt("create", "/planted", without=frozenset({"landlock"})) == "EROFS"


@pytest.mark.thorough
@pytest.mark.parametrize(("attack", "arguments"), [("symbolic_link", ["/etc"]), ("pipe_in_output", [])])
def test_the_output_holds_plain_files_only(attempt: Attempt, attack: str, arguments: list[str]) -> None:
    for missing in ({"seccomp"}, {"landlock"}):
        assert attempt(attack, *arguments, without=frozenset(missing)) in {"EPERM", "EACCES"}
    assert attempt(attack, *arguments, without=frozenset({"seccomp", "landlock"})) == "open"


def test_the_worker_cannot_link_a_foreign_file_into_its_output(attempt: Attempt, secret: Path) -> None:
    is_stopped_by(attempt, "hard_link", str(secret), layer=frozenset({"seccomp", "landlock", "mount-ns"}))


@pytest.mark.thorough
def test_a_program_that_the_worker_wrote_is_not_run(attempt: Attempt) -> None:
    """Three layers, each alone."""
    layers = FILES | SECCOMP
    is_stopped_by(attempt, "run_from_output", layer=layers)
    assert attempt("run_from_output", without=layers - {"mount-ns"}) == "EACCES"
    assert attempt("run_from_output", without=layers - {"landlock"}) == "EACCES"
    assert attempt("run_from_output", without=FILES) == "EPERM"


def test_a_library_that_the_worker_wrote_is_not_mapped(attempt: Attempt) -> None:
    """Landlock does not govern this one; the mount namespace does."""
    is_stopped_by(attempt, "map_from_output", layer=frozenset({"mount-ns"}))


@pytest.mark.thorough
def test_a_process_outside_gets_no_signal(attempt: Attempt, service: Any) -> None:
    is_stopped_by(attempt, "signal_process", service.SERVICE, layer=PROCESSES)
    assert attempt("signal_process", service.SERVICE, without=frozenset({"pid-ns", "mount-ns"})) == "EPERM"
    assert attempt("signal_process", service.SERVICE, without=frozenset({"landlock", "mount-ns"})) == "ESRCH"


def test_the_kernels_settings_are_read_only(attempt: Attempt) -> None:
    """Root of the host without capabilities may still write many of them: the service may be root."""
    assert attempt("change_kernel_setting", without=frozenset({"landlock"})) in {"EROFS", "EACCES"}
    assert attempt("change_kernel_setting", without=frozenset({"mount-ns"})) == "EACCES"


@pytest.mark.thorough
@pytest.mark.parametrize("ordinary", [False, True], ids=["root", "ordinary"])
def test_only_with_a_card_a_worker_names_its_threads(run_service: Callable[..., Any], ordinary: bool) -> None:
    """cuInit fails where the driver cannot. Nothing else of /proc can be written then, whatever a file's mode says."""
    attempts = [
        ["name_thread", []],
        ["write_to", ["/proc/self/oom_score_adj", "600"]],
        ["write_to", ["/proc/self/comm", "named"]],
        ["write_to", ["/proc/1/comm", "named"]],
        ["change_kernel_setting", []],
        ["find_writable_kernel", []],
    ]
    name, *others, covered = run_service(attempts=attempts, ordinary=ordinary, devices=True)
    assert (name, covered) == ("open", "EROFS")
    assert set(others) <= {"EACCES", "EROFS", "EPERM"}
    assert run_service(attempts=attempts[:1], ordinary=ordinary) == ["EROFS"]


@pytest.mark.parametrize("missing", ["landlock", "mount-ns", "pid-ns"])
def test_a_card_opens_no_kernel_setting_where_a_layer_is_missing(attempt: Attempt, missing: str) -> None:
    without = frozenset({missing})
    assert attempt("change_kernel_setting", without=without, devices=True) in {"EROFS", "EACCES"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("attack", "amount", "limits", "refusal"),
    [
        ("fill_file", 2 << 20, {"file_bytes": 1 << 20}, "EFBIG"),
        ("take_memory", 512 << 20, {"memory_bytes": 256 << 20}, "ENOMEM"),
        ("open_many", 100, {"open_files": 64}, "EMFILE"),
        ("burn", 3, {"cpu_s": 1}, "killed 24"),
    ],
)
def test_limits_hold(attempt: Attempt, attack: str, amount: int, limits: dict[str, int], refusal: str) -> None:
    assert attempt(attack, amount) == "open"
    assert attempt(attack, amount, limits=limits) == refusal


@pytest.mark.thorough
def test_an_ordinary_service_is_neither_traced_nor_read(run_service: Callable[..., Any], service: Any) -> None:
    """Between equals the kernel allows both; root's capabilities would hide that, so the service is no root here."""
    attempts = [["trace", [service.SERVICE]], ["read_environment", [service.SERVICE]]]
    apart = sorted({*NAMESPACES, "landlock", "seccomp"})
    order = {"attempts": attempts, "ordinary": True}
    assert run_service(**order, without=apart, accepted=apart) == ["open", "open"]
    assert run_service(**order) == ["EPERM", "ENOENT"]
    apart.remove("landlock")
    assert run_service(**order, without=apart, accepted=apart) == ["EPERM", "EACCES"]


@pytest.mark.thorough
def test_the_sandbox_of_an_ordinary_service_stop_the_same_attacks(
    run_service: Callable[..., Any], secret: Path, listeners: dict[str, Any]
) -> None:
    attempts: list[list[Any]] = [
        ["tcp", [listeners["tcp"]]],
        ["udp", [listeners["udp"]]],
        ["unix", [listeners["abstract"]]],
        ["unix", [listeners["path"]]],
        ["vsock", []],
        ["io_uring", []],
        ["new_user_namespace", []],
        ["read", [str(secret)]],
        ["create", [str(secret.parent / "planted")]],
        ["see", [str(secret)]],
    ]
    refused = run_service(attempts=attempts, ordinary=True)
    assert refused == ["EPERM"] * 7 + ["ENOENT"] * 3
    apart = sorted({*NAMESPACES, "landlock", "seccomp"})
    got_through = run_service(attempts=attempts, ordinary=True, without=apart, accepted=apart)
    assert [one for one in got_through if one != "EAFNOSUPPORT"] == ["open"] * (len(attempts) - 1) or (
        got_through == ["open"] * len(attempts)
    )


@pytest.fixture
def set_user_id_program() -> Iterator[Path]:
    """Yield a program that prints its effective user id; set-user-id root if the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as name:
        Path(name).chmod(0o755)
        program = Path(name, "id")
        shutil.copy("/usr/bin/id", program)
        program.chmod(0o4755)
        yield program


@pytest.mark.thorough
def test_a_set_user_id_program_gives_nothing(run_service: Callable[..., Any], set_user_id_program: Path) -> None:
    order = {
        "attempts": [["become_root", [str(set_user_id_program)]]],
        "read": [str(set_user_id_program)],
        "ordinary": True,
    }
    assert run_service(**order) == ["EPERM"]
    assert run_service(**order, without=["seccomp"], accepted=["seccomp"]) == ["EACCES"]
    open_to_all = sorted({*NAMESPACES, "landlock", "seccomp"})
    assert run_service(**order, without=open_to_all, accepted=open_to_all) == ["EPERM"]  # runs, as itself
    if os.geteuid() == 0:
        privileged = [*open_to_all, "no-new-privs"]
        assert run_service(**order, without=privileged, accepted=privileged) == ["open"]


@pytest.mark.thorough
def test_processes_are_counted(run_service: Callable[..., Any]) -> None:
    """The kernel exempts root from this limit, and the documentation says so."""
    order = {"attempts": [["fork_many", [40]]], "ordinary": True}
    assert run_service(**order, limits={"processes": 30}) == ["EAGAIN"]
    assert run_service(**order, limits={"processes": 300}) == ["open"]
