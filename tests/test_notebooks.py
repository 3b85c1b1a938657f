"""Notebooks: each is clean and names only what exists; the first one runs here, all of them by `make notebooks`."""

import ast
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import typer.main
import yaml
from nbclient import NotebookClient

from tomokit.cli import app

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVERY = os.environ.get("TOMOKIT_NOTEBOOKS") == "all"
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[str]:
    """Return the text of a notebook's cells of one kind: markdown, python or bash."""
    texts: dict[str, list[str]] = {"markdown": [], "python": [], "bash": []}
    for cell in nbformat.read(path, as_version=4).cells:
        is_bash = cell.source.startswith("%%bash")
        texts["markdown" if cell.cell_type == "markdown" else "bash" if is_bash else "python"].append(cell.source)
    return texts[kind]


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of each command line in the notebook's shell cells."""
    for text in cells(path, "bash"):
        for line in text.replace("\\\n", " ").splitlines()[1:]:
            if words := shlex.split(re.split(r"\|\||\|", line)[0]):
                yield words


def keys_of(file: str) -> set[str]:
    """Return the top-level keys of a config file; of a run's or a plan's, those of all bundles' files of its name."""
    files = [ROOT / file] if file.startswith("bundles/") else (ROOT / "bundles").glob(f"*/configs/{Path(file).name}")
    return {key.split("::")[0] for file in files for key in yaml.safe_load(file.read_text())}


def listed(files: str) -> list[str]:
    """Return the files of a `--config_file`: one, or a list."""
    return ast.literal_eval(files) if files.startswith("[") else [files]


def check_options(words: list[str]) -> None:
    """Fail unless `tomokit` has such a verb with such options."""
    command, rest = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, words
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known, words


def check_run(files: list[str], keys: set[str]) -> None:
    """Fail unless the config files exist and have the keys that are set."""
    for file in files:
        assert not file.startswith("bundles/") or (ROOT / file).is_file(), file
    assert keys <= set().union(*map(keys_of, files)), keys


def test_the_notebooks_stand_in_their_order():
    assert [path.stem[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_", "06_", "07_", "08_", "10_"]


@each
def test_a_notebook_is_valid_and_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None and not cell.metadata for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@each
def test_a_notebook_says_first_how_long_it_takes_and_what_is_in_it(path):
    first, *rest = cells(path, "markdown")
    assert re.search(r"About \d+ seconds on two CPU cores", first)
    assert f"runs/notebooks/{path.stem}/" in first
    headings = [line[3:] for text in rest for line in text.splitlines() if line.startswith("## ")]
    assert re.findall(r"\[([^]]+)\]\(#([^)]+)\)", first) == [(line, line.replace(" ", "-")) for line in headings]
    for link in re.findall(r"\]\(([^)#]+)\)", "\n".join([first, *rest])):
        assert (path.parent / link).exists(), link


@each
def test_a_notebook_names_no_place_of_one_machine(path):
    text = "\n".join(cells(path, "markdown") + cells(path, "python") + cells(path, "bash"))
    assert not re.findall(r"(?:^|[\s\"'`=(])(?:/[\w.-]+|~/|[A-Z]:\\)", text)


@each
def test_a_notebook_names_only_files_that_exist(path):
    text = "\n".join(cells(path, "markdown") + cells(path, "python") + cells(path, "bash"))
    for file in re.findall(r"(?<![\w/])(?:bundles|docs)/[\w./-]*\w", text):
        assert (ROOT / file).exists(), file


@each
def test_a_notebook_calls_only_commands_and_keys_that_exist(path):
    for words in commands(path):
        if words[0] == "tomokit":
            check_options(words)
        else:
            assert words[:4] == ["python", "-m", "monai.bundle", "run"] and words[4] == "--config_file", words
            check_run(listed(words[5]), {word[2:].split("::")[0] for word in words[6:] if word.startswith("--")})
    for node in ast.walk(ast.parse("\n".join(cells(path, "python")))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "monai.bundle.run":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            files = [item.value for item in given.pop("config_file").elts]
            check_run(files, {key for key in given if key})


@each
def test_a_notebook_speaks_of_verbs_and_targets_that_exist(path):
    text = "\n".join(cells(path, "markdown"))
    verbs = set(typer.main.get_command(app).commands)
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`tomokit ([a-z]+)", text)) <= verbs
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= set(targets)


@each
def test_a_notebook_runs_and_shows_its_pictures(path, tmp_path):
    if path != NOTEBOOKS[0] and not EVERY:
        pytest.skip("`make notebooks` runs all of them")
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")  # what a checkout has; everything is written beside it
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [output for output in outputs if output.output_type == "error"]
