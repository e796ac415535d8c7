"""The console: a session for one browser, by a link that works once."""

from __future__ import annotations

import webbrowser

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, reads
from appliance.cli.support.output import print_json, print_line, say


@command("console", example="appliance console\nappliance console --open")
@click.option("--open", "opens", is_flag=True, help="Open it in this machine's browser.")
@reads
@click.pass_obj
def console(caller: Caller, opens: bool) -> None:
    """Sign a browser in: prints an address that works once and for a minute.

    Your key signs a session for that browser alone; it is an entry of the log, as every session is. The session ends
    when you sign out there, or when policy ends it.
    """
    from appliance.client.support.browsers import open_link, write_page

    _ = caller.about
    link = open_link(caller.door, caller.session)
    if caller.json:
        print_json({"url": link.url, "seconds": link.seconds})
    else:
        print_line(link.url)
    if opens and not webbrowser.open(write_page(link).as_uri()):
        say("No browser was found here; open the address yourself.")
    say(
        f"The address works once, within {link.seconds} s. Keep it secret: opening it signs a browser in as "
        f"{caller.signer}."
    )
