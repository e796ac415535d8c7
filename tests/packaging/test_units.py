"""The units: how exposed they are, and the service, a worker and a witness inside of them under a real systemd."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from appliance.formats.log.checkpoint import parse_checkpoint, verify_cosignature
from appliance.formats.log.note import parse_note
from appliance.formats.log.trust import Trust, encode_trust
from appliance.sandbox.processes import LAYERS
from appliance.store.files.encryption import make_identity, recipient_of
from scripts.kit.certificates import Authority
from scripts.kit.machine import CHECKOUT, ROOT, Machine, start_machine
from tests.witness.bench import LOG, LOG_VKEY

pytestmark = pytest.mark.outside

UNITS = ROOT / "scripts" / "packaging" / "systemd"
SCORES = {
    "appliance.service": 30,
    "appliance@.service": 30,
    "appliance-witness@.service": 15,
    "appliance-feed.service": 10,
    "appliance-backup.service": 10,
    "appliance-signer.service": 15,
}
"""Highest exposure of each service, in tenths."""


def test_every_service_has_its_highest_exposure() -> None:
    assert {path.name for path in UNITS.glob("*.service")} == SCORES.keys()


@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_unit_is_no_more_exposed_than_it_must_be(name: str) -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        f"--threshold={SCORES[name]}",
        UNITS / name,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_services_of_the_appliance_are_the_same_but_for_name_and_home() -> None:
    one, several = ((UNITS / name).read_text() for name in ("appliance.service", "appliance@.service"))
    several = several.replace("/var/lib/appliance-processes/%i", "/var/lib/appliance")
    differing = {
        line.partition("=")[0]
        for line in {*one.splitlines()} ^ {*several.splitlines()}
        if line and not line.startswith("#")
    }
    assert differing == {"Description"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with start_machine(tmp_path_factory.mktemp("m")) as made:
        made.install_checkout()
        made.install_units()
        yield made


APPLIANCE = "/usr/lib/appliance/current/bin/appliance"
AS = "env APPLIANCE_HOME={home} HOME={home} setpriv --reuid appliance --regid appliance --init-groups"


def make_appliance(machine: Machine, home: str) -> None:
    """Make an appliance with two administrators, whose keys are in /root."""
    machine.run(f"""
        cd /root
        printf 'correct horse battery\\n' >pw; chmod 600 pw
        for name in anna ben; do
            test -e $name.key || {APPLIANCE} key new $name.key --passphrase-file pw
            install -m 644 $name.pub /tmp/
        done
        cd /tmp
        {AS.format(home=home)} {APPLIANCE} init --administrator anna=anna.pub --administrator ben=ben.pub \\
            --output {home}/copy.json
        install -m 600 {home}/copy.json /root/trust.json
    """)


@pytest.fixture(scope="module")
def served(machine: Machine) -> Machine:
    make_appliance(machine, "/var/lib/appliance")
    machine.run("""
        echo 'socket_group = "appliance-people"' >/tmp/settings
        install -m 600 -o appliance -g appliance /tmp/settings /var/lib/appliance/appliance.toml
        systemctl start appliance
    """)
    return machine


def test_the_units_are_read_without_a_complaint(machine: Machine) -> None:
    names = " ".join(sorted(path.name.replace("@.", "@x.") for path in UNITS.iterdir()))
    # man: the pages of systemd may be absent.
    assert machine.run(f"cd /tmp; systemd-analyze verify --man=no {names} 2>&1") == ""


def test_before_init_the_unit_starts_nothing(machine: Machine) -> None:
    machine.run("systemctl start appliance@empty")
    shown = machine.run("systemctl show appliance@empty -p ActiveState,ConditionResult")
    assert shown == "ActiveState=inactive\nConditionResult=no\n"


def test_a_start_ends_when_the_service_answers_and_systemd_shows_what_it_does(served: Machine) -> None:
    shown = served.run("systemctl show appliance -p ActiveState,StatusText,WatchdogUSec,User,NRestarts")
    assert set(shown.splitlines()) == {
        *("ActiveState=active", "StatusText=serves", "WatchdogUSec=2min", "User=appliance", "NRestarts=0"),
    }
    status = served.run(f"APPLIANCE_HOME=/var/lib/appliance {APPLIANCE} status --as anna --key /root/anna.key "
                        "--passphrase-file /root/pw --trust /root/trust.json --json")  # fmt: skip
    assert json.loads(status)["service"]["state"] == "running"
    assert served.run("stat -c '%a %G' /var/lib/appliance /var/lib/appliance/run/appliance.sock") == (
        "710 appliance-people\n660 appliance-people\n"
    )


def test_the_journal_has_the_attributes_of_the_log(served: Machine) -> None:
    served.run("journalctl --sync")
    found = served.run("journalctl -u appliance APPLIANCE_EVENT=service.started APPLIANCE_ACTOR=service -o json -n 1")
    entry = json.loads(found)
    assert entry["PRIORITY"] == "6" and entry["APPLIANCE_OUTCOME"] == "success"
    assert entry["MESSAGE"].startswith("service.started actor=service")
    assert entry["_SYSTEMD_UNIT"] == "appliance.service", "the kernel's word, not the sender's"


def test_a_worker_starts_inside_of_the_unit_with_every_layer_and_reaches_nothing(served: Machine) -> None:
    program = f"{PYTHON_OF_UNIT} {CHECKOUT}/tests/packaging/confined.py"
    served.run(f"""
        sed -e 's/^Type=.*/Type=oneshot/' -e '/^Restart/d' -e '/^WatchdogSec/d' -e '/^Condition/d' \\
            -e 's#^ExecStart=.*#ExecStart={program} /var/lib/appliance/probe /var/lib/appliance/found#' \\
            /usr/lib/systemd/system/appliance.service >/etc/systemd/system/probe.service
        systemctl daemon-reload
        systemctl start probe || {{ journalctl -u probe --no-pager; exit 1; }}
    """)
    found = json.loads(served.run("cat /var/lib/appliance/found"))
    assert found["layers"] == dict.fromkeys(LAYERS, True), found["reasons"]
    assert len(found["probes"]) > 10 and set(found["probes"].values()) == {"refused"}
    assert found["user"] != 0 and found["seccomp"] == "2"


PYTHON_OF_UNIT = "/usr/lib/appliance/current/bin/python"


def test_a_service_that_is_killed_is_started_again_and_one_that_is_stopped_is_not(served: Machine) -> None:
    served.run("""
        systemctl kill --signal=KILL --kill-whom=main appliance
        for _ in $(seq 600); do
            test "$(systemctl show appliance -p NRestarts --value)" = 1 && systemctl is-active -q appliance && break
            sleep 0.1
        done
        systemctl is-active appliance
    """)
    pid = served.run("systemctl show appliance -p MainPID --value").strip()
    stopped = served.run(f"{AS.format(home='/var/lib/appliance')} {APPLIANCE} stop")
    assert stopped == f"stopped: process {pid}\n"
    assert served.run("systemctl show appliance -p ActiveState,Result") == "Result=success\nActiveState=inactive\n"


def test_a_setting_that_cannot_be_read_ends_the_start_for_good(served: Machine) -> None:
    served.run("""
        mkdir -p /etc/systemd/system/appliance.service.d
        printf '[Service]\nEnvironment=APPLIANCE_LISTEN=nowhere\n' >/etc/systemd/system/appliance.service.d/site.conf
        systemctl daemon-reload
    """)
    served.run("systemctl start appliance", fails=True)
    shown = served.run("systemctl show appliance -p ActiveState,ExecMainStatus,NRestarts")
    assert set(shown.splitlines()) == {"ActiveState=failed", "ExecMainStatus=2", "NRestarts=0"}
    assert "expected HOST:PORT or off" in served.journal("-u", "appliance", "-n", "20")
    served.run(
        "rm -r /etc/systemd/system/appliance.service.d; systemctl daemon-reload; systemctl reset-failed appliance"
    )


def test_a_key_of_a_certificate_is_a_credential(served: Machine) -> None:
    """The service reads it, and no account of the machine has the file."""
    served.run("""
        mkdir -p /etc/appliance /etc/systemd/system/appliance.service.d
        cd /etc/appliance
        openssl req -x509 -newkey ed25519 -noenc -days 90 -subj /CN=a -keyout tls.key -out tls.pem 2>/dev/null
        printf 'a token of the operations listener\n' >token; chmod 600 *
        cat >/etc/systemd/system/appliance.service.d/site.conf <<END
