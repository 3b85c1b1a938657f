"""The result files of the benchmarks: rows, each with the revision and the processor it was measured on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tomokit.files import write_json
from tomokit.runs import describe_environment

FOLDER = Path(__file__).parent / "results"
Row = dict[str, Any]


def load_rows(name: str) -> list[Row]:
    """Return the rows that a benchmark has written so far."""
    path = FOLDER / f"{name}.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def save_rows(name: str, command: str, kept: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """Return all rows of a benchmark, written to its file; those just measured get the revision and the processor."""
    environment = describe_environment({})
    origin = {"git_revision": environment["git_revision"], "processor": environment["hardware"]["processor"]}
    rows = [*kept, *({**row, **origin} for row in measured)]
    about = {key: environment[key] for key in ("git_revision", "hardware", "versions")}
    write_json(FOLDER / f"{name}.json", {"name": name, "command": command, **about, "rows": rows})
    return rows
