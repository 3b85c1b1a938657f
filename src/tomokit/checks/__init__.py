"""What is wrong with a data set: the full check of `tomokit check`, and what must hold before training starts."""

from tomokit.checks.training import check_case, check_cases, describe_mismatch, size_at_spacing

__all__ = ["check_case", "check_cases", "describe_mismatch", "size_at_spacing"]
