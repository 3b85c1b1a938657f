"""How much memory this process may still take, and whether what it frees stays at hand."""

import contextlib
import ctypes
import math
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from tomokit.errors import TomokitError

# what torch, oneDNN and Python say when memory could not be had
FULL_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc"),
    *("could not create a ", "can't start new thread"),
)

# glibc's numbers of two settings (malloc.h), and what they become: a volume's blocks go back to the system at once,
# those of a network's layers are kept for its next call
TRIM_THRESHOLD, KEPT = -1, 2 << 30
MMAP_THRESHOLD, LARGEST_KEPT = -3, 64 << 20


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks of up to 64 MiB, 2 GiB of them, and return whether it does.

    By default glibc gives what a layer's output took back to the system and asks for it anew in each call of a network,
    and Linux clears every page of it: a quarter of the time of large patches, a sixth of that of small volumes
    (docs/experiments.md). It costs up to 0.3 GB, so that the inference of a single scan, whose memory is bounded, does
    without. Other C libraries, and a process whose environment sets `MALLOC_…` itself, stay as they are.
    """
    if _glibc() is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    done = [_glibc().mallopt(name, size) for name, size in ((MMAP_THRESHOLD, LARGEST_KEPT), (TRIM_THRESHOLD, KEPT))]
    return all(done)


def _glibc() -> Any:
    """Return the C library of this process if it is glibc, else None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)


def free_memory(
    group_file: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup"), wanted: float = math.inf
) -> int:
    """Return the bytes that this process may still take: of the machine, of its control groups, of `ulimit -v`.

    Freed blocks that the C library keeps go back to the system first where less than `wanted` bytes are free: what
    comes next must take them anew.
    Processes that train together on this machine (`LOCAL_WORLD_SIZE`) share it. `group_file` names the process's
    control groups, whose limits stand under `groups` (Linux).
    """
    free = _free_now(group_file, groups)
    library = _glibc()
    if free < wanted and library:
        library.malloc_trim(0)
        free = _free_now(group_file, groups)
    return free


def _free_now(group_file: Path, groups: Path) -> int:
    """Return the bytes that this process may still take as it stands."""
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
