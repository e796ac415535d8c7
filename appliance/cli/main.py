"""The command line's front: which command is in which file, and how every error ends.

Files are loaded when one of their commands is asked for, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import FOLDER, CommandGroup, be_wide
from appliance.cli.support.output import encode_json, plain
from appliance.errors import ApplianceError

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130
BROKEN_PIPE = 141
"""128 + the signal, as shells count."""


class Entry(NamedTuple):
    """The file of a command, and the line that says what it is for."""

    audience: str
    file: str
    help: str


COMMANDS = {
    "init": Entry("Administrators", "administrators", "Make an appliance: keys, database, first policy set."),
    "login": Entry(
        "Everyone", "logins", "Remember your name, key and appliance, so that no command needs --as and --key."
    ),
    "logout": Entry("Everyone", "logins", "Forget it, and end the session at the service."),
    "whoami": Entry("Everyone", "logins", "Who you are to which appliance: roles, key, log and trust file."),
    "console": Entry("Everyone", "console", "Sign a browser in: print an address that works once."),
    "agent": Entry(
        "Everyone", "logins", "Hold your unlocked key for some minutes; reading then asks for no passphrase."
    ),
    "key": Entry("Everyone", "people", "A person's own key: make, show, prove, rotate, revoke."),
    "principal": Entry(
        "Administrators", "administrators", "People and units: enrol, list, grant, replace a key, revoke."
    ),
    "order": Entry("Administrators", "administrators", "Orders that wait for a second administrator."),
    "policy": Entry("Administrators", "policies", "The policy set: show, adopt, test, compare."),
    "rules": Entry("Administrators", "rules", "The rules version: show it, raise it at an upgrade."),
    "clock": Entry("Administrators", "clock", "The log's time: show it, reset it after a clock ran ahead."),
    "log-key": Entry("Administrators", "retention", "The log's own key: rotate it."),
    "text": Entry("Administrators", "retention", "Printed names and free texts: erase one; the log still verifies."),
    "hold": Entry("Administrators", "retention", "Legal holds: no text about the subject of one is erased."),
    "serve": Entry("Administrators", "units", "Run the service in the foreground."),
    "stop": Entry("Administrators", "service", "End the running service, and wait until it has ended."),
    "status": Entry("Administrators", "service", "One screen: the service, its log, its jobs, and pending decisions."),
    "doctor": Entry("Administrators", "service", "Check everything that an appliance needs; say what to do."),
    "storage": Entry("Administrators", "service", "What uses the disk, in bytes."),
    "config": Entry("Administrators", "service", "Every setting: value, source, default, meaning."),
    "base": Entry("Operators", "operators", "Base models: import and list."),
    "dataset": Entry("Operators", "operators", "Datasets: import, list, show."),
    "import": Entry("Operators", "data.imports", "Imports that were ordered: list, cancel."),
    "validation-set": Entry(
        "Validators", "data.validation_sets", "Rows that judge adapters: import, list, show, revoke."
    ),
    "recipe": Entry("Operators", "runs.recipes", "Recipes: begin a new one, with every key explained."),
    "run": Entry("Operators", "operators", "Training runs: start, follow, list, cancel."),
    "gate": Entry("Reviewers", "runs.gates", "Gates: the sets at hand; check and explain what they decided."),
    "review": Entry("Reviewers", "reviewers", "Adapters to judge: show what a signature binds, approve, reject."),
    "finding": Entry("Reviewers", "reviews.findings", "What reviewers found of adapters: add, list, close."),
    "delegation": Entry("Reviewers", "reviews.delegations", "Who decides in a reviewer's place: add, list, end."),
    "release": Entry("Units", "units", "Which adapter answers a unit's task: request, activate, roll back, history."),
    "adapter": Entry("Units", "units", "Sealed adapters: list, show the whole history, revoke."),
    "token": Entry("Units", "tokens.applications", "A unit's API keys, at most an hour long, and who renews them."),
    "ledger": Entry("Auditors", "audit.auditors", "The log: read it, export it, verify it."),
    "witness": Entry("Witnesses", "audit.witnesses", "Watch a log: ask for cosignatures, give them, take them in."),
    "completion": Entry("Everyone", "people", "Print the shell's completion script."),
}


_ATTRIBUTES = {"import": "imports"}
"""Where a command's name is a word of Python's."""


class _Root(CommandGroup):
    """Knows every command by name and loads the one that is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        entry = COMMANDS.get(name)
        if entry is None:
            return None
        attribute = _ATTRIBUTES.get(name, name.replace("-", "_"))
        found = getattr(import_module(f"appliance.cli.{entry.file}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """By audience, from the table above: nothing is loaded to list it."""
        for audience in dict.fromkeys(entry.audience for entry in COMMANDS.values()):
            with formatter.section(audience):
                formatter.write_dl([(name, e.help) for name, e in COMMANDS.items() if e.audience == audience])


def _path(name: str, variable: str, help: str) -> Callable[[F], F]:
    return click.option(
        name, envvar=variable, show_envvar=True, metavar="FILE", type=click.Path(path_type=Path), help=help
    )


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
    callback=be_wide,
    help="Do not cut or wrap lines to the terminal's width.",
)
@click.option("--yes", is_flag=True, help="Sign without asking.")
@click.version_option(package_name="appliance", prog_name="appliance")
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

    Every decision is signed, and the log of decisions can be verified independently of the service.

    The options below may be given here or after any command.
    """
    caller = context.ensure_object(Caller)
    caller.home, caller.key, caller.name, caller.trust_file = home, key, name, trust
    caller.passphrase_fd, caller.passphrase_file = passphrase_fd, passphrase_file
    caller.json, caller.yes = as_json, yes
    context.call_on_close(caller.close)


@cli.result_callback()
@click.pass_obj
def _after(caller: Caller, *_: Any, **__: Any) -> None:
    caller.tell_orders()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and leaves with its exit code; docs/reference/errors.md lists them."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(given: list[str]) -> int:
    as_json, caller = "--json" in given, Caller()
    try:
        code = cli.main(args=given, prog_name="appliance", standalone_mode=False, obj=caller)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ApplianceError as error:
        return _fail(error.exit_code, error.code, error.message, as_json, error.reasons)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail(INTERRUPTED, "interrupted", caller.interrupted(), as_json)
    except click.ClickException as error:
        return _fail(2, "usage", _usage(error), as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("APPLIANCE_DEBUG"):
            raise
        message = f"a defect of the appliance: {type(error).__name__}: {error}; APPLIANCE_DEBUG=1 shows where"
        return _fail(1, "defect", message, as_json)


def _usage(error: click.ClickException) -> str:
    """click's message, and where to read on."""
    path = "appliance"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        path = error.ctx.command_path
    return f"{' '.join(error.format_message().split()).rstrip('.')}; type: {path} --help"


def _fail(exit_code: int, code: str, message: str, as_json: bool, reasons: Sequence[str] = ()) -> int:
    """The error on stderr; every reason is on a line of its own."""
    if as_json:
        value = {"error": {"code": code, "message": message, "reasons": list(reasons), "exit_code": exit_code}}
        click.echo(encode_json(value), err=True)
        return exit_code
    joined = "; ".join(reasons)
    click.echo(f"error: {plain(message.removesuffix(f': {joined}') if reasons else message)} [{code}]", err=True)
    for reason in reasons:
        click.echo(f"  {plain(reason)}", err=True)
    return exit_code
