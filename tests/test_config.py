"""Settings are read once and strictly: an unknown key is refused, with a suggestion."""

from __future__ import annotations

import time
from pathlib import Path

import click
import pytest

from appliance.cli import main
from appliance.cli.signer import signer
from appliance.cli.support.command import SharedOption
from appliance.config.description import explain_settings
from appliance.config.settings import (
    COMMAND_VARIABLES,
    SIGNER_VARIABLES,
    LimitSettings,
    load_settings,
)
from appliance.errors import BadInput


def write(folder: Path, text: str) -> Path:
    (folder / "appliance.toml").write_text(text)
    return folder


@pytest.mark.parametrize("text", ["0", "-1", "nan", "off", "1e9", "soon"])
def test_an_imports_limit_is_minutes_above_zero(tmp_path: Path, text: str) -> None:
    for name in ("APPLIANCE_IMPORT_MINUTES", "APPLIANCE_IMPORT_CPU_MINUTES"):
        with pytest.raises(BadInput, match="expected minutes above 0"):
            load_settings(tmp_path, {name: text})
    settings = load_settings(tmp_path, {"APPLIANCE_IMPORT_MINUTES": "1.5", "APPLIANCE_IMPORT_CPU_MINUTES": "2"})
    assert (settings.import_minutes, settings.import_cpu_minutes) == (1.5, 2.0)
    default = load_settings(tmp_path, {})
    assert (default.import_minutes, default.import_cpu_minutes) == (10.0, 5.0)


def test_the_environment_stands_over_the_file_and_the_file_over_what_is_usual(tmp_path: Path) -> None:
    home = write(tmp_path, 'listen = "127.0.0.1:9000"\nwitnessed = "stick"\n')
    assert load_settings(home, {}).listen == ("127.0.0.1", 9000)
    assert load_settings(home, {"APPLIANCE_LISTEN": "off"}).listen is None
    assert load_settings(home, {}).witnessed == tmp_path / "stick"
    assert load_settings(tmp_path / "none", {}).listen == ("127.0.0.1", 8331)


def test_limits_are_every_units_and_one_units(tmp_path: Path) -> None:
    text = "[limits]\nconcurrent = 4\ntokens_per_day = 1000\n[limits.legal]\nconcurrent = 8\n"
    found = load_settings(write(tmp_path, text), {}).limits
    assert found == {
        "": LimitSettings(concurrent=4, tokens_per_day=1000),
        "legal": LimitSettings(concurrent=8, tokens_per_day=1000),
    }
    assert load_settings(tmp_path / "none", {}).limits == {"": LimitSettings()}


