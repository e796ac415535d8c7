"""appliance-witness: cosigns a log from another machine if the log only grew since the last cosignature.

    appliance-witness new-key w1.key --name witness.example/w1
    appliance-witness cosign REQUEST --key w1.key --name witness.example/w1 --log VKEY --state log.state --output FILE
    appliance-witness accept-restoration RESTORATION --key w1.key --name witness.example/w1 --log trust.json \
        --state log.state --output FILE

The state file contains the last cosigned checkpoint of the log. The new state is on disk before the cosignature is
output. The program needs Python and `cryptography`: no database, no network.

Exit codes: 0 cosigned, 2 bad input, 3 wrong passphrase, 4 another log or no state, 5 not what was seen last, 6 a
signature or the history does not hold, 7 the clock, a lock or the disk.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import os
import secrets
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from appliance.build import add_version_option
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.acl import is_private
from appliance.formats.core.digest import parse_digest
from appliance.formats.core.fields import show
from appliance.formats.core.merkle import EMPTY_ROOT, verify_consistency
from appliance.formats.core.text import is_visible
from appliance.formats.log.checkpoint import (
    Checkpoint,
    cosign,
    open_checkpoint,
    parse_checkpoint,
    verify_cosignature,
    witness_vkey_of,
)
from appliance.formats.log.note import add_signature, check_key_name, encode_note, parse_note, parse_vkey
from appliance.formats.log.proof import MAX_REQUEST_BYTES, WitnessRequest, parse_request
from appliance.formats.log.restoration import MAX_RESTORATION_BYTES, parse_restoration, verify_restoration
from appliance.formats.log.trust import parse_trust
from appliance.formats.signatures.keys import (
    NONCE_BYTES,
    SALT_BYTES,
    Signer,
    encode_key_file,
    generate_ed25519,
    parse_key_file,
    parse_key_file_spki,
)

_MAX_FILE_BYTES = 65_536
_MIN_PASSPHRASE_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness: its name and signing key, and the key of the log that it watches."""

    name: str
    signer: Signer
    log_vkey: str

    @property
    def vkey(self) -> str:
        """Return the witness's own vkey."""
        return witness_vkey_of(self.name, self.signer)

    @property
    def origin(self) -> str:
        """Return the name of the log."""
        return parse_vkey(self.log_vkey).name


@dataclass(frozen=True, slots=True)
class SeenCheckpoint:
    """The last cosigned checkpoint, and the time of the cosignature in seconds since 1970."""

    checkpoint: Checkpoint
    time_s: int


NO_KNOWN_HEAD = SeenCheckpoint(Checkpoint("none", 0, EMPTY_ROOT), 0)
"""The state before the first cosignature."""


def answer(data: bytes, seen: SeenCheckpoint, witness: Witness, now_s: int) -> bytes:
    """Return the request's checkpoint with the witness's line, a signed note, if it continues the last one.

    The last checkpoint itself is cosigned again, whatever size the request starts from: only the time is new. A caller
    that lost the last cosignature gets one.

    Raises: NotFound for another log; Conflict for a shorter log or another old size; Tampered for another history or an
    invalid signature; Unavailable if the clock is behind the last cosignature.
    """
    request = parse_request(data)
    checkpoint = _open_checkpoint(request, witness)
    if checkpoint != seen.checkpoint:
        _check_growth(request, checkpoint, seen.checkpoint)
    return _cosign(request.checkpoint, seen, witness, now_s)


def _open_checkpoint(request: WitnessRequest, witness: Witness) -> Checkpoint:
    origin = parse_checkpoint(parse_note(request.checkpoint).text).origin
    if origin != witness.origin:
        raise NotFound(f"log: expected {show(witness.origin)}, which this witness watches, got {show(origin)}")
    return open_checkpoint(request.checkpoint, witness.log_vkey)


def _check_growth(request: WitnessRequest, new: Checkpoint, seen: Checkpoint) -> None:
    if new.size < seen.size:
        raise Conflict(
            f"log checkpoint, size: expected at least {seen.size}, which was seen, got {new.size}: "
            "an old request, or a log that lost its end",
            code="shorter-log",
        )
    if new.size == seen.size and new.root != seen.root:
        raise Tampered(
            f"log checkpoint of size {new.size}, root: expected {seen.root.hex()}, got {new.root.hex()}: "
            "the log signed two histories; the state file and this request prove it, keep both",
            code="split-view",
        )
    if request.old != seen.size:
        raise Conflict(
            f"witness request, old: expected {seen.size}, the size seen last, got {request.old}; "
            f"have the log make a request from {seen.size}",
            code="old-size",
        )
    verify_consistency(request.old, new.size, request.hashes, seen.root, new.root)


