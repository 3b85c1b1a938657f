"""What a user is told when something is wrong: what, where, and what to do."""

from collections.abc import Sequence

SHOWN_PROBLEMS = 20


class TomokitError(Exception):
    """A problem that the user can mend; its text says what is wrong, where, and what to do."""


def raise_problems(heading: str, problems: Sequence[str]) -> None:
    """Raise one `TomokitError` that lists every problem found; do nothing when there is none.

    Raises:
        TomokitError: when `problems` is not empty; the first 20 are shown, the rest counted.
    """
    if not problems:
        return
    shown = [f"  - {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"  … and {len(problems) - SHOWN_PROBLEMS} more")
    raise TomokitError("\n".join([heading, *shown]))
