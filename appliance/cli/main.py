"""The entry point of the command line: the table of commands, and the output of errors.

A command's module is loaded when it is used, so that `--help` responds quickly.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from appliance.addresses import address_of, address_of_error, address_of_refusal, locate
from appliance.build import build_version
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import FOLDER, Command, CommandGroup, handle_wide
from appliance.cli.support.output import encode_json, plain
from appliance.errors import ApplianceError, Unavailable

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130
"""Exit code after an interruption by the person."""
BROKEN_PIPE = 141
"""Exit code after a broken pipe: 128 plus the signal, as in shells."""


class CommandEntry(NamedTuple):
    """The audience, module and summary of a command, and its place in the manual."""

    audience: str
    file: str
    help: str
    manual: str


COMMANDS = {
    "init": CommandEntry(
        "Administrators",
        "administrators",
        "Make an appliance: keys, database, first policy set.",
        "operations/service/",
    ),
    "login": CommandEntry(
        "Everyone",
        "logins",
        "Remember your name, key and appliance, so that no command needs --as and --key.",
        "guides/command-line/#your-login",
    ),
    "logout": CommandEntry(
        "Everyone",
        "logins",
        "Forget your login, and end the session at the service.",
        "guides/command-line/#your-login",
    ),
    "whoami": CommandEntry(
        "Everyone",
        "logins",
        "Show your name, roles and key, the appliance, its log and trust file.",
        "guides/command-line/#your-login",
    ),
    "console": CommandEntry(
        "Everyone",
        "logins",
        "Sign a browser in: print an address that works once.",
        "guides/console/#signing-in-and-out",
    ),
    "agent": CommandEntry(
        "Everyone",
        "logins",
        "Hold your unlocked key for some minutes; reading then asks for no passphrase.",
        "guides/command-line/#the-agent",
    ),
    "key": CommandEntry(
        "Everyone",
        "people",
        "A person's own key: make, show, prove, rotate, revoke.",
        "guides/command-line/#keys-that-change",
    ),
    "principal": CommandEntry(
        "Administrators",
        "administrators",
        "People and units: enrol, list, grant, replace a key, revoke.",
        "guides/people/",
    ),
    "identity": CommandEntry(
        "Administrators",
        "administrators",
        "People's identities at the site's identity provider: bind, list, unbind.",
        "guides/identity/",
    ),
    "order": CommandEntry(
        "Administrators",
        "orders",
        "Orders that wait for a second administrator.",
        "guides/administrators/",
    ),
    "policy": CommandEntry(
        "Administrators",
        "governance",
        "The policy set: show, adopt, test, compare.",
        "guides/administrators/#change-the-policy",
    ),
    "rules": CommandEntry(
        "Administrators", "governance", "The rules version: show it, raise it at an upgrade.", "upgrade/#upgrade"
    ),
    "clock": CommandEntry(
        "Administrators",
        "governance",
        "The log's time: show it, reset it after a clock ran ahead.",
        "operations/service/#a-clock-that-ran-ahead",
    ),
    "restoration": CommandEntry(
        "Administrators",
        "restorations",
        "Continue the log from an older state, after a restore of a backup.",
        "operations/backup/#an-older-log",
    ),
    "log-key": CommandEntry(
        "Administrators", "people", "The log's own key: rotate it.", "guides/command-line/#keys-that-change"
    ),
    "post-quantum": CommandEntry(
        "Administrators",
        "people",
        "Second signatures of checkpoints and adapters, by ML-DSA-65: add their keys.",
        "guides/command-line/#post-quantum-signatures",
    ),
    "text": CommandEntry(
        "Administrators",
        "people",
        "Printed names and free texts: erase one. The log still verifies.",
        "guides/command-line/#texts-that-are-erased",
    ),
    "hold": CommandEntry(
        "Administrators",
        "people",
        "Legal holds, which keep texts about a subject: place, lift, list.",
        "guides/command-line/#texts-that-are-erased",
    ),
    "serve": CommandEntry(
        "Administrators", "releases.releases", "Run the service in the foreground.", "operations/service/#starts"
    ),
    "stop": CommandEntry(
        "Administrators",
        "service",
        "Stop the running service, and wait until it has ended.",
        "operations/service/#starts",
    ),
    "status": CommandEntry(
        "Administrators",
        "service",
        "One screen: the service, its log, its jobs, and pending decisions.",
        "operations/monitoring/",
    ),
    "doctor": CommandEntry(
        "Administrators",
        "service",
        "Check everything that an appliance needs, and how to correct it.",
        "troubleshooting/#first-steps",
    ),
    "diagnose": CommandEntry(
        "Administrators",
        "diagnosis",
        "Collect what a maintainer needs into one file, without texts, keys or rows.",
        "operations/monitoring/#hand-facts-to-a-maintainer",
    ),
    "backup": CommandEntry(
        "Administrators",
        "backups",
        "Encrypted backups: create, list, verify, restore, remove.",
        "operations/backup/",
    ),
    "signer": CommandEntry(
        "Administrators",
        "signer",
        "A process of its own with the service's signing keys: make, show, run, adopt, step back.",
        "operations/signer/",
    ),
    "storage": CommandEntry(
        "Administrators", "service", "Show what uses the disk.", "operations/service/#when-the-disk-is-almost-full"
    ),
    "config": CommandEntry(
        "Administrators",
        "service",
        "Settings: show each with its source, check a file.",
        "operations/service/#settings",
    ),
    "update-compatibility": CommandEntry(
        "Administrators",
        "builds",
        "Whether processes of two builds can serve one log: check, metadata.",
        "upgrade/#several-hosts",
    ),
    "advisories": CommandEntry(
        "Administrators",
        "advisories",
        "Whether a published vulnerability affects an installed library: check.",
        "security/vulnerabilities/#check-the-libraries",
    ),
    "database": CommandEntry(
        "Administrators",
        "builds",
        "The database's part of an upgrade: check, migrate.",
        "upgrade/#the-steps-by-hand",
    ),
    "base": CommandEntry("Operators", "operators", "Base models: import and list.", "guides/models/"),
    "dataset": CommandEntry("Operators", "operators", "Datasets: import, list, show.", "guides/datasets/"),
    "import": CommandEntry(
        "Operators", "imports", "Imports that were ordered: list, cancel.", "guides/operators/#import"
    ),
    "validation-set": CommandEntry(
        "Validators",
        "imports",
        "Rows that adapters are evaluated on: import, list, show, revoke.",
        "guides/validators/",
    ),
    "recipe": CommandEntry(
        "Operators", "runs.records", "Recipes: begin a new one, with every key explained.", "guides/training/"
    ),
    "run": CommandEntry(
        "Operators", "operators", "Training runs: start, follow, list, cancel.", "guides/operators/#train"
    ),
    "gate": CommandEntry(
        "Reviewers",
        "runs.gates",
        "Gates: list and show them; check and explain an adapter's verdict.",
        "guides/training/#gates",
    ),
    "review": CommandEntry(
        "Reviewers",
        "releases.reviews",
        "Adapters under review: show what you sign, approve, reject.",
        "guides/reviewers/",
    ),
    "finding": CommandEntry(
        "Reviewers",
        "releases.decisions",
        "Findings of reviewers about adapters: add, list, close.",
        "guides/reviewers/#findings",
    ),
    "delegation": CommandEntry(
        "Reviewers",
        "releases.decisions",
        "Delegates who decide in a reviewer's place: add, list, end.",
        "guides/reviewers/#delegation",
    ),
    "release": CommandEntry(
        "Units",
        "releases.releases",
        "Releases to units: request, activate, roll back, history.",
        "guides/release-owners/",
    ),
    "adapter": CommandEntry(
        "Units",
        "releases.releases",
        "Sealed adapters: list, show the whole history, revoke.",
        "guides/reviewers/#what-you-see",
    ),
    "token": CommandEntry(
        "Units", "tokens", "A unit's API keys, at most an hour long, and who renews them.", "guides/units/"
    ),
    "ledger": CommandEntry("Auditors", "ledger", "The log: read it, export it, verify it.", "guides/auditors/"),
    "witness": CommandEntry(
        "Witnesses", "witnesses", "Cosignatures of the log: request, give, accept and list them.", "formats/witness/"
    ),
    "completion": CommandEntry("Everyone", "people", "Print the shell's completion script.", "guides/command-line/"),
}
"""All commands, in the order of the help."""


_ATTRIBUTES = {"import": "imports"}
"""Name in the module, for commands whose name is a keyword of Python."""


class _Root(CommandGroup):
    """The root group, which loads each command when it is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        entry = COMMANDS.get(name)
        if entry is None:
            return None
        attribute = _ATTRIBUTES.get(name, name.replace("-", "_"))
        found = getattr(import_module(f"appliance.cli.{entry.file}"), attribute)
        assert isinstance(found, Command | CommandGroup)
        found.manual = address_of(entry.manual)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by audience, from the table and without loading them."""
        for audience in dict.fromkeys(entry.audience for entry in COMMANDS.values()):
            with formatter.section(audience):
                formatter.write_dl([(name, e.help) for name, e in COMMANDS.items() if e.audience == audience])


def _path(name: str, variable: str, help: str) -> Callable[[F], F]:
    return click.option(
        name, envvar=variable, show_envvar=True, metavar="FILE", type=click.Path(path_type=Path), help=help
    )


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        click.echo(f"appliance, version {build_version()}")
        context.exit()


@click.group(
    "appliance",
    cls=_Root,
    context_settings={"max_content_width": 110},
    example=(
        "appliance run start recipe.yaml --follow\n"
        "appliance review show clauses@1\n"
        "appliance ledger verify --trust trust.json"
    ),
)
@click.option(
    "--home",
    envvar="APPLIANCE_HOME",
    show_envvar=True,
    metavar="FOLDER",
    type=FOLDER,
    help="The appliance's data folder.",
)
@_path("--key", "APPLIANCE_KEY", "Your key file.")
@click.option("--as", "name", envvar="APPLIANCE_PRINCIPAL", show_envvar=True, metavar="NAME", help="Your name here.")
@click.option("--passphrase-fd", type=int, metavar="N", help="Read the passphrase from this descriptor.")
@click.option(
    "--passphrase-file", type=click.Path(path_type=Path), metavar="FILE", help="Read the passphrase from a 0600 file."
)
@_path("--trust", "APPLIANCE_TRUST", "The trust file that everything is checked against.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout; errors too, on stderr.")
@click.option(
    "--wide",
    is_flag=True,
    expose_value=False,
    callback=handle_wide,
    help="Do not cut or wrap lines to the terminal's width.",
)
@click.option("--yes", is_flag=True, help="Sign without asking.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the build's version and exit.",
)
@click.pass_context
def cli(
    context: click.Context,
    home: Path | None,
    key: Path | None,
    name: str | None,
    passphrase_fd: int | None,
    passphrase_file: Path | None,
    trust: Path | None,
    as_json: bool,
    yes: bool,
) -> None:
    """Train, review, release and serve adapters.

    Every decision is signed. The log of decisions can be verified independently of the service.

    The options below may be given here or after any command.
    """
    caller = context.ensure_object(Caller)
    caller.home, caller.key, caller.name, caller.trust_file = home, key, name, trust
    caller.passphrase_fd, caller.passphrase_file = passphrase_fd, passphrase_file
    caller.json, caller.yes = as_json, yes
    context.call_on_close(caller.close)


cli.manual = address_of("")


@cli.result_callback()
@click.pass_obj
def _after(caller: Caller, *_: Any, **__: Any) -> None:
    caller.print_waiting_orders()


_PATH_REMEDIES: Mapping[int | None, str] = {
    errno.EACCES: "ask its owner for access, or name another path",
    errno.EPERM: "ask its owner for access, or name another path",
    errno.EROFS: "name a path on a disk that can be written",
    errno.ENOSPC: "make room on its disk, or name a path on another one",
    errno.EDQUOT: "make room within your quota, or name a path on another disk",
    errno.ENAMETOOLONG: "name a shorter path",
}
"""Remedies for a path that the operating system refuses to a command, by the number of the error."""

_NO_ROOM: Mapping[int | None, str] = {
    errno.ENOSPC: "free some on the disk of the output, and of the folder for temporary files",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "name a path on a disk that can be written",
}
"""Remedies if an open file takes no more bytes, by the number of the error, which then comes without a path."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. docs/reference/errors.md lists the codes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(given: list[str]) -> int:
    """Run one command and return its exit code."""
    as_json, caller = "--json" in given, Caller()
    try:
        code = cli.main(args=given, prog_name="appliance", standalone_mode=False, obj=caller)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ApplianceError as error:
        return _fail(error.exit_code, error.code, error.summary, as_json, error)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail(INTERRUPTED, "interrupted", caller.interrupted(), as_json)
    except click.ClickException as error:
        return _fail(2, "usage", _usage(error), as_json)
    except BrokenPipeError:
        _drop_output()  # the reader has gone
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("APPLIANCE_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None and (remedy := _NO_ROOM.get(error.errno)):
            _drop_output()
            message = f"output: expected room to write, got {error.strerror}; {remedy}"
            return _fail(Unavailable.exit_code, Unavailable.code, message, as_json)
        if isinstance(error, OSError) and error.filename is not None and (remedy := _PATH_REMEDIES.get(error.errno)):
            message = f"path, {error.filename}: expected that this account can use it, got {error.strerror}; {remedy}"
            return _fail(Unavailable.exit_code, Unavailable.code, message, as_json)
        message = f"a defect of the appliance: {type(error).__name__}: {error}; APPLIANCE_DEBUG=1 shows where"
        return _fail(1, "defect", message, as_json)


def _drop_output() -> None:
    """Drop what standard output does not take, which the interpreter would otherwise try to write at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: click.ClickException) -> str:
    """Return click's message and the command that shows the help."""
    path = "appliance"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        path = error.ctx.command_path
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("is not a valid integer range", "is not a whole number")  # click's name of a type
    return f"{message}{' Or type' if message.endswith('?') else '; type'}: {path} --help"


def _fail(exit_code: int, code: str, message: str, as_json: bool, error: ApplianceError | None = None) -> int:
    """Print an error on stderr: its message, a line for each reason and refusal, and where the manual has its codes.

    Returns the exit code.
    """
    reasons, refusals = ((), ()) if error is None else (error.reasons, error.refusals)
    if as_json:
        sentences = message if error is None else error.sentences
        fields = {"code": code, "message": sentences, "reasons": list(reasons)}
        details = fields | {"refusals": [asdict(one) for one in refusals], "exit_code": exit_code}
        click.echo(encode_json({"error": details}), err=True)
        return exit_code
    click.echo(f"error: {plain(message)} [{code}]", err=True)
    for reason in (*reasons, *map(str, refusals)):
        click.echo(f"  {plain(reason)}", err=True)
    if exit_code != INTERRUPTED:
        places = [address_of_refusal(one.code) for one in refusals] or [address_of_error(code)]
        for place in dict.fromkeys(places):
            click.echo(f"manual: {locate(place)}", err=True)
    return exit_code
