"""The command `tomokit`: the verbs that `python -m monai.bundle` lacks."""

from pathlib import Path
from typing import Annotated

import typer

from tomokit.errors import TomokitError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list them, get one.")
app.add_typer(data_app, name="data")


@data_app.command("list")
def list_data() -> None:
    """List the data sets that can be made or are already there."""
    from tomokit.datasets import PHANTOMS, data_root

    there = {folder.parent.name for folder in data_root().glob("*/dataset.json")}
    for name in sorted({*PHANTOMS, *there}):
        typer.echo(f"{name:24} {data_root() / name if name in there else 'made by: tomokit data get ' + name}")


@data_app.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help="A phantom set's name, or the name of a set that --from holds.")],
    to: Annotated[Path | None, typer.Option(help="The folder to put it in (default: data/sets/NAME).")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="A folder that holds the set.")] = None,
) -> None:
    """Make a phantom set, or copy a set from a local folder, with its splits."""
    from tomokit.datasets import get_dataset

    typer.echo(get_dataset(name, to, source))


@app.command("bundles")
def show_bundles() -> None:
    """List the bundles that come with tomokit, with their paths."""
    from tomokit.bundles import list_bundles

    for name, folder in list_bundles().items():
        typer.echo(f"{name:16} {folder}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lint(
    context: typer.Context,
    bundles: Annotated[list[str] | None, typer.Argument(help="Bundle names, folders, or files (default: all).")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print findings only, no count.")] = False,
) -> None:
    """Find what is wrong in a bundle's configs, all at once; `--key value` pairs are overrides, as for `run`."""
    from tomokit.bundles import find_bundle, list_bundles
    from tomokit.lint import lint_main

    given = [*(bundles or []), *context.args]
    first = next((i for i, text in enumerate(given) if text.startswith("--")), len(given))
    overrides = {
        key.removeprefix("--"): value for key, value in zip(given[first::2], given[first + 1 :: 2], strict=False)
    }
    names = given[:first] or list(list_bundles())
    if all(Path(name).suffix in (".yaml", ".yml", ".json") for name in names):
        raise typer.Exit(lint_main(names, overrides, quiet))
    raise typer.Exit(max(lint_main(find_bundle(name), overrides, quiet) for name in names))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """Print a run's measures with their intervals, the rival's beside them."""
    from tomokit.report import print_run

    print_run(run)


def main() -> None:
    """Run the command; a problem the user can mend is one text, not a traceback."""
    try:
        app()
    except TomokitError as error:
        typer.echo(f"tomokit: {error}", err=True)
        raise SystemExit(2) from None
