"""The one list of settings: docs/reference/configuration.md is written from it (`appliance config --markdown`)."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_HOME = "~/.local/share/appliance"


class Setting(NamedTuple):
    """A key of appliance.toml, and the environment's variable that takes its place. `default` None: nothing is set."""

    name: str
    variable: str
    default: str | None
    meaning: str


_SCRATCH = "/var/tmp"  # noqa: S108 on a node, where a job makes a private folder in it

SETTINGS = (
    Setting(
        "home", "APPLIANCE_HOME", DEFAULT_HOME, "the data folder: keys, artifacts and the SQLite ledger; not a key"
    ),
    Setting(
        "database_url", "APPLIANCE_DATABASE_URL", None, "the ledger's database; SQLite at HOME/ledger.db unless set"
    ),
    Setting("migration_url", "APPLIANCE_MIGRATION_URL", None, "the owner's login, where it is not the service's"),
    Setting("process", "APPLIANCE_PROCESS", None, "this process's name, where several serve one PostgreSQL"),
    Setting("roles", "APPLIANCE_ROLES", "people, units, runs", "what this process does; fewer need PostgreSQL"),
    Setting("shared", "APPLIANCE_SHARED", None, "the folder of sealed folders and checkpoints; the home unless set"),
    Setting("keys", "APPLIANCE_KEYS", "keys", "the keyring's folder, mode 0700, the same for every process"),
    Setting("listen", "APPLIANCE_LISTEN", "127.0.0.1:8331", "HOST:PORT of the units' API, or `off`"),
    Setting("witnessed", "APPLIANCE_WITNESSED", "witnessed", "the folder of what witnesses have seen"),
    Setting("socket_group", "APPLIANCE_SOCKET_GROUP", None, "the Unix group whose members reach the people's socket"),
    Setting(
        "certificate", "APPLIANCE_CERTIFICATE", None, "PEM: the certificate of the site's CA and its chain; then TLS"
    ),
    Setting("certificate_key", "APPLIANCE_CERTIFICATE_KEY", None, "PEM: its private key, mode 0600, no passphrase"),
    Setting("client_ca", "APPLIANCE_CLIENT_CA", None, "PEM: only hosts with a certificate of this CA are let in"),
    Setting("people", "APPLIANCE_PEOPLE", "off", "HOST:PORT where people of other machines come in, or `off`"),
    Setting(
        "people_client_ca", "APPLIANCE_PEOPLE_CLIENT_CA", None, "PEM: only hosts with its certificate get in there"
    ),
    Setting("console", "APPLIANCE_CONSOLE", "off", "HOST:PORT of the console, such as 127.0.0.1:8330, or `off`"),
    Setting(
        "console_url", "APPLIANCE_CONSOLE_URL", None, "its address in browsers, such as https://appliance.example:8330"
    ),
    Setting("operations", "APPLIANCE_OPERATIONS", "off", "HOST:PORT of /healthz, /readyz and /metrics, or `off`"),
    Setting("operations_token", "APPLIANCE_OPERATIONS_TOKEN", None, "a 0600 file with the token for /metrics"),
    Setting("notice_command", "APPLIANCE_NOTICE_COMMAND", None, "a program of the site's own that carries notices"),
    Setting("notice_smtp", "APPLIANCE_NOTICE_SMTP", "off", "HOST:PORT of a mail server that carries notices, or `off`"),
    Setting("notice_from", "APPLIANCE_NOTICE_FROM", None, "the address that mails with notices come from"),
    Setting("notice_to", "APPLIANCE_NOTICE_TO", None, "a person's address, such as `{person}@bank.example`"),
    Setting("notice_minutes", "APPLIANCE_NOTICE_MINUTES", "15", "minutes between two notices to one person, at least"),
    Setting("traces", "APPLIANCE_TRACES", "off", "URL of a collector that takes traces by OTLP over HTTP, or `off`"),
    Setting("plaintext", "APPLIANCE_PLAINTEXT", None, "`accepted`: a listener beyond loopback may do without TLS"),
    Setting("rehash", "APPLIANCE_REHASH", "60", "minutes between two checks of every sealed folder, or `off`"),
    Setting("import_minutes", "APPLIANCE_IMPORT_MINUTES", "10", "minutes that a small import may take"),
    Setting(
        "import_cpu_minutes", "APPLIANCE_IMPORT_CPU_MINUTES", "5", "minutes of CPU time that a small import may use"
    ),
    Setting("engine", "APPLIANCE_ENGINE", "builtin", "what answers units: `builtin` or `vllm`"),
    Setting(
        "prompt_cache", "APPLIANCE_PROMPT_CACHE", "256", "MiB of read prompts that each builtin engine keeps, or 0"
    ),
    Setting("vllm_packages", "APPLIANCE_VLLM_PACKAGES", None, "the folder where vLLM and its libraries are installed"),
    Setting(
        "harness_packages", "APPLIANCE_HARNESS_PACKAGES", None, "the folder where lm-eval and evaluate are installed"
    ),
    Setting("runs_on", "APPLIANCE_RUNS_ON", "here", "where runs ordered without --on train: `here` or `slurm`"),
    Setting(
        "slurm_folder", "APPLIANCE_SLURM_FOLDER", None, "the folder that every node of the cluster sees under this path"
    ),
    Setting(
        "slurm_partition", "APPLIANCE_SLURM_PARTITION", None, "the partition of its jobs; Slurm's default unless set"
    ),
    Setting("slurm_account", "APPLIANCE_SLURM_ACCOUNT", None, "the account of people to whom policy gives none"),
    Setting("slurm_time_limit", "APPLIANCE_SLURM_TIME_LIMIT", None, "a job's time limit, such as 1-00:00:00"),
    Setting("slurm_cpus", "APPLIANCE_SLURM_CPUS", "1", "the CPUs that a job asks for"),
    Setting("slurm_memory", "APPLIANCE_SLURM_MEMORY", None, "the memory that a job asks for, such as 32G"),
    Setting("slurm_gres", "APPLIANCE_SLURM_GRES", None, "what else a job asks for, such as gpu:1"),
    Setting("slurm_python", "APPLIANCE_SLURM_PYTHON", None, "the nodes' Python that has the appliance installed"),
    Setting("slurm_scratch", "APPLIANCE_SLURM_SCRATCH", _SCRATCH, "the nodes' folder for what a job reads and writes"),
    Setting("slurm_warning", "APPLIANCE_SLURM_WARNING", "120", "seconds before the time limit to warn a job"),
    Setting("slurm_patience", "APPLIANCE_SLURM_PATIENCE", "15", "minutes to wait for slurmctld before a run fails"),
    Setting("slurm_commands", "APPLIANCE_SLURM_COMMANDS", "/usr/bin", "the folder of Slurm's commands, such as sbatch"),
)
ROLES = frozenset({"people", "units", "runs"})
VARIABLES = {setting.name: setting.variable for setting in SETTINGS if setting.name != "home"}
"""Of each setting but the home: the environment's, which takes precedence over the file's."""
DEFAULTS = {setting.name: setting.default for setting in SETTINGS if setting.default is not None}

LIMIT_MEANINGS = {
    "concurrent": "requests at once",
    "requests_per_minute": "requests that begin in a minute",
    "tokens_per_minute": "tokens read and written in a minute",
    "tokens_per_day": "tokens read and written in a day",
}
LIMITS = tuple(LIMIT_MEANINGS)
