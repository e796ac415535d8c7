"""Who calls, which appliance, and with what key: the options that every command shares, made into a client.

Imports of `client` stand inside functions, here and in every command: `--help` must answer within 0.2 s, and reading
the orders' vocabulary alone takes 0.15.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.output import say
from appliance.errors import ApplianceError, BadInput, NotAuthenticated

if TYPE_CHECKING:
    from appliance.client.support.door import About, Address, Door
    from appliance.client.support.embedded import Place
    from appliance.client.support.log import Anchor
    from appliance.client.support.profile import Profile
    from appliance.client.support.session import SavedSession
    from appliance.config.values import Folder, Settings
    from appliance.formats.log.trust import Trust
    from appliance.formats.signatures.dsse import Envelope
    from appliance.formats.signatures.keys import Ed25519Signer

PASSPHRASE_TRIES = 3
"""How often a command asks at a terminal for the passphrase of a key."""


@dataclass
class Caller:
    """Filled from the options, wherever on the line they stand."""

    home: Path | None = None
    key: Path | None = None
    name: str | None = None
    passphrase_fd: int | None = None
    passphrase_file: Path | None = None
    trust_file: Path | None = None
    json: bool = False
    yes: bool = False
    sending: str | None = None
    """The order whose answer is awaited."""
    signed: list[str] = field(default_factory=list)
    """What was recorded of this person's orders, for who leaves before the end."""
    go_on: str | None = None
    """What goes on without this command, and how to see its end."""
    address: Address | None = None
    """Elsewhere, instead of a home on this machine."""
    _closing: list[Callable[[], None]] = field(default_factory=list)
    _unlocked: Ed25519Signer | None = None

    @cached_property
    def profile(self) -> Profile | None:
        """What `appliance login` remembered, of one appliance: where another folder is named, none of it counts."""
        from appliance.client.support.profile import load_profile

        found = load_profile()
        if found is None or (self.home is not None and self.home.expanduser().resolve() != found.where):
            return None
        return found

    @cached_property
    def settings(self) -> Settings:
        from appliance.config.load import load_settings

        return load_settings(self.folder.home)

    @cached_property
    def folder(self) -> Folder:
        """Its settings are the service's own: a person may be unable to read them."""
        from appliance.config.load import find_folder

        remembered = self.profile.where if self.profile and self.home is None else None
        return find_folder(self.home or (remembered if isinstance(remembered, Path) else None))

    @property
    def where(self) -> Path | Address:
        """The appliance: its folder here, or its address elsewhere."""
        from appliance.client.support.door import Address

        found = self.address or (self.profile.where if self.profile else None)
        return found if isinstance(found, Address) else self.folder.home

    @property
    def place(self) -> Place:
        """Where this appliance and its service are."""
        from appliance.client.support.embedded import Place
        from appliance.config.keys import VARIABLES

        folder = self.folder
        return Place(folder.home, folder.socket, folder.lock, folder.logs, VARIABLES.values())

    @cached_property
    def door(self) -> Door:
        """The connection to the service; an embedded service is started when none answers."""
        from appliance.client.support.door import Door
        from appliance.client.support.embedded import start_service

        where = self.where
        if isinstance(where, Path):
            place = self.place
            door = Door(place.socket, lambda: start_service(place, tell=_tell_waiting))
        else:
            door = Door(where)
        self._closing.append(door.close)
        return door

    @property
    def about(self) -> About:
        """What the service says of itself: of the appliance that the trust file is of, given or remembered.

        Every command asks for it first, so that none prints what another appliance answers.
        """
        if self.trust is not None:
            _ = self.anchor
        return self.door.about

    @property
    def claimed(self) -> About:
        """The same where no session is opened: a log key that was rotated is not followed, since that needs one."""
        from appliance.client.support.log import check_log

        if self.trust is not None:
            check_log(self.door.about, self.trust)
        return self.door.about

    @cached_property
    def session(self) -> SavedSession:
        from appliance.client.support.session import SavedSession

        return SavedSession(self.door, self.signer, lambda: self.unlock("to open a session"), self._ask_agent)

    def _ask_agent(self, payload: bytes) -> Envelope | None:
        """The session signed by this person's agent, where it holds the key that the command names."""
        from appliance.client.support.agent import sign_session, socket_path
        from appliance.client.support.keys import read_public_key
        from appliance.formats.signatures.keys import keyid_of

        if self._unlocked is not None:
            return None
        try:
            path = socket_path(self.where, self.signer)
        except BadInput:
            # No agent can have a socket of that name: only `agent start` says so.
            return None
        return sign_session(path, payload, keyid_of(read_public_key(self.key_file))) if path.exists() else None

    def reading(self) -> Door:
        """The door, with this person's session for what is not told to strangers."""
        session = self.session
        _ = self.about
        self.door.bearer = session
        return self.door

    @property
    def has_session(self) -> bool:
        """Whether this command has read with a session: asking again costs no passphrase and no entry."""
        return self.door.bearer is not None

    @cached_property
    def trust(self) -> Trust | None:
        """The file that was named, or the one that the login at this appliance remembered."""
        from appliance.client.support.log import load_trust

        path = self.trust_file or (self.profile.trust if self.profile else None)
        return None if path is None else load_trust(path)

    @cached_property
    def anchor(self) -> Anchor:
        """The log that everything is proved against."""
        from appliance.client.support.log import anchor_of

        about = self.door.about
        if self.trust is not None and about.log_key != self.trust.log_key:
            from appliance.client.support.succession import follow

            bearer, self.door.bearer = self.door.bearer, self.session
            try:
                return follow(self.door, about, self.trust)
            finally:
                self.door.bearer = bearer
        return anchor_of(about, self.trust)

    @property
    def signer(self) -> str:
        if self.name is not None:
            return self.name
        if self.profile is None:
            raise NotAuthenticated("signer: expected --as NAME, APPLIANCE_PRINCIPAL or a login, got none of them")
        return self.profile.name

    @property
    def key_file(self) -> Path:
        """That of the profile is its owner's: under another name it is not tried."""
        if self.key is not None:
            return self.key
        if self.profile is None or self.name not in (None, self.profile.name):
            raise NotAuthenticated(
                "key: expected --key FILE, APPLIANCE_KEY or a login, got none of them; "
                "make one with: appliance key new FILE"
            )
        return self.profile.key

    def unlock(self, purpose: str) -> Ed25519Signer:
        """The person's key. The passphrase is asked for once a command, with what it is needed for first."""
        from appliance.client.support.keys import open_key

        if self._unlocked is None:
            path = self.key_file
            prompt = f"Passphrase of {path}, {purpose}"
            self._unlocked = open_key(path, lambda: self.ask_passphrase(prompt), self.again)
        return self._unlocked

    def ask_passphrase(self, prompt: str, *, confirm: bool = False) -> bytes:
        """From the descriptor or the file that was named, else from the terminal."""
        from appliance.client.support.keys import passphrase_of_descriptor, passphrase_of_file

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

    def again(self, tries: int) -> bool:
        """Whether a person at a terminal may try another passphrase after so many wrong ones."""
        if self.passphrase_fd is not None or self.passphrase_file is not None or tries >= PASSPHRASE_TRIES:
            return False
        say("That is not its passphrase. Try again.")
        return True

    def confirm(self, question: str) -> None:
        """Continues after a yes, or with --yes, which is needed without a terminal."""
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
        """What is true when a person leaves: nothing, or what was signed by then."""
        told = [f"what you signed stays recorded: {', '.join(self.signed)}"] if self.signed else []
        if self.sending is not None:
            look = "look with: appliance ledger log --last 5"
            told.append(f"whether the order {self.sending[:19]} was recorded is not known: {look}")
        told += [] if self.go_on is None else [self.go_on]
        return "; ".join(["stopped by you", *(told or ["nothing was signed"])])

    def tell_orders(self) -> None:
        """On stderr, once a command: the orders that wait for this administrator's signature. Nothing is asked for it
        that the command did not ask for: no session is opened and no key unlocked."""
        if "door" not in self.__dict__:
            return
        count = self.door.waiting
        granted = self.session.granted if count is None and "session" in self.__dict__ else None
        if granted is not None and "administrator" in granted.roles:
            with suppress(ApplianceError):
                count = len(self.door.get("/v1/orders/waiting"))
        if count:
            waits = "1 order waits" if count == 1 else f"{count} orders wait"
            say(f"{waits} for a second administrator: appliance order list")

    def close(self) -> None:
        while self._closing:
            self._closing.pop()()


def _tell_waiting(doing: str) -> None:
    say(f"waiting for the service, which {doing}")


def _ask(prompt: str) -> bytes:
    text: str = click.prompt(prompt, hide_input=True, err=True)
    return text.encode("utf-8")


def _ask_new(prompt: str) -> bytes:
    """A passphrase for a new key: checked before it is repeated, and asked for until both are the same."""
    from appliance.client.support.keys import check_passphrase

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
    """Whether there is a terminal to ask at."""
    return sys.stdin.isatty()
