"""Commands that benchmarks run and show."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def bundle_run(files: Sequence[str | Path], overrides: Mapping[str, Any]) -> float:
    """Run `python -m monai.bundle run` on config files with overrides, and return the seconds that it took."""
    listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
    pairs = [text for key, value in overrides.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-W", "ignore:parsing config_file", "-m", "monai.bundle", "run", "--config_file", listed]
    print("+", *command, *pairs, flush=True)
    began = time.perf_counter()
    subprocess.run([*command, *pairs], check=True)
    return time.perf_counter() - began