def test_beyond_loopback_it_takes_a_certificate_or_a_word(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "127.9.9.9", "[::1]", "localhost"):
        assert load_settings(write(tmp_path, f'listen = "{host}:9000"'), {}).listen is not None
    for host in ("0.0.0.0", "[::]", "192.0.2.1", "bank.example"):
        with pytest.raises(BadInput, match="on a network, without TLS"):
            load_settings(write(tmp_path, f'listen = "{host}:9000"'), {})
        load_settings(write(tmp_path, f'listen = "{host}:9000"\nplaintext = "accepted"'), {})
    tls = 'listen = "0.0.0.0:9000"\ncertificate = "tls/chain.pem"\ncertificate_key = "/etc/ssl/own.key"'
    found = load_settings(write(tmp_path, tls), {})
    assert (found.certificate, found.certificate_key) == (tmp_path / "tls/chain.pem", Path("/etc/ssl/own.key"))
    assert found.client_ca is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('listn = "x"', "key 'listn': expected a known name; did you mean 'listen'"),
        ("listen = 8331", "listen: expected HOST:PORT or off, got 8331"),
        ("socket_group = 4", "socket_group: expected text, got 4"),
        ('home = "/srv"', "key 'home': expected it in APPLIANCE_HOME or as the option --home"),
        ("limits = 4", "limits: expected a table, got 4"),
        ("[limits]\nconcurent = 4", "limits, key 'concurent': expected a known name; did you mean 'concurrent'"),
        ("[limits]\nconcurrent = -1", "limits, concurrent: expected a whole number greater than or equal to 0, got -1"),
        ("[limits]\nconcurrent = true", "limits, concurrent: expected a whole number, got True"),
        ('[limits.legal]\ntokens_per_day = "1"', "limits.legal, tokens_per_day: expected a whole number"),
        ("[limits.legal.more]\nconcurrent = 1", "limits.legal, key 'more'"),
        ("listen =", "expected TOML"),
        ('certificate = "a.pem"', "expected certificate and certificate_key, got one without the other"),
        ('client_ca = "a.pem"', "expected certificate and certificate_key, got one without the other"),
        ('plaintext = "yes"', "plaintext: expected 'accepted', got 'yes'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        load_settings(write(tmp_path, text), {})


def test_every_value_that_does_not_fit_is_named_with_its_source(tmp_path: Path) -> None:
    home = write(tmp_path, 'slurm_cpus = "many"\n')
    with pytest.raises(BadInput) as refused:
        load_settings(home, {"APPLIANCE_ENGINE": "other"})
    assert refused.value.reasons == (
        "settings, APPLIANCE_ENGINE: expected 'builtin' or 'vllm', got 'other'",
        f"settings, {home / 'appliance.toml'}, slurm_cpus: expected a whole number, got 'many'",
    )


def _own(option: click.Parameter) -> list[str]:
    return [option.envvar] if isinstance(option.envvar, str) and not isinstance(option, SharedOption) else []


def test_an_unknown_variable_is_refused_and_those_of_the_command_line_are_known(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="variable APPLIANCE_LISTN: expected a known name; did you mean 'APPLIANCE_LIS"):
        load_settings(tmp_path, {"APPLIANCE_LISTN": "off"})
    for name in ("APPLIANCE_LIMITS", "APPLIANCE_PASSPHRASE", "APPLIANCE_listen"):
        with pytest.raises(BadInput, match=f"variable {name}: expected"):
            load_settings(tmp_path, {name: "off"})
    named = {variable for option in main.cli.params for variable in option_variables(option)}
    assert named == COMMAND_VARIABLES - {"APPLIANCE_DEBUG"} | {"APPLIANCE_HOME"}
    load_settings(tmp_path, dict.fromkeys(COMMAND_VARIABLES, "x"))
    of_signer = {variable for one in signer.commands.values() for option in one.params for variable in _own(option)}
    assert of_signer == SIGNER_VARIABLES
    load_settings(tmp_path, dict.fromkeys(SIGNER_VARIABLES, "x"))
    assert load_settings(tmp_path, {"appliance_listen": "off", "APPLIANCE_LISTEN": ""}).listen == ("127.0.0.1", 8331)


def option_variables(option: click.Parameter) -> list[str]:
    return [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())


def test_no_other_file_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("APPLIANCE_LISTEN=off\nAPPLIANCE_UNKNOWN=1\n")
    (tmp_path / "listen").write_text("off")
    assert load_settings(tmp_path).listen == ("127.0.0.1", 8331)


def test_a_number_is_written_as_a_number_or_as_text(tmp_path: Path) -> None:
    text = 'slurm_cpus = 8\nslurm_warning = "60"\nrehash = 1.5\nroles = ["people", "units", "runs"]\n'
    found = load_settings(write(tmp_path, text), {})
    assert (found.slurm_cpus, found.slurm_warning, found.rehash) == (8, 60, 1.5)
    for wrong in ("slurm_cpus = true", "slurm_cpus = 1.0", 'slurm_cpus = "+1"', "rehash = true"):
        with pytest.raises(BadInput, match=r"expected (a whole number|minutes)"):
            load_settings(write(tmp_path, wrong), {})


def test_no_message_shows_a_secret(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        load_settings(write(tmp_path, "database_url = 31337"), {})
    assert "31337" not in refused.value.message and "database_url: expected text" in refused.value.message
    url = "postgresql://app:31337@db/ledger?sslmode=verify-full"
    found = load_settings(write(tmp_path, ""), {"APPLIANCE_DATABASE_URL": url})
    assert "31337" not in f"{found!r} {found}" and found.migration_url.get_secret_value() == url
    shown = {one.name: one.value for one in explain_settings(tmp_path, {"APPLIANCE_DATABASE_URL": url})}
    assert shown["database_url"] == "postgresql://app:***@db/ledger?***"


def test_a_private_key_in_place_of_a_recipient_is_refused_and_not_shown(tmp_path: Path) -> None:
    key = f"AGE-SECRET-KEY-1{'Q' * 58}"
    for text in (key, key.lower(), f"age1{'q' * 58}, {key}"):
        with pytest.raises(BadInput) as refused:
            load_settings(write(tmp_path, f'backup_recipients = "{text}"'), {})
        assert "backup_recipients" in refused.value.message and "got a private key" in refused.value.message
        assert "QQQQ" not in refused.value.message.upper()


@pytest.mark.parametrize(
    ("where", "is_verified"),
    [
        ("postgresql:///ledger", True),
        ("postgresql://app:31337@localhost:5432/ledger", True),
        ("postgresql://app@[::1]/ledger", True),
        ("postgresql:///ledger?host=/run/postgresql", True),
        ("postgresql://db/ledger?sslmode=verify-full&sslrootcert=/etc/ca.pem", True),
        ("postgresql+psycopg://db/ledger?sslmode=verify-full", True),
        ("postgresql://db/ledger", False),
        ("postgres://app:31337@10.0.0.5/ledger", False),
        ("postgresql://db/ledger?sslmode=require", False),
        ("postgresql://db/ledger?sslmode=verify-full&sslmode=disable", False),
        ("postgresql:///ledger?host=db", False),
        ("postgresql://localhost,db/ledger", False),
        ("postgresql://localhost/ledger?hostaddr=10.0.0.5", False),
        ("postgresql://localhost/ledger?service=site", False),
        ("postgresql://[db/ledger", False),
    ],
)
@pytest.mark.parametrize("name", ["database_url", "migration_url"])
def test_a_database_on_a_network_is_verified(tmp_path: Path, name: str, where: str, is_verified: bool) -> None:
    """An attacker between the two could claim that there is no TLS, and request the password."""
    given = {"APPLIANCE_DATABASE_URL": "postgresql:///ledger", f"APPLIANCE_{name.upper()}": where}
    if not is_verified:
        with pytest.raises(BadInput, match=rf"{name.upper()}: expected .*, sslmode=verify-full in") as refused:
            load_settings(tmp_path, given)
        assert "31337" not in refused.value.message
        given["APPLIANCE_PLAINTEXT"] = "accepted"
    assert getattr(load_settings(tmp_path, given), name).get_secret_value() == where


def test_what_the_url_leaves_out_is_read_from_the_variables_of_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"APPLIANCE_DATABASE_URL": "postgresql:///ledger"}
    monkeypatch.setenv("PGHOST", "db")
    with pytest.raises(BadInput, match="sslmode=verify-full"):
        load_settings(tmp_path, given)
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    load_settings(tmp_path, given)


def test_a_process_has_the_listeners_of_its_roles_only(tmp_path: Path) -> None:
    given = {
        "APPLIANCE_DATABASE_URL": "postgresql:///ledger", "APPLIANCE_PROCESS": "one", "APPLIANCE_ROLES": "units",
        "APPLIANCE_PEOPLE": "127.0.0.1:8333", "APPLIANCE_CONSOLE": "127.0.0.1:8330",
    }  # fmt: skip
    found = load_settings(tmp_path, given)
    assert (found.people, found.console, found.console_url) == (None, None, None)
    assert found.listen == ("127.0.0.1", 8331)
    found = load_settings(tmp_path, given | {"APPLIANCE_ROLES": "people"})
    assert found.listen is None and found.console_url == "http://localhost:8330"
    with pytest.raises(BadInput, match="expected a name for this process too"):
        load_settings(tmp_path, {name: value for name, value in given.items() if name != "APPLIANCE_PROCESS"})
    with pytest.raises(BadInput, match="since one process serves a ledger on SQLite"):
        load_settings(tmp_path, {"APPLIANCE_ROLES": "units", "APPLIANCE_PROCESS": "one"})


# The cluster.


def test_a_cluster_is_set_up_by_its_shared_folder(tmp_path: Path) -> None:
    environment = {"APPLIANCE_HOME": str(tmp_path)}
    assert load_settings(tmp_path, environment).slurm_folder is None
    (tmp_path / "appliance.toml").write_text('slurm_folder = "/shared"\nslurm_gres = "gpu:1"\nruns_on = "slurm"\n')
    found = load_settings(tmp_path, environment)
    assert (found.runs_on, found.slurm_folder, found.slurm_gres) == ("slurm", Path("/shared"), "gpu:1")
    assert (found.slurm_cpus, found.slurm_patience, found.slurm_partition) == (1, 15, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('runs_on = "slurm"', "runs_on: expected slurm_folder beside it"),
        ('runs_on = "there"', "runs_on: expected 'local' or 'slurm', got 'there'"),
        ('slurm_folder = "shared"', "slurm_folder: expected an absolute path, got 'shared'"),
        (
            'slurm_folder = "/s"\nslurm_cpus = "0"',
            "slurm_cpus: expected a whole number greater than or equal to 1, got 0",
        ),
        ('slurm_folder = "/s"\nslurm_partition = "a b"', "slurm_partition: expected one word as sbatch takes it"),
        ('slurm_folder = "/s"\nslurm_account = "--uid=0"', "slurm_account: expected one word as sbatch takes it"),
    ],
)
def test_a_setting_of_the_cluster_that_cannot_be_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "appliance.toml").write_text(text)
    with pytest.raises(BadInput, match=words):
        load_settings(tmp_path, {"APPLIANCE_HOME": str(tmp_path)})


@pytest.mark.thorough
def test_a_file_with_many_wrong_keys_is_refused_in_little_time_with_the_first_ones(tmp_path: Path) -> None:
    home = write(tmp_path, "".join(f"listem{number} = 1\n" for number in range(30_000)))
    begun = time.thread_time()
    with pytest.raises(BadInput) as refused:
        load_settings(home, {})
    assert time.thread_time() - begun < 5
    assert len(refused.value.reasons) == 41 and refused.value.reasons[-1] == "29960 more problems"
    assert "did you mean 'listen'?" in refused.value.reasons[0]
