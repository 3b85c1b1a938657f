"""The command `tomokit`: the verbs that `python -m monai.bundle` lacks."""

from pathlib import Path
from typing import Annotated

import typer

from tomokit.errors import TomokitError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list them, get one.")
app.add_typer(data_app, name="data")


@data_app.command("list")
def list_data(
    name: Annotated[str | None, typer.Argument(help="A set of which to print all that is known.")] = None,
) -> None:
    """List the public data sets and your own: what they are, their licence, where they come from."""
    from tomokit.catalogue import print_catalogue, print_dataset

    if name:
        print_dataset(name)
    else:
        print_catalogue()


@data_app.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help="A name of `tomokit data list`, or of a set that --from holds.")],
    to: Annotated[Path | None, typer.Option(help="The folder to put it in (default: data/sets/NAME).")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder that holds the set or its download, instead of the network.")
    ] = None,
) -> None:
    """Make a phantom set, or download a set or take it from a local folder: verified, with its splits."""
    from tomokit.catalogue import get_dataset
    from tomokit.datasets import data_root

    there = ((to or data_root() / name) / "dataset.json").is_file()
    folder = get_dataset(name, to, source)
    typer.echo(f"{folder} was there already; delete it to get it anew" if there else folder)


@app.command()
def split(
    data: Annotated[str, typer.Argument(help="A data set's name, or a folder that holds a dataset.json.")],
    folds: Annotated[int, typer.Option(help="Folds for cross-validation; 1 is one split, 6:2:2.", min=1)] = 1,
    nnunet: Annotated[bool, typer.Option("--nnunet", help="nnU-Net's own five folds, by name.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed draws another split.", min=0)] = 0,
    robustness: Annotated[
        list[str] | None, typer.Option(help="A `group` to set apart for a robustness test; repeat it for several.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file (default: splits.json of the data set).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Draw a split by patient, stratified by class or label volume, and write it down with its seed."""
    from rich.console import Console

    from tomokit.datasets import find_dataset, read_sections
    from tomokit.splits import make_split, print_split, write_split

    folder = find_dataset(data)
    path = out or folder / "splits.json"
    if path.exists() and not overwrite:
        raise TomokitError(f"{path} is there already; give another --out, or --overwrite if no run needs it any more")
    sections = read_sections(folder)
    entries = [entry for section in sections.values() for entry in section]
    console = Console(markup=False, highlight=False)
    drawn, volumes_ml = make_split(sections, folds, nnunet, seed, robustness or [], console)
    write_split(path, drawn, entries)
    print_split(drawn, entries, volumes_ml, console)
    console.print(f"written: {path}", soft_wrap=True)


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="A folder with a dataset.json, or a data set's name.")],
    json: Annotated[Path | None, typer.Option(help="Write the findings to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture of every case to this file.")] = None,
) -> None:
    """Find what is wrong with a data set: exit 0 clean or warnings only, 1 with errors, 2 when it can't be used."""
    from tomokit.check_report import print_report, write_page
    from tomokit.checks import check_dataset
    from tomokit.files import write_json

    report = check_dataset(dataset)
    print_report(report)
    if json is not None:
        write_json(json, report.as_json())
    if html is not None:
        write_page(report, html)
    raise typer.Exit(report.exit_code)


@app.command("import")
def import_scans(
    source: Annotated[Path, typer.Argument(help="A folder or file: DICOM, NIfTI, MetaImage, NRRD, .npz, CSV …")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The new data set's folder.")],
    labels: Annotated[Path | None, typer.Option(help="A file or folder of label files that lie elsewhere.")] = None,
    table: Annotated[Path | None, typer.Option(help="A CSV or TSV file with a row per image.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A column that holds the class; repeat it for several labels of 0 and 1.")
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option(help="A column that is filled where something happened (1) and else empty (0).")
    ] = None,
    patient: Annotated[str | None, typer.Option(help="The column that holds the patient.")] = None,
    group: Annotated[str | None, typer.Option(help="The column that holds the site or scanner.")] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="The kind of scan, CT or MRI; repeat it for each channel.")
    ] = None,
) -> None:
    """Bring scans of any common format into the layout of all data sets; the source is never changed."""
    from tomokit.importers import describe_import, import_dataset

    done = import_dataset(
        source,
        target,
        labels=labels,
        table=table,
        label_columns=label or (),
        event_columns=event or (),
        patient_column=patient,
        group_column=group,
        modality=modality or (),
    )
    typer.echo(describe_import(done))


