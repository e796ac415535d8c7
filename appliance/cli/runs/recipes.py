"""Recipes: a new one, with every key explained."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, shares
from appliance.cli.support.output import print_json, print_line, say
from appliance.errors import Conflict, Unavailable


@group("recipe", example="appliance recipe new --output recipe.yaml")
def recipe() -> None:
    """Recipes: begin a new one, with every key explained."""


@recipe.command(
    "new", example="appliance recipe new\nappliance recipe new --output recipe.yaml --base smollm2 --dataset clauses@1"
)
@click.option(
    "--output",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write it to a new file instead of printing it.",
)
@click.option("--name", metavar="NAME", default="my-adapter", show_default=True, help="What the adapter is called.")
@click.option("--base", default="my-base", show_default=True, metavar="NAME", help="The base it is trained on.")
@click.option("--dataset", default="my-dataset@1", show_default=True, metavar="NAME@VERSION", help="What it learns.")
@shares
@click.pass_obj
def new(caller: Caller, path: Path | None, name: str, base: str, dataset: str) -> None:
    """Print or write a recipe with every key, its meaning, its range and its default."""
    from appliance.domain.recipe.parsing import parse_recipe
    from appliance.domain.recipe.template import write_template

    given = {"name": name, "base": base, "dataset": dataset}
    parse_recipe(given)
    text = write_template(given)
    if path is not None:
        _write_new(path, text)
    if caller.json:
        print_json({"recipe": text, "file": None if path is None else str(path)})
    elif path is None:
        print_line(text.rstrip("\n"))
    else:
        say(f"next: appliance run plan {path}")


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Conflict(f"recipe, {path}: expected a name that is free, got an existing file") from None
    except OSError as error:
        raise Unavailable(f"recipe, {path}: expected it to be writable, got {error.strerror}") from None