def parse_state(data: bytes, witness: Witness) -> SeenCheckpoint:
    """Parse a state file.

    Raises: Tampered if the witness's own signature is invalid; Conflict if it is another log's state.
    """
    try:
        note = parse_note(data)
        checkpoint = parse_checkpoint(note.text)
        time_s = verify_cosignature(note, witness.vkey)
    except (BadInput, Tampered) as error:
        raise Tampered(f"state file: {error.message}") from None
    if checkpoint.origin != witness.origin:
        raise Conflict(f"state file, log: expected {show(witness.origin)}, got {show(checkpoint.origin)}")
    return SeenCheckpoint(checkpoint, time_s)


def cosign_file(request: Path, state: Path, out: Path | None, witness: Witness, *, first: bool = False) -> bytes:
    """Return the cosigned checkpoint, which is also the new state, and write it to `out` if that is given.

    `first` creates the state file. A power failure at any point leaves the old or the new state, and the same request
    then gives the same checkpoint again.
    """
    if out is not None and out.resolve() in (state.resolve(), request.resolve()):
        raise BadInput(f"output, {out}: expected a file of its own, got the state or the request")
    with _hold_lock(state):
        seen = _load_seen(state, witness, first)
        cosigned = answer(_read(request, "witness request", MAX_REQUEST_BYTES), seen, witness, int(time.time()))
        _replace(state, cosigned, "state file")
        if out is not None:
            _replace(out, cosigned, "output")
        return cosigned


def accept_restoration(
    file: Path, state: Path, out: Path | None, witness: Witness, administrators: Collection[str], *, signatures: int = 2
) -> bytes:
    """Step back to the restored log's checkpoint, and return it cosigned, as `cosign_file` does.

    The administrators' signatures and the entry are verified first, and the last checkpoint must be one of those that
    they give up. It stays beside the state file with the restoration, so that the witness can show what was lost.

    Raises: Tampered if the restoration is not valid or gives up other checkpoints; Unavailable if the clock is behind.
    """
    if out is not None and out.resolve() in (state.resolve(), file.resolve()):
        raise BadInput(f"output, {out}: expected a file of its own, got the state or the restoration")
    with _hold_lock(state):
        seen = _load_seen(state, witness, first=False)
        data = _read(file, "restoration", MAX_RESTORATION_BYTES)
        found = verify_restoration(parse_restoration(data), [witness.log_vkey], administrators, signatures=signatures)
        found.step.check(seen.checkpoint, seen.time_s)
        now_s = int(time.time())
        if now_s < found.step.ordered_s:
            # It would give up what this witness sees until then, too.
            raise Unavailable(
                f"clock: expected a time after the order of {found.step.ordered_at}, got {now_s}; set this machine's "
                "clock if it is behind, else ask the administrators for an order with its own time"
            )
        cosigned = _cosign(found.note, seen, witness, now_s)
        record = f"{state.name}.{seen.checkpoint.size}-{seen.time_s}"
        old = _read(state, "state file", MAX_REQUEST_BYTES + _MAX_FILE_BYTES)
        _replace(state.with_name(f"{record}.lost"), old, "lost checkpoint")
        _replace(state.with_name(f"{record}.restoration"), data, "restoration")
        _replace(state, cosigned, "state file")
        if out is not None:
            _replace(out, cosigned, "output")
        return cosigned


def _cosign(data: bytes, seen: SeenCheckpoint, witness: Witness, now_s: int) -> bytes:
    """Return the note with the witness's line.

    Raises: Unavailable if the clock is behind the last cosignature.
    """
    if now_s < seen.time_s:
        raise Unavailable(f"clock: expected at least {seen.time_s}, the time of the last cosignature, got {now_s}")
    note = parse_note(data)
    cosigned = add_signature(note, cosign(note, witness.name, witness.signer, now_s))
    # A faulty signature must not become the state, since the state could not be read again.
    verify_cosignature(cosigned, witness.vkey)
    return encode_note(cosigned)


