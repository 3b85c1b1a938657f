"""GDCM in a process of its own, since damaged compressed pixels can crash its libraries.

Run as a script, this file is that process. It then imports no more than SimpleITK, so that it starts fast.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PATIENCE_SECONDS = 60  # for one frame


class Decoder:
    """Decodes DICOM files of one frame; its process starts with the first and ends with the `with` block."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tomokit-")
        self._path = Path(self._folder.name) / "frame.dcm"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def decode(self, content: bytes) -> NDArray[Any]:
        """Return the pixels (N,) of a DICOM file given by its bytes.

        Raises:
            ValueError: when GDCM can't decode it, crashes, or takes longer than a minute.
        """
        process = self._process = self._process or self._start()
        assert process.stdin and process.stdout
        self._path.write_bytes(content)
        with contextlib.suppress(BrokenPipeError):  # the process has ended: there is no answer
            process.stdin.write(b"\n")
            process.stdin.flush()
        word, _, text = process.stdout.readline().decode().strip().partition(" ")
        if word == "error":
            raise ValueError(text)
        if not word:
            self._stop()
            raise ValueError(f"GDCM crashed, or took longer than {PATIENCE_SECONDS} s")
        return np.frombuffer(process.stdout.read(int(text)), word)

    def _start(self) -> "subprocess.Popen[bytes]":
        """Return a new process that waits for a line per frame."""
        command = [sys.executable, "-P", __file__, str(self._path)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    def _stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()  # closes its pipes and waits for its end


def main() -> None:
    """Answer each line with `dtype bytes` and the pixels of the file, or with `error` and why."""
    import SimpleITK as sitk

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the C libraries print stays out of the answers
    for _ in sys.stdin:
        _limit(PATIENCE_SECONDS)
        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(sys.argv[1], imageIO="GDCMImageIO"))
            answers.write(f"{array.dtype.str} {array.nbytes}\n".encode() + array.tobytes())
        except Exception as error:  # whatever it is, the other process tells it
            answers.write(f"error {' '.join(str(error).split())[-150:]}\n".encode())
        answers.flush()
        _limit(0)  # none while it waits


def _limit(seconds: int) -> None:
    """End this process after so many seconds, where the system can; 0 takes the limit away."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


if __name__ == "__main__":
    main()
