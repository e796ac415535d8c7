"""The options that all commands share, and the client that they describe.

Modules of `client` are imported inside functions, here and in every command: `--help` has to respond within 0.2 s, and
importing the order models alone takes 0.15 s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.output import say
from appliance.errors import ApplianceError, BadInput, NotAuthenticated, Unavailable

if TYPE_CHECKING:
    from appliance.api.log import About
    from appliance.client.evidence import ProvedLookup
    from appliance.client.support.connection import Address, Connection
    from appliance.client.support.log import Anchor
    from appliance.client.support.profile import Profile
    from appliance.client.support.service_process import Place
    from appliance.client.support.session import SavedSession
    from appliance.config.folder import ApplianceFolder
    from appliance.config.settings import Settings
    from appliance.domain.actions.proposals import Proposal
    from appliance.domain.core.lookup import OrderInput
    from appliance.formats.log.trust import Trust
    from appliance.formats.signatures.dsse import Envelope
    from appliance.formats.signatures.keys import Ed25519Signer

PASSPHRASE_TRIES = 3
"""Number of times that a command asks at a terminal for the passphrase of a key."""


@dataclass
class Caller:
    """The person who runs a command, the appliance and the key, from the options at any place on the line."""

    home: Path | None = None
    key: Path | None = None
    name: str | None = None
    passphrase_fd: int | None = None
    passphrase_file: Path | None = None
    trust_file: Path | None = None
    json: bool = False
    yes: bool = False
    sending: str | None = None
    """Digest of the order whose response is awaited."""
    signed: list[str] = field(default_factory=list)
    """Recorded orders of this command, for the message after an interruption."""
    continuation: str | None = None
    """Text about the work that continues without this command, and how to see its result."""
    address: Address | None = None
    """Address of an appliance on another machine, instead of a home on this one."""
    _closing: list[Callable[[], None]] = field(default_factory=list)
    _unlocked: Ed25519Signer | None = None
    restores: bool = False
    """True if this command restores a log that lacks entries which this account may have seen."""
    _has_no_session: bool = False
    """True if this command opens no session."""

    @cached_property
    def profile(self) -> Profile | None:
        """The profile that `appliance login` saved, or None if --home names another appliance."""
        from appliance.client.support.profile import load_profile

        found = load_profile()
        if found is None or (self.home is not None and self.home.expanduser().resolve() != found.where):
            return None
        return found

    @cached_property
    def settings(self) -> Settings:
        """The settings of the appliance on this machine."""
        from appliance.config.settings import load_settings

        return load_settings(self.folder.home)

    @cached_property
    def folder(self) -> ApplianceFolder:
        """The data folder. Its settings may be readable by the service only."""
        from appliance.config.folder import find_folder

        remembered = self.profile.where if self.profile and self.home is None else None
        return find_folder(self.home or (remembered if isinstance(remembered, Path) else None))

    @property
    def where(self) -> Path | Address:
        """The appliance: its folder on this machine, or its address elsewhere."""
        from appliance.client.support.connection import Address

        found = self.address or (self.profile.where if self.profile else None)
        return found if isinstance(found, Address) else self.folder.home

    @property
    def place(self) -> Place:
        """The paths of this appliance and its service."""
        from appliance.client.support.service_process import Place

        folder = self.folder
        return Place(folder.home, folder.socket, folder.lock, folder.logs, _read_variables)

    @cached_property
    def connection(self) -> Connection:
        """The connection to the service. An embedded service is started if none responds."""
        from appliance.client.support.connection import Connection
        from appliance.client.support.service_process import start_service

        where = self.where
        if isinstance(where, Path):
            place = self.place
            connection = Connection(place.socket, lambda: start_service(place, on_progress=_print_waiting))
        else:
            connection = Connection(where)
        self._closing.append(connection.close)
        return connection

    @property
    def about(self) -> About:
        """The service's description, after a check that it is the service of the trust file.

        Its log has to continue the one that this account has seen. Every command reads this first, so that it prints
        nothing of another log.
        """
        _ = self.anchor
        return self.connection.about

    @property
    def about_without_session(self) -> About:
        """The service's description for commands that open no session.

        A later rotation of the log key is then unproved, because its proof needs a session.
        """
        self._has_no_session = True
        return self.about

    @cached_property
    def session(self) -> SavedSession:
        """The session of this person, opened when it is needed."""
        from appliance.client.support.session import SavedSession

        return SavedSession(
            self.connection,
            self.signer,
            lambda: self.unlock("to open a session"),
            self._ask_agent,
            self._ask_identity,
        )

    def _ask_identity(self, address: str) -> str:
        """Return the ID token that the person got at the console's page, pasted at the terminal or in a file.

        Raises: NotAuthenticated without a terminal.
        """
        if not is_interactive():
            raise NotAuthenticated(
                "identity: expected a terminal to ask for the ID token at, got none; type: appliance login",
                code="identity-required",
            )
        with suppress(ImportError):
            import readline  # noqa: F401 - without it, a terminal cuts a pasted line at 4,095 characters
        say(f"Policy requires your identity. Open this address in a browser, and sign in there:\n{address}")
        token: str = click.prompt("ID token that the page shows", err=True)
        return token.strip()

    def _ask_agent(self, payload: bytes) -> Envelope | None:
        """Return the session statement signed by this person's agent.

        The result is None if no agent holds the key that the command names.
        """
        from appliance.client.support.agent import sign_session, socket_path
        from appliance.client.support.profile import read_public_key
        from appliance.formats.signatures.keys import keyid_of

        if self._unlocked is not None:
            return None
        try:
            path = socket_path(self.where, self.signer)
        except BadInput:
            # The path is too long for a socket. Only `agent start` reports that.
            return None
        return sign_session(path, payload, keyid_of(read_public_key(self.key_file))) if path.exists() else None

    def reading(self) -> Connection:
        """Return the connection with this person's session."""
        session = self.session
        _ = self.about
        self.connection.bearer = session
        return self.connection

    @cached_property
    def lookup(self) -> ProvedLookup:
        """The source of the values that this person's orders are completed with."""
        from appliance.client.evidence import ProvedLookup

        return ProvedLookup(self.reading, lambda: self.anchor)

    def propose(
        self,
        action: str,
        values: Mapping[str, Any],
        *,
        texts: Mapping[str, str | None] | None = None,
        documents: Mapping[str, bytes] | None = None,
    ) -> Proposal:
        """Return this person's order of an action, to sign. Texts that are None are left out."""
        from appliance.domain.core.lookup import OrderInput

        written = {name: text for name, text in (texts or {}).items() if text is not None}
        return self.propose_input(action, OrderInput(dict(values), written, documents=dict(documents or {})))

    def propose_input(self, action: str, given: OrderInput) -> Proposal:
        """Return this person's order of an action, to sign, with its derived fields filled from proved entries."""
        from appliance.client.support.orders import propose
        from appliance.domain.actions.registry import ACTIONS

        return propose(self.about, self.signer, ACTIONS[action].order, given, self.lookup)

    @property
    def has_session(self) -> bool:
        """True if this command has read with a session.

        Further reading then needs no passphrase and makes no entry.
        """
        return self.connection.bearer is not None

    @cached_property
    def trust(self) -> Trust | None:
        """The trust file of --trust or of the login, or None."""
        from appliance.client.support.log import load_trust

        path = self.trust_file or (self.profile.trust if self.profile else None)
        return None if path is None else load_trust(path)

    @cached_property
    def anchor(self) -> Anchor:
        """The log against which everything is proved. It continues the one that this account has seen."""
        from appliance.client.support.log import check_newest

        anchor = self._find_anchor()
        if not self.restores:
            say(*check_newest(self.connection, anchor, self.trust, self.connection.about, self._reading_log))
        return anchor

    @property
    def _reading_log(self) -> Callable[[], AbstractContextManager[None]] | None:
        return None if self._has_no_session else self._in_session

    @contextmanager
    def _in_session(self) -> Iterator[None]:
        """Read in the person's session, before the connection has it for all requests."""
        bearer, self.connection.bearer = self.connection.bearer, self.session
        try:
            yield
        finally:
            self.connection.bearer = bearer

    def _find_anchor(self) -> Anchor:
        from appliance.client.support.log import anchor_of, check_log, find_anchor, find_anchor_without_session

        about, trust = self.connection.about, self.trust
        if trust is None or about.log_keys == trust.log_keys:
            return anchor_of(about, trust)
        check_log(about, trust)
        if self._has_no_session:
            return find_anchor_without_session(about, trust)
        with self._in_session():
            return find_anchor(self.connection, about, trust)

    def save_newest_checkpoint(self) -> None:
        """Save the checkpoint that covers this command's orders, so that a log without them is refused later."""
        from appliance.client.support.log import check_newest

        if self.restores:
            return
        with suppress(Unavailable):
            say(*check_newest(self.connection, self.anchor, self.trust, self.connection.describe(), self._reading_log))

    @property
    def signer(self) -> str:
        """The person's name, from --as or the login."""
        from appliance.formats.core.fields import parse_identifier

        if self.name is not None:
            return parse_identifier(self.name, "name")
        if self.profile is None:
            raise NotAuthenticated("signer: expected --as NAME, APPLIANCE_PRINCIPAL or a login, got none of them")
        return self.profile.name

    @property
    def key_file(self) -> Path:
        """The key file, from --key or the login. A login's key is not used with another name."""
        if self.key is not None:
            return self.key
        if self.profile is None or self.name not in (None, self.profile.name):
            raise NotAuthenticated(
                "key: expected --key FILE, APPLIANCE_KEY or a login, got none of them; "
                "make one with: appliance key new FILE"
            )
        return self.profile.key

    def unlock(self, purpose: str) -> Ed25519Signer:
        """Return the person's key. The passphrase is asked for once per command, with the purpose."""
        from appliance.client.support.profile import open_key

        if self._unlocked is None:
            path = self.key_file
            prompt = f"Passphrase of {path}, {purpose}"
            self._unlocked = open_key(path, lambda: self.ask_passphrase(prompt), self.can_try_passphrase_again)
        return self._unlocked

    def ask_passphrase(self, prompt: str, *, confirm: bool = False) -> bytes:
        """Return the passphrase from --passphrase-fd, --passphrase-file or the terminal."""
        from appliance.client.support.profile import passphrase_of_descriptor, passphrase_of_file

        if self.passphrase_fd is not None and self.passphrase_file is not None:
            raise BadInput("passphrase: expected --passphrase-fd or --passphrase-file, got both")
        if self.passphrase_fd is not None:
            return passphrase_of_descriptor(self.passphrase_fd)
        if self.passphrase_file is not None:
            return passphrase_of_file(self.passphrase_file)
        if not is_interactive():
            raise NotAuthenticated(
                "passphrase: expected a terminal to ask at, --passphrase-fd N or --passphrase-file FILE, got none"
            )
        return _ask_new(prompt) if confirm else _ask(prompt)

    def can_try_passphrase_again(self, tries: int) -> bool:
        """Return True if a person at a terminal may try another passphrase."""
        if self.passphrase_fd is not None or self.passphrase_file is not None or tries >= PASSPHRASE_TRIES:
            return False
        say("That is not its passphrase. Try again.")
        return True

    def confirm(self, question: str) -> None:
        """Return after a yes or with --yes, which is required without a terminal.

        Raises: click.Abort after a no; BadInput without a terminal and --yes.
        """
        if self.yes:
            return
        if not is_interactive():
            raise BadInput("confirmation: expected --yes, since there is no terminal to ask at, got none")
        while True:
            answer: str = click.prompt(f"{question} [y/N]", default="n", show_default=False, err=True)
            if answer.strip().lower() in ("y", "yes"):
                return
            if answer.strip().lower() in ("n", "no"):
                raise click.Abort
            say("Type y or n. A passphrase is asked for by its name, and is not shown as you type.")

    def interrupted(self) -> str:
        """Return the message after an interruption: what was signed, and what continues."""
        lines = [f"what you signed stays recorded: {', '.join(self.signed)}"] if self.signed else []
        if self.sending is not None:
            hint = "look with: appliance ledger log --last 5"
            lines.append(f"whether the order {self.sending[:19]} was recorded is not known: {hint}")
        lines += [] if self.continuation is None else [self.continuation]
        return "; ".join(["stopped by you", *(lines or ["nothing was signed"])])

    def print_waiting_orders(self) -> None:
        """Print on stderr, once per command, how many orders wait for this administrator's countersignature.

        It opens no session and unlocks no key for this.
        """
        if "connection" not in self.__dict__:
            return
        from appliance.api.people import WaitingOrder

        count = self.connection.waiting
        granted = self.session.granted if count is None and "session" in self.__dict__ else None
        if granted is not None and "administrator" in granted.roles:
            with suppress(ApplianceError):
                count = len(self.connection.get("/v1/orders/waiting", list[WaitingOrder]))
        if count:
            waits = "1 order waits" if count == 1 else f"{count} orders wait"
            say(f"{waits} for a second administrator: appliance order list")

    def close(self) -> None:
        """Close the connections."""
        while self._closing:
            self._closing.pop()()


def _read_variables() -> dict[str, str]:
    from appliance.config.settings import select_variables

    return select_variables()


def _print_waiting(doing: str) -> None:
    say(f"waiting for the service, which {doing}")


def _ask(prompt: str) -> bytes:
    text: str = click.prompt(prompt, hide_input=True, err=True)
    return text.encode("utf-8")


def _ask_new(prompt: str) -> bytes:
    """Return a passphrase for a new key, entered twice."""
    from appliance.client.support.profile import check_passphrase

    while True:
        passphrase = _ask(prompt)
        try:
            check_passphrase(passphrase)
        except BadInput as error:
            say(f"{error.message}. Try again.")
            continue
        if _ask("Repeat for confirmation") == passphrase:
            return passphrase
        say("The two differ. Try again.")


def is_interactive() -> bool:
    """Return True if there is a terminal to ask at."""
    return sys.stdin.isatty()
