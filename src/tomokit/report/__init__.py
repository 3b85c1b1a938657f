"""What finished runs show: scores in the terminal, and a page of one or several runs."""

from tomokit.report.page import write_report
from tomokit.report.terminal import print_run

__all__ = ["print_run", "write_report"]