[Service]
LoadCredential=tls.pem:/etc/appliance/tls.pem
LoadCredential=tls.key:/etc/appliance/tls.key
LoadCredential=token:/etc/appliance/token
Environment=APPLIANCE_CERTIFICATE=%d/tls.pem APPLIANCE_CERTIFICATE_KEY=%d/tls.key
Environment=APPLIANCE_OPERATIONS=127.0.0.1:8332 APPLIANCE_OPERATIONS_TOKEN=%d/token
END
        systemctl daemon-reload
        systemctl start appliance || { journalctl -u appliance -n 30 --no-pager; exit 1; }
    """)
    served.run("echo | openssl s_client -connect 127.0.0.1:8332 2>/dev/null | grep -q 'CN=a\\|CN = a'")
    served.run("systemctl stop appliance; rm -r /etc/systemd/system/appliance.service.d; systemctl daemon-reload")


def bring(machine: Machine, old: int, size: int) -> None:
    """Put a request into the witness's folder, whole at once, as on the page."""
    (machine.share / "request").write_bytes(LOG.request(old, size))
    machine.run("""
        cd /var/spool/appliance-witness/bank
        rm -f cosigned
        install -m 644 /mnt/request .request
        mv .request request
    """)


AWAIT = "for _ in $(seq 600); do {} && break; sleep 0.1; done; {}"


