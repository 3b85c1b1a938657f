"""From a data set to a bundle for it: fingerprint, rules, measurement, files."""

from tomokit.planning.making import Plan, make_plan, print_plan

__all__ = ["Plan", "make_plan", "print_plan"]