@app.command()
def plan(
    data: Annotated[str, typer.Argument(help="A data set's name, or a folder that holds a dataset.json.")],
    out: Annotated[Path, typer.Option(help="The new bundle's folder.")],
    memory: Annotated[
        float | None,
        typer.Option(help="GB of a training step (default: 90 % of a GPU's free memory, else half)."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for everything from the files to the last prediction on this machine.")
    ] = None,
    split_file: Annotated[str, typer.Option("--split", help="The split file.")] = "splits.json",
    fold: Annotated[int, typer.Option(help="The fold whose training cases are looked at.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Draws the split where there is none.", min=0)] = 0,
) -> None:
    """Write a bundle for a data set, every number filled in from the data, with its reason."""
    from tomokit.planning import make_plan, print_plan

    print_plan(make_plan(data, out, memory, minutes, split_file, fold, seed))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def search(
    context: typer.Context,
    bundle: Annotated[str, typer.Argument(help="A bundle's name or folder.")],
    trials: Annotated[int | None, typer.Option(help="Trials of the whole search, all calls together.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time of this call.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each trial (default: what fits into the minutes).")] = None,
    space: Annotated[Path | None, typer.Option(help="A YAML file with the key `search`.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="A layer on train.yaml; repeat it for several.")] = None,
    name: Annotated[str | None, typer.Option(help="The search's folder under runs/.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other settings.", min=0)] = 0,
    test: Annotated[bool, typer.Option(help="Score the best network on the test cases at the end.")] = True,
) -> None:
    """Search the best settings by inner validation; `--key value` pairs are overrides, as for `run`."""
    from tomokit.search import search as search_settings

    given = context.args
    overrides = {key.removeprefix("--"): value for key, value in zip(given[::2], given[1::2], strict=False)}
    result = search_settings(
        bundle,
        trials=trials,
        minutes=minutes,
        epochs=epochs,
        space=space,
        layers=layer or (),
        overrides=overrides,
        run_dir=Path("runs") / name if name else None,
        seed=seed,
        test=test,
    )
    if result["ended"] == "interrupted":
        raise typer.Exit(130)


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
def report(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN…", help="Folders of evaluated runs.")] = None,
    case: Annotated[Path | None, typer.Option(help="A new scan: a page of what the run finds in it.")] = None,
    run: Annotated[Path | None, typer.Option(help="With --case: the folder of a trained run.")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="With --case: the bundle of the run, if not its task's own.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="With --case: the patient's record, CSV or JSON, where the run takes one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The page; report.html in the run's folder.")] = None,
) -> None:
    """Print a run's scores with their intervals and write its page; several runs stand side by side."""
    from tomokit.errors import TomokitError
    from tomokit.report import print_run, write_case_page, write_report

    if case is not None:
        if run is None or runs:
            raise TomokitError("`--case SCAN` needs `--run RUN`, and no other run")
        print(f"page: {write_case_page(case, run, bundle, table, out)}")
        return
    if not runs or any(option is not None for option in (run, bundle, table)):
        raise TomokitError("give the folders of runs, or `--case SCAN --run RUN`")
    for folder in runs:
        print_run(folder)
    print(f"report: {write_report(runs, out)}")


@app.command()
def release(
    bundle: Annotated[str, typer.Argument(help="The name or folder of the bundle that the run was trained with.")],
    run: Annotated[Path, typer.Option(help="The folder of a trained and evaluated run.")],
    out: Annotated[Path, typer.Option(help="The zip; its name without .zip is the name of the folder in it.")],
    exports: Annotated[bool, typer.Option(help="Also TorchScript and ONNX, where they compute the same.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a zip that is there.")] = False,
) -> None:
    """Write a trained run as one zip that MONAI's tools load, with its scores, licence and checksums."""
    from tomokit.release import print_release, release_run

    print_release(release_run(bundle, run, out, overwrite, exports))


def main() -> None:
    """Run the command; a problem the user can mend is one text, not a traceback."""
    try:
        app()
    except TomokitError as error:
        typer.echo(f"tomokit: {error}", err=True)
        raise SystemExit(2) from None
