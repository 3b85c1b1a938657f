"""How much memory this process may still take."""

import contextlib
import os
from pathlib import Path

import psutil

from tomokit.errors import TomokitError

# what torch, oneDNN and Python say when memory could not be had
FULL_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc"),
    *("could not create a ", "can't start new thread"),
)


def free_memory(group_file: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process may still take: of the machine, of its control groups, of `ulimit -v`.

    Processes that train together on this machine (`LOCAL_WORLD_SIZE`) share it. `group_file` names the process's
    control groups, whose limits stand under `groups` (Linux).
    """
    lines = group_file.read_text().splitlines() if group_file.is_file() else []
    limits = [left for line in lines for left in _free_in_groups(line, groups)]
    free = min([int(psutil.virtual_memory().available), *limits, *_free_addresses()])
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether an error, or what it came from, says that memory could not be had, and none of ours says so."""
    while error is not None and not isinstance(error, TomokitError):
        if isinstance(error, MemoryError) or any(text in str(error) for text in FULL_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free_in_groups(line: str, root: Path) -> list[int]:
    """Return what is left under each memory limit on the way up from one control group, of version 1 or 2."""
    _, controllers, group = line.split(":", 2)
    if not controllers:
        files = ("memory.max", "memory.current", "inactive_file")
    elif "memory" in controllers.split(","):
        root = root / "memory"
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    else:
        return []
    own = root / group.lstrip("/")
    levels = [level for level in (own, *own.parents) if level == root or root in level.parents]
    return [left for level in levels for left in _free_in_group(level, *files)]


def _free_in_group(folder: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    """Return what is left under one group's limit, if it has one; the files' cache that can go counts as free."""
    try:
        text, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        rows = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    return [] if text == "max" else [max(int(text) - used + int(rows.get(reclaimable, 0)), 0)]


def _free_addresses() -> list[int]:
    """Return what is left under the limit of the process's address space (`ulimit -v`), if it has one."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            return [max(0, limit - psutil.Process().memory_info().vms)]
    return []
