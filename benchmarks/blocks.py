"""Figures in the docs: blocks between two marks that a benchmark fills with what it measured."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tomokit.files import write_text

ROOT = Path(__file__).resolve().parents[1]


def fill_blocks(benchmark: str, block: Callable[[Sequence[str]], str]) -> None:
    """Fill every block `<!-- BENCHMARK WORD … -->…<!-- end -->` of the README and the docs by its words."""
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/README.md")):
        before = path.read_text(encoding="utf-8")
        after = re.sub(
            rf"<!-- {benchmark} ([^>]*?) -->.*?<!-- end -->",
            lambda match: f"<!-- {benchmark} {match[1]} -->{block(match[1].split())}<!-- end -->",
            before,
            flags=re.DOTALL,
        )
        if after != before:
            write_text(path, after)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table on lines of its own, or that nothing is measured yet."""
    if not rows:
        return "not measured yet"
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def show_interval(row: dict[str, Any], digits: int = 3, sign: str = "") -> str:
    """Return a row's value with its 95 % interval."""
    value, (low, high) = row["value"], row["ci95"]
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
