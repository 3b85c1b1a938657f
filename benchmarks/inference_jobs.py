"""A job of the inference benchmark in a process of its own, ended where it holds more memory than it may."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from inference_systems import Job

from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json

SCRIPT = Path(__file__).with_name("inference_systems.py")
LIMIT_GB = 20.0  # resident; a limit of the address space would count what is only reserved
LOOK_S = 0.05  # between two looks: less than a process needs to fill what such a machine has beside the limit


def run_job(job: Job, python: str = sys.executable, limit_gb: float = LIMIT_GB) -> dict[str, Any]:
    """Return a job's record, or a `note` where it ran out of the memory it may hold (10⁹ bytes).

    Raises:
        TomokitError: when it ended with an error, which stands above.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "job.json", Path(folder) / "record.json"
        write_json(given, job._asdict())
        process = subprocess.Popen([python, "-W", "ignore", str(SCRIPT), str(given), str(found)])
        if not _watch(process, limit_gb):
            return {"note": f"out of memory at {limit_gb:g} GB"}
        if process.returncode == -signal.SIGKILL:
            return {"note": "out of memory: the system ended it"}
        if process.returncode:
            name = Path(job.sources[0]).name
            raise TomokitError(f"{job.system} on {name} ended with status {process.returncode}; its error stands above")
        return dict(read_json(found))


def _watch(process: subprocess.Popen[bytes], limit_gb: float) -> bool:
    """Wait for a process; return False when it held too much memory and was ended."""
    watched = psutil.Process(process.pid)
    try:
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                if watched.memory_info().rss > limit_gb * 1e9:
                    return False
            time.sleep(LOOK_S)
        return True
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
