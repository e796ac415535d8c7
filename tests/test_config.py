"""Settings are read once and strictly: what is not known is refused, with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.load import load_settings
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
    assert (settings.import_s, settings.import_cpu_s) == (90.0, 120.0)
    default = load_settings(tmp_path, {})
    assert (default.import_s, default.import_cpu_s) == (600.0, 300.0)


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
        "": {"concurrent": 4, "tokens_per_day": 1000},
        "legal": {"concurrent": 8, "tokens_per_day": 1000},
    }
    assert load_settings(tmp_path / "none", {}).limits == {}


def test_beyond_loopback_it_takes_a_certificate_or_a_word(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "127.9.9.9", "[::1]", "localhost"):
        assert load_settings(write(tmp_path, f'listen = "{host}:9000"'), {}).listen is not None
    for host in ("0.0.0.0", "[::]", "192.0.2.1", "bank.example"):
        with pytest.raises(BadInput, match="on a network, without TLS"):
            load_settings(write(tmp_path, f'listen = "{host}:9000"'), {})
        load_settings(write(tmp_path, f'listen = "{host}:9000"\nplaintext = "accepted"'), {})
    tls = 'listen = "0.0.0.0:9000"\ncertificate = "tls/chain.pem"\ncertificate_key = "/etc/ssl/own.key"'
    certificate = load_settings(write(tmp_path, tls), {}).certificate
    assert certificate is not None
    assert (certificate.chain, certificate.key) == (tmp_path / "tls/chain.pem", Path("/etc/ssl/own.key"))
    assert certificate.client_ca is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('listn = "x"', "key 'listn': expected one of .* did you mean 'listen'"),
        ("listen = 8331", "listen: expected text, got 8331"),
        ("limits = 4", "limits: expected a table, got 4"),
        ("[limits]\nconcurent = 4", "limits, key 'concurent': expected one of .* did you mean 'concurrent'"),
        ("[limits]\nconcurrent = -1", "limits, concurrent: expected a whole number from 0 to .*, got -1"),
        ("[limits]\nconcurrent = true", "limits, concurrent: expected a whole number .*, got True"),
        ('[limits.legal]\ntokens_per_day = "1"', "limits.legal, tokens_per_day: expected a whole number"),
        ("[limits.legal.more]\nconcurrent = 1", "limits.legal, key 'more'"),
        ("listen =", "expected TOML"),
        ('certificate = "a.pem"', "expected certificate and certificate_key, got one without the other"),
        ('client_ca = "a.pem"', "expected certificate and certificate_key, got one without the other"),
        ('plaintext = "yes"', "expected \"accepted\" or nothing, got 'yes'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        load_settings(write(tmp_path, text), {})


# The cluster.


def test_a_cluster_is_set_up_by_its_shared_folder(tmp_path: Path) -> None:
    environment = {"APPLIANCE_HOME": str(tmp_path)}
    assert load_settings(tmp_path, environment).slurm is None
    (tmp_path / "appliance.toml").write_text('slurm_folder = "/shared"\nslurm_gres = "gpu:1"\nruns_on = "slurm"\n')
    found = load_settings(tmp_path, environment)
    assert found.slurm is not None
    assert (found.runs_on, found.slurm.folder, found.slurm.gres) == ("slurm", Path("/shared"), "gpu:1")
    assert (found.slurm.cpus, found.slurm.patience_s, found.slurm.partition) == (1, 900.0, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('runs_on = "slurm"', "runs_on: expected slurm_folder beside it"),
        ('runs_on = "there"', "runs_on: expected here or slurm, got 'there'"),
        ('slurm_folder = "shared"', "slurm_folder: expected an absolute path, got 'shared'"),
        ('slurm_folder = "/s"\nslurm_cpus = "0"', "slurm_cpus: expected a whole number from 1 to 65535, got '0'"),
        ('slurm_folder = "/s"\nslurm_partition = "a b"', "slurm_partition: expected one word as sbatch takes it"),
        ('slurm_folder = "/s"\nslurm_account = "--uid=0"', "slurm_account: expected one word as sbatch takes it"),
    ],
)
def test_a_setting_of_the_cluster_that_cannot_be_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "appliance.toml").write_text(text)
    with pytest.raises(BadInput, match=words):
        load_settings(tmp_path, {"APPLIANCE_HOME": str(tmp_path)})