def _load_seen(state: Path, witness: Witness, first: bool) -> SeenCheckpoint:
    if state.exists():
        if first:
            raise Conflict(
                f"state file, {state}: expected none before the first request, got one; repeat without --first"
            )
        return parse_state(_read(state, "state file", MAX_REQUEST_BYTES + _MAX_FILE_BYTES), witness)
    if not first:
        raise NotFound(
            f"state file, {state}: expected what this witness saw last, got nothing; do not replace "
            "a lost state: --first trusts the log as it is now"
        )
    return NO_KNOWN_HEAD


@contextmanager
def _hold_lock(state: Path) -> Iterator[None]:
    """Hold the lock of a state, so that only one run uses it.

    The lock is a file beside the state, since the state file itself is replaced.
    """
    path = state.with_name(f"{state.name}.lock")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Unavailable(f"lock, {path}: expected it to open, got {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Unavailable(
            f"lock, {path}: expected it to be free, got one held by another run of this witness"
        ) from None
    finally:
        os.close(handle)


def _replace(path: Path, data: bytes, what: str) -> None:
    """Replace a file durably. After a power failure the file is the complete old or the complete new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Unavailable(f"{what}, {path}: expected it to be written, got {error.strerror}") from None


def _read(path: Path, what: str, limit: int, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            if private and not is_private(file.fileno(), os.geteuid()):
                mode = os.fstat(file.fileno()).st_mode & 0o777
                raise Denied(f"{what}, {path}: expected mode 0600, readable by its owner alone, got {mode:04o}")
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise NotFound(f"{what}, {path}: expected a file, got nothing") from None
    except OSError as error:
        raise Unavailable(f"{what}, {path}: expected it to be readable, got {error.strerror}") from None
    if len(data) > limit:
        raise TooLarge(f"{what}, {path}: expected at most {limit} bytes, got more")
    return data


def load_log_key(given: str) -> str:
    """Return a vkey unchanged, or the log key of the trust file that is named."""
    try:
        parse_vkey(given)
    except BadInput as error:
        if not os.path.isfile(given):
            raise BadInput(f"log: expected a vkey or a trust file, got {show(given)} ({error.message})") from None
        return parse_trust(_read(Path(given), "trust file", _MAX_FILE_BYTES)).log_key
    return given


def list_administrators(given: str, keyids: Sequence[str], option: str = "--log") -> tuple[str, ...]:
    """Return the key ids of the administrators whom an owner trusts: those given, else those of the trust file.

    `option` is the option of the command that names the trust file.

    Raises: BadInput if there are none, or one is malformed.
    """
    for keyid in keyids:
        parse_digest(keyid, "administrator")
    if keyids:
        return tuple(keyids)
    if not os.path.isfile(given):
        raise BadInput(
            f"administrators: expected --administrator-key KEYID twice, or {option} with the trust file, got neither"
        )
    return tuple(keyid for _, keyid in parse_trust(_read(Path(given), "trust file", _MAX_FILE_BYTES)).administrators)


def create_key(path: Path, passphrase: bytes) -> Signer:
    """Create an encrypted key in a new file that only its owner can read."""
    if len(passphrase.decode("utf-8", "replace")) < _MIN_PASSPHRASE_CHARACTERS:
        raise BadInput(f"passphrase: expected at least {_MIN_PASSPHRASE_CHARACTERS} characters, got fewer")
    signer = generate_ed25519()
    salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    data = encode_key_file(signer.private, passphrase, salt=salt, nonce=nonce)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise Conflict(f"key file, {path}: expected a name that is free, got an existing file") from None
    except OSError as error:
        raise Unavailable(f"key file, {path}: expected it to be written, got {error.strerror}") from None
    return signer


# Command line.


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except ApplianceError as error:
        print(f"appliance-witness: {_escape(error.message)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appliance-witness",
        description="Cosign the checkpoints of a log that only grows, on a machine of your own.",
    )
    add_version_option(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new_key = commands.add_parser("new-key", help="make an encrypted key and print its vkey")
    vkey = commands.add_parser("vkey", help="print a key's vkey, for the log's policy; needs no passphrase")
    sign = commands.add_parser("cosign", help="cosign the checkpoint of a request")
    accept = commands.add_parser(
        "accept-restoration", help="step back to a restored log's checkpoint, as two administrators ordered, and cosign"
    )
    runs = ((new_key, _run_new_key), (vkey, _run_vkey), (sign, _run_cosign), (accept, _run_accept_restoration))
    for command, run in runs:
        command.set_defaults(run=run)
        command.add_argument(
            "--name", metavar="NAME", required=True, help="the witness's name, such as witness.example/w1"
        )
    for command in (new_key, vkey):
        command.add_argument("key", metavar="FILE", type=Path)
    for command in (new_key, sign, accept):
        command.add_argument(
            "--passphrase-file",
            metavar="FILE",
            type=Path,
            help="a file with the passphrase in its first line; else a prompt",
        )
    sign.add_argument("request", metavar="REQUEST", type=Path, help="the request file from the log's operator")
    for command in (sign, accept):
        command.add_argument("--key", metavar="FILE", type=Path, required=True)
        command.add_argument("--log", metavar="LOG", required=True, help="the log's vkey, or the trust file with it")
        command.add_argument("--state", metavar="FILE", type=Path, required=True, help="what this witness saw last")
        command.add_argument(
            "--output", metavar="FILE", type=Path, help="write the cosigned checkpoint here; else to stdout"
        )
    accept.add_argument("restoration", metavar="RESTORATION", type=Path, help="the file from the log's operator")
    accept.add_argument(
        "--administrator-key",
        metavar="KEYID",
        action="append",
        default=[],
        help="the key id of an administrator whom you trust; repeat it; else those of the trust file",
    )
    accept.add_argument(
        "--single-administrator", action="store_true", help="one signature is enough, at a site with one administrator"
    )
    sign.add_argument("--first", action="store_true", help="create the state file, and trust the log as it is now")
    return parser


def _run_new_key(given: argparse.Namespace) -> None:
    check_key_name(given.name)
    print(witness_vkey_of(given.name, create_key(given.key, _read_passphrase(given.passphrase_file, confirm=True))))


def _run_vkey(given: argparse.Namespace) -> None:
    print(witness_vkey_of(given.name, parse_key_file_spki(_read(given.key, "key file", _MAX_FILE_BYTES))))


def _run_cosign(given: argparse.Namespace) -> None:
    witness = _open_witness(given)
    _print_cosigned(given, witness, cosign_file(given.request, given.state, given.output, witness, first=given.first))


def _run_accept_restoration(given: argparse.Namespace) -> None:
    administrators = list_administrators(given.log, given.administrator_key)
    witness, signatures = _open_witness(given), 1 if given.single_administrator else 2
    cosigned = accept_restoration(
        given.restoration, given.state, given.output, witness, administrators, signatures=signatures
    )
    _print_cosigned(given, witness, cosigned)


def _open_witness(given: argparse.Namespace) -> Witness:
    log_vkey = load_log_key(given.log)
    data = _read(given.key, "key file", _MAX_FILE_BYTES, private=True)
    parse_key_file_spki(data)
    return Witness(given.name, parse_key_file(data, _read_passphrase(given.passphrase_file)), log_vkey)


def _print_cosigned(given: argparse.Namespace, witness: Witness, cosigned: bytes) -> None:
    for line in describe(cosigned, witness):
        print(line, file=sys.stderr)
    if given.output is None:
        sys.stdout.write(cosigned.decode("utf-8"))


def describe(cosigned: bytes, witness: Witness) -> Iterator[str]:
    """Yield lines that describe a cosignature, for the person who compares them with the log."""
    seen = parse_state(cosigned, witness)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seen.time_s))
    yield f"log   {_escape(seen.checkpoint.origin)}"
    yield f"size  {seen.checkpoint.size}"
    yield f"root  {seen.checkpoint.root.hex()}"
    yield f"time  {when}, cosigned by {_escape(witness.name)}"


def _read_passphrase(path: Path | None, *, confirm: bool = False) -> bytes:
    if path is not None:
        return _read(path, "passphrase file", _MAX_FILE_BYTES, private=True).partition(b"\n")[0].removesuffix(b"\r")
    try:
        given = getpass.getpass("Passphrase: ")
        if confirm and getpass.getpass("Again: ") != given:
            raise BadInput("passphrase: expected the same twice, got two")
    except EOFError:
        raise BadInput("passphrase: expected one on the terminal, got none; --passphrase-file names a file") from None
    return given.encode("utf-8")


def _escape(text: str) -> str:
    """Return the text with control characters escaped, so that a hostile log cannot move the cursor of the terminal."""
    return "".join(c if is_visible(c) else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    main()