def test_a_witness_answers_a_request_that_is_put_into_its_folder(machine: Machine) -> None:
    trust = Trust(LOG.origin, LOG_VKEY, f"sha256:{'0' * 64}", (("anna", f"sha256:{'1' * 64}"),))
    (machine.share / "trust.json").write_bytes(encode_trust(trust))
    vkey = machine.run(f"""
        mkdir -p /usr/lib/appliance-witness
        {PYTHON_OF_UNIT} {CHECKOUT}/scripts/zipapp --output /usr/lib/appliance-witness >/dev/null 2>&1
        cd /etc/appliance-witness
        cp /mnt/trust.json bank.trust.json
        printf 'correct horse battery\n' >bank.passphrase; chmod 600 bank.passphrase
        printf 'NAME=w.example/w1\nFIRST=--first\n' >bank.conf
        install -d -m 2770 -o appliance-witness -g appliance-witness /var/spool/appliance-witness/bank
        systemctl start appliance-witness@bank.path
        python3 /usr/lib/appliance-witness/appliance-witness.pyz new-key bank.key --name w.example/w1 \\
            --passphrase-file bank.passphrase
    """).strip()
    folder, state = "/var/spool/appliance-witness/bank", "/var/lib/appliance-witness/bank.state"

    def answered() -> int:
        machine.run(AWAIT.format(*[f"cmp -s {folder}/cosigned {state}"] * 2))
        note = parse_note(machine.run(f"cat {folder}/cosigned").encode())
        assert verify_cosignature(note, vkey) > 0
        return parse_checkpoint(note.text).size

    bring(machine, 0, 7)
    assert answered() == 7
    machine.run("echo NAME=w.example/w1 >/etc/appliance-witness/bank.conf")
    bring(machine, 7, 12)
    assert answered() == 12
    bring(machine, 0, 7)  # an old request
    machine.run(AWAIT.format(*["systemctl is-failed -q appliance-witness@bank"] * 2))
    assert (
        "shorter-log" in machine.journal("-u", "appliance-witness@bank") or "expected at least 12" in machine.journal()
    )
    bring(machine, 12, 15)
    assert answered() == 15, "a refused request does not keep the next one out"
    assert machine.run(f"stat -c '%a %U' /etc/appliance-witness {state}") == "700 root\n640 appliance-witness\n"


