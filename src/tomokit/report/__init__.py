"""What finished runs show: scores in the terminal, a page of one or several runs, a page of one new scan."""

from tomokit.report.case_page import write_case_page
from tomokit.report.page import write_report
from tomokit.report.terminal import print_run

__all__ = ["print_run", "write_case_page", "write_report"]
