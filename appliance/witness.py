"""appliance-witness: watches a log from another machine. It cosigns what only grew since it last looked.

    appliance-witness new-key w1.key --name witness.example/w1
    appliance-witness cosign REQUEST --key w1.key --name witness.example/w1 --log VKEY --state log.state --output FILE

What it saw last is a file of its own, the state: the log checkpoint that it cosigned last, as it cosigned it. The new
state is on disk before the cosignature leaves. It needs Python and `cryptography`: no database, no network.

Exit codes: 0 cosigned, 2 bad input, 3 wrong passphrase, 4 another log or no state, 5 not what was seen last,
6 a signature or the history does not hold, 7 the clock, a lock or the disk.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from appliance import __version__
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.fields import show
from appliance.formats.core.merkle import EMPTY_ROOT, verify_consistency
from appliance.formats.core.visible import is_visible
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from appliance.formats.log.cosignature import cosign, verify_cosignature, witness_vkey_of
from appliance.formats.log.note import add_signature, check_key_name, encode_note, parse_note, parse_vkey
from appliance.formats.log.trust import parse_trust
from appliance.formats.log.witness_request import MAX_REQUEST_BYTES, WitnessRequest, parse_request
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
    """Who cosigns, and under which key it knows the log."""

    name: str
    signer: Signer
    log_vkey: str

    @property
    def vkey(self) -> str:
        return witness_vkey_of(self.name, self.signer)

    @property
    def origin(self) -> str:
        return parse_vkey(self.log_vkey).name


@dataclass(frozen=True, slots=True)
class Seen:
    """What a witness cosigned last, and when, in seconds since 1970."""

    checkpoint: Checkpoint
    time_s: int


NOTHING_SEEN = Seen(Checkpoint("none", 0, EMPTY_ROOT), 0)


def answer(data: bytes, seen: Seen, witness: Witness, now_s: int) -> bytes:
    """The request's checkpoint with the witness's line, a signed note's bytes: it continues what was seen.

    A checkpoint that was seen already is cosigned again, whatever size the request starts from: nothing is new but the
    time, and a caller that lost the last answer gets one.
    """
    request = parse_request(data)
    checkpoint = _open(request, witness)
    if checkpoint != seen.checkpoint:
        _check_growth(request, checkpoint, seen.checkpoint)
    if now_s < seen.time_s:
        raise Unavailable(f"clock: expected at least {seen.time_s}, the time of the last cosignature, got {now_s}")
    note = parse_note(request.checkpoint)
    cosigned = add_signature(note, cosign(note, witness.name, witness.signer, now_s))
    # A fault while signing must not become the state, which nobody could read again.
    verify_cosignature(cosigned, witness.vkey)
    return encode_note(cosigned)


def _open(request: WitnessRequest, witness: Witness) -> Checkpoint:
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
            code="fork",
        )
    if request.old != seen.size:
        raise Conflict(
            f"witness request, old: expected {seen.size}, the size seen last, got {request.old}; "
            f"have the log make a request from {seen.size}",
            code="old-size",
        )
    verify_consistency(request.old, new.size, request.hashes, seen.root, new.root)


def parse_state(data: bytes, witness: Witness) -> Seen:
    """What the witness's own line vouches for; Tampered where it does not, Conflict where it is another log's."""
    try:
        note = parse_note(data)
        checkpoint = parse_checkpoint(note.text)
        time_s = verify_cosignature(note, witness.vkey)
    except (BadInput, Tampered) as error:
        raise Tampered(f"state file: {error.message}") from None
    if checkpoint.origin != witness.origin:
        raise Conflict(f"state file, log: expected {show(witness.origin)}, got {show(checkpoint.origin)}")
    return Seen(checkpoint, time_s)


def cosign_file(request: Path, state: Path, out: Path | None, witness: Witness, *, first: bool = False) -> bytes:
    """The cosigned checkpoint, which is also the new state, and lies at `out` where that is given.

    `first` begins a state where there is none. Every line may be the last one before the power is cut: the state is
    the old or the new one, and the same request brings the same checkpoint out again.
    """
    if out is not None and out.resolve() in (state.resolve(), request.resolve()):
        raise BadInput(f"output, {out}: expected a file of its own, got the state or the request")
    with _locked(state):
        seen = _load_seen(state, witness, first)
        cosigned = answer(_read(request, "witness request", MAX_REQUEST_BYTES), seen, witness, int(time.time()))
        _replace(state, cosigned, "state file")
        if out is not None:
            _replace(out, cosigned, "output")
        return cosigned


def _load_seen(state: Path, witness: Witness, first: bool) -> Seen:
    if state.exists():
        if first:
            raise Conflict(
                f"state file, {state}: expected none before the first request, got one; go on without --first"
            )
        return parse_state(_read(state, "state file", MAX_REQUEST_BYTES + _MAX_FILE_BYTES), witness)
    if not first:
        raise NotFound(
            f"state file, {state}: expected what this witness saw last, got nothing; do not replace "
            "a lost state: --first trusts the log as it is now"
        )
    return NOTHING_SEEN


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """One run at a time. The lock is a file beside the state, which is itself exchanged for another."""
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
    """The file is the old or the new one, whole, whenever the power is cut; on return it is the new one."""
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
            if private and (mode := os.fstat(file.fileno()).st_mode & 0o777) & 0o077:
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
    """A vkey as it is, or the log key of the trust file that is named."""
    try:
        parse_vkey(given)
    except BadInput as error:
        if not os.path.isfile(given):
            raise BadInput(f"log: expected a vkey or a trust file, got {show(given)} ({error.message})") from None
        return parse_trust(_read(Path(given), "trust file", _MAX_FILE_BYTES)).log_key
    return given


def create_key(path: Path, passphrase: bytes) -> Signer:
    """An encrypted key in a new file, readable by its owner alone."""
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


# The program.


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except ApplianceError as error:
        print(f"appliance-witness: {_plain(error.message)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appliance-witness",
        description="Cosign the checkpoints of a log that only grows, on a machine of your own.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new_key = commands.add_parser("new-key", help="make an encrypted key and print its vkey")
    vkey = commands.add_parser("vkey", help="print a key's vkey, for the log's policy; needs no passphrase")
    sign = commands.add_parser("cosign", help="cosign the checkpoint of a request")
    for command, run in ((new_key, _run_new_key), (vkey, _run_vkey), (sign, _run_cosign)):
        command.set_defaults(run=run)
        command.add_argument(
            "--name", metavar="NAME", required=True, help="the witness's name, such as witness.example/w1"
        )
    for command in (new_key, vkey):
        command.add_argument("key", metavar="FILE", type=Path)
    for command in (new_key, sign):
        command.add_argument(
            "--passphrase-file",
            metavar="FILE",
            type=Path,
            help="a file with the passphrase in its first line; else a prompt",
        )
    sign.add_argument("request", metavar="REQUEST", type=Path, help="the request file from the log's operator")
    sign.add_argument("--key", metavar="FILE", type=Path, required=True)
    sign.add_argument("--log", metavar="LOG", required=True, help="the log's vkey, or the trust file with it")
    sign.add_argument("--state", metavar="FILE", type=Path, required=True, help="what this witness saw last")
    sign.add_argument("--output", metavar="FILE", type=Path, help="write the cosigned checkpoint here; else to stdout")
    sign.add_argument("--first", action="store_true", help="create the state file, and trust the log as it is now")
    return parser


def _run_new_key(given: argparse.Namespace) -> None:
    check_key_name(given.name)
    print(witness_vkey_of(given.name, create_key(given.key, _passphrase(given.passphrase_file, confirm=True))))


def _run_vkey(given: argparse.Namespace) -> None:
    print(witness_vkey_of(given.name, parse_key_file_spki(_read(given.key, "key file", _MAX_FILE_BYTES))))


def _run_cosign(given: argparse.Namespace) -> None:
    log_vkey = load_log_key(given.log)
    data = _read(given.key, "key file", _MAX_FILE_BYTES, private=True)
    parse_key_file_spki(data)
    witness = Witness(given.name, parse_key_file(data, _passphrase(given.passphrase_file)), log_vkey)
    cosigned = cosign_file(given.request, given.state, given.output, witness, first=given.first)
    for line in describe(cosigned, witness):
        print(line, file=sys.stderr)
    if given.output is None:
        sys.stdout.write(cosigned.decode("utf-8"))


def describe(cosigned: bytes, witness: Witness) -> Iterator[str]:
    """What was said, for the person who had it said: they may compare it with what they know of the log."""
    seen = parse_state(cosigned, witness)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seen.time_s))
    yield f"log   {_plain(seen.checkpoint.origin)}"
    yield f"size  {seen.checkpoint.size}"
    yield f"root  {seen.checkpoint.root.hex()}"
    yield f"time  {when}, cosigned by {_plain(witness.name)}"


def _passphrase(path: Path | None, *, confirm: bool = False) -> bytes:
    if path is not None:
        return _read(path, "passphrase file", _MAX_FILE_BYTES, private=True).partition(b"\n")[0].removesuffix(b"\r")
    try:
        given = getpass.getpass("Passphrase: ")
        if confirm and getpass.getpass("Again: ") != given:
            raise BadInput("passphrase: expected the same twice, got two")
    except EOFError:
        raise BadInput("passphrase: expected one on the terminal, got none; --passphrase-file names a file") from None
    return given.encode("utf-8")


def _plain(text: str) -> str:
    """A hostile log's words cannot move the cursor of the terminal they are shown on."""
    return "".join(c if is_visible(c) else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    main()
