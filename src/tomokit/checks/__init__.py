"""What is wrong with a data set: the full check of `tomokit check`, and what must hold before training starts."""

from tomokit.checks.dataset import Report, check_dataset
from tomokit.checks.findings import KINDS, Finding, render_kinds
from tomokit.checks.ranges import describe_range, find_outside, join_ranges, read_range, write_range
from tomokit.checks.training import check_case, check_cases, describe_mismatch, size_at_spacing

__all__ = [
    "KINDS",
    "Finding",
    "Report",
    "check_case",
    "check_cases",
    "check_dataset",
    "describe_mismatch",
    "describe_range",
    "find_outside",
    "join_ranges",
    "read_range",
    "render_kinds",
    "size_at_spacing",
    "write_range",
]