def test_the_feed_reads_the_log_with_its_token_and_says_that_no_server_takes_it(served: Machine) -> None:
    """The unit has what it needs: the credentials, the listener, its state's folder and the way to the server."""
    authority = Authority(served.share / "pki")
    served.run(f"""
        cd /var/lib/appliance
        head -c 30 /dev/urandom | base64 >token
        head -c 30 /dev/urandom | base64 >feed
        printf 'operations = "127.0.0.1:8332"\noperations_token = "token"\nfeed_token = "feed"\n' >>appliance.toml
        chown appliance:appliance token feed; chmod 600 token feed
        systemctl restart appliance
        install -d -m 700 /etc/appliance-feed
        cp feed /etc/appliance-feed/token
        cp /mnt/pki/{authority.file.name} /etc/appliance-feed/ca.pem
        chmod 600 /etc/appliance-feed/*
        printf 'SERVICE=127.0.0.1:8332\nSYSLOG=localhost:6514\nOPTIONS=--settle 1\n' >/etc/appliance-feed/feed.conf
        mkdir -p /etc/systemd/system/appliance-feed.service.d
        # Python is in /opt in this machine alone.
        printf '[Service]\nExecPaths=/opt/python\n' >/etc/systemd/system/appliance-feed.service.d/site.conf
        systemctl daemon-reload
        systemctl start appliance-feed
        for n in $(seq 300); do
            journalctl --sync
            ! journalctl -u appliance-feed -o cat | grep -q 'the next try' || break
            sleep 0.2
        done
    """)
    said = served.journal("-u", "appliance-feed", "-o", "cat")
    assert "syslog, localhost:6514: expected the server to take lines, got: Connection refused" in said
    assert "after entry -1" in said, "nothing was taken"
    assert served.run("systemctl is-active appliance-feed") == "active\n"
    assert served.run("stat -c %a /var/lib/private/appliance-feed") == "700\n"


def test_the_timer_s_unit_makes_a_backup_beside_the_running_service_and_its_account_restores_it(
    served: Machine,
) -> None:
    identities = [make_identity() for _ in range(3)]
    data, anna, boris = map(recipient_of, identities)
    served.run(f"""
        printf 'backup_folder = "/var/backups/appliance"\nbackup_recipients = "{data}"\n' >/tmp/backup
        printf 'backup_key_recipients = "{anna}, {boris}"\n' >>/tmp/backup
        sed -i '/^backup/d' /var/lib/appliance/appliance.toml
        cat /tmp/backup >>/var/lib/appliance/appliance.toml
        mkdir -p /etc/systemd/system/appliance-backup.service.d
        # Python is in /opt in this machine alone.
        printf '[Service]\nExecPaths=/opt/python\n' >/etc/systemd/system/appliance-backup.service.d/site.conf
        systemctl daemon-reload
        systemctl start appliance
        systemctl start appliance-backup || {{ journalctl -u appliance-backup --no-pager; exit 1; }}
        systemctl start appliance-backup.timer
        systemctl is-active appliance-backup.timer
    """)
    listed = served.run(f"{AS.format(home='/var/lib/appliance')} {APPLIANCE} backup list --json")
    (backup,) = json.loads(listed)
    assert backup["problem"] is None and backup["entries"] > 0
    assert served.run("stat -c '%a %U' /var/backups/appliance") == "700 appliance\n"
    (served.share / "identities").write_text("".join(f"{one.key}\n" for one in identities))
    run = f"{AS.format(home='/var/lib/appliance')} {APPLIANCE} backup"
    served.run(f"""
        systemctl stop appliance
        mv /var/lib/appliance /var/lib/lost
        install -d -m 700 -o appliance -g appliance /var/lib/appliance
        install -m 644 /root/trust.json /mnt/identities /tmp/
        cd /tmp
        {run} restore /var/backups/appliance {backup["name"]} --folder /var/lib/appliance --trust trust.json \\
            --identity identities
    """)
    served.run("systemctl start appliance", fails=True)
    assert "was restored from a backup" in served.journal("-u", "appliance", "-n", "20")
    served.run(f"{run} confirm --yes; systemctl restart appliance")
    assert served.run("systemctl is-active appliance") == "active\n"


