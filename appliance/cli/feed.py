"""The command that follows the feed of entries for a SIEM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, pair_certificate, with_common_options, with_tls_options
from appliance.cli.support.groups import ledger
from appliance.cli.support.output import say
from appliance.errors import BadInput, Tampered

if TYPE_CHECKING:
    from appliance.client.feed import FeedSource, Receiver


@ledger.command(
    "feed",
    example=(
        "appliance ledger feed --once --after 1041 > events.jsonl\n"
        "appliance ledger feed --state feed.state --syslog siem.example:6514 --ca siem-ca.pem"
    ),
)
@click.option("--service", metavar="HOST:PORT", help="The operations listener; by default the settings' own.")
@click.option("--token", type=PATH, metavar="FILE", help="The feed's token; by default the settings' own.")
@click.option("--service-ca", type=PATH, metavar="FILE", help="The CA of the operations listener; then TLS.")
@click.option("--after", type=click.IntRange(-1), metavar="ENTRY", help="Begin after this entry; -1 is the beginning.")
@click.option("--state", type=PATH, metavar="FILE", help="The file in which the last taken entry is kept.")
@click.option("--once", is_flag=True, help="End when the receiver has taken all entries that exist now.")
@click.option("--syslog", metavar="HOST:PORT", help="Send to this syslog server over TLS, instead of to stdout.")
@with_tls_options("The CA of the syslog server.")
@click.option(
    "--settle",
    "settle_s",
    type=click.FloatRange(0, 3_600),
    metavar="SECONDS",
    help="How long a syslog connection stays open before its lines count as taken; 10 unless given.",
)
@with_common_options
def feed(
    caller: Caller,
    service: str | None,
    token: Path | None,
    service_ca: Path | None,
    after: int | None,
    state: Path | None,
    once: bool,
    syslog: str | None,
    ca: Path | None,
    certificate: Path | None,
    certificate_key: Path | None,
    settle_s: float | None,
) -> None:
    """Follow the log: each entry as an event of OCSF, oldest first, on stdout or to a syslog server.

    Reads from the operations listener, with the feed's token. An event has no text. A receiver gets each entry at least
    once; `metadata.sequence` is the entry's index. The command ends with an error if the service leaves an entry out.
    With --state, it continues where the receiver's last taken entry was.
    """
    from appliance.client.feed import FeedForwarder, FeedState, find_start

    kept = None if state is None else FeedState(state)
    start, last = find_start(kept, after)
    source = _open_source(caller, service, token, service_ca)
    if last is not None:
        source.begin(last.log, last.after, last.leaf)
    receiver = _open_receiver(syslog, ca, certificate, certificate_key, settle_s)
    try:
        FeedForwarder(source, receiver, start, kept, say).follow(once=once)
    except Tampered as error:
        message = f"{error.message}; nothing more is sent, so that the receiver has one log only"
        raise Tampered(message, code=error.code) from None
    finally:
        receiver.close()
        source.close()


def _open_source(caller: Caller, service: str | None, token: Path | None, ca: Path | None) -> FeedSource:
    """Return the feed of the options, or of the settings on the service's own machine."""
    from appliance.client.feed import FeedSource
    from appliance.client.support.connection import parse_address
    from appliance.client.support.files import read_private

    if service is None or token is None:
        settings = caller.settings
        token = settings.feed_token if token is None else token
        if service is None and settings.operations is not None:
            host, port = settings.operations
            service = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if service is None or token is None:
        missing = "operations" if service is None else "feed_token"
        raise BadInput(f"feed: expected the setting {missing} here, or --service and --token, got neither")
    return FeedSource(parse_address(service, ca), read_private(token, "feed token", 1_024).strip())


def _open_receiver(
    syslog: str | None, ca: Path | None, certificate: Path | None, key: Path | None, settle_s: float | None
) -> Receiver:
    from appliance.client.feed import StreamReceiver
    from appliance.client.support.connection import parse_address
    from appliance.client.syslog import SETTLE_S, SyslogReceiver

    if syslog is None:
        if any(option is not None for option in (ca, certificate, key, settle_s)):
            raise BadInput("feed: expected --syslog beside --ca, --certificate and --settle, got none")
        return StreamReceiver(sys.stdout.buffer)
    if ca is None:
        raise BadInput("feed: expected --ca with the CA of the syslog server, got none")
    address = parse_address(syslog, ca, pair_certificate("feed", certificate, key))
    return SyslogReceiver(address, SETTLE_S if settle_s is None else settle_s)