SIGNED = "/var/lib/appliance-processes/signed"
AS_SIGNER = (
    "setpriv --reuid appliance-signer --regid appliance-signer --init-groups "
    "env HOME=/var/lib/appliance-signer APPLIANCE_SIGNER_FOLDER=/var/lib/appliance-signer"
)


@pytest.fixture(scope="module")
def signed(machine: Machine) -> Machine:
    """Return the machine with a second service, whose keys a signer has, as in docs/operations/signer.md."""
    machine.run(f"""
        install -d -m 700 /etc/appliance-signer
        (umask 077; head -c 32 /dev/urandom | base64 >/etc/appliance-signer/passphrase)
        {AS_SIGNER} {APPLIANCE} signer init --passphrase-fd 3 3</etc/appliance-signer/passphrase
        mkdir -p /etc/systemd/system/appliance-signer.service.d
        # This test's interpreter lies elsewhere than Debian's.
        printf '[Service]\nExecPaths=/opt/python\n' >/etc/systemd/system/appliance-signer.service.d/site.conf
        systemctl daemon-reload
        systemctl start appliance-signer
        install -d -m 700 -o appliance -g appliance {SIGNED}
        printf 'signer_socket = "/run/appliance-signer/socket"\nlisten = "off"\n' >/tmp/signed
        install -m 600 -o appliance -g appliance /tmp/signed {SIGNED}/appliance.toml
    """)
    make_appliance(machine, SIGNED)
    machine.run("systemctl start appliance@signed")
    return machine


def test_a_service_signs_through_the_signers_unit(signed: Machine) -> None:
    shown = signed.run("systemctl show appliance-signer -p ActiveState,StatusText,User")
    assert set(shown.splitlines()) == {"ActiveState=active", "StatusText=signs", "User=appliance-signer"}
    assert signed.run(f"ls {SIGNED}/keys") == "request-digests.secret\n"
    checks = json.loads(signed.run(f"{AS.format(home=SIGNED)} {APPLIANCE} doctor --json || true"))
    assert {one["check"]: one["level"] for one in checks["findings"]}["signer"] == "ok"
    for path in ("/var/lib/appliance-signer/keys", "/etc/appliance-signer/passphrase"):
        signed.run(f"{AS.format(home=SIGNED)} cat {path}", fails=True)


def test_the_signer_refuses_other_accounts(signed: Machine) -> None:
    program = (
        "import errno, socket; s = socket.socket(socket.AF_UNIX); s.settimeout(60); "
        "print(errno.errorcode[s.connect_ex('/run/appliance-signer/socket')])"
    )
    assert signed.run(f'setpriv --reuid nobody --clear-groups {PYTHON_OF_UNIT} -c "{program}"') == "EACCES\n"


def test_a_signer_that_is_killed_comes_back_and_the_service_continues(signed: Machine) -> None:
    signed.run("""
        systemctl kill --signal=KILL --kill-whom=main appliance-signer
        for _ in $(seq 600); do
            test "$(systemctl show appliance-signer -p NRestarts --value)" = 1 \\
                && systemctl is-active -q appliance-signer && break
            sleep 0.1
        done
        systemctl stop appliance@signed
    """)
    shown = json.loads(
        signed.run(f"{AS_SIGNER} {APPLIANCE} signer show --json --passphrase-fd 3 3</etc/appliance-signer/passphrase")
    )
    last = "SELECT size, bytes FROM head JOIN entries ON entries.rowid = size - 1"
    program = f"import sqlite3; print(*sqlite3.connect('{SIGNED}/ledger.db').execute('{last}').fetchone())"
    size, _, entry = signed.run(f'{PYTHON_OF_UNIT} -c "{program}"').partition(" ")
    assert shown["size"] == int(size) and "service.stopped" in entry and shown["log_keys"]
