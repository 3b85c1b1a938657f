"""Files that are whole or absent: written to a temporary name, flushed to the disk, then renamed."""

import contextlib
import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tomokit.errors import TomokitError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its name once the block ends without an error.

    The temporary name keeps the suffixes of `path` (`.nii.gz`), so that writers choose their format by it.

    Raises:
        TomokitError: when the disk is full or the folder can't be written; the old file is left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        _remove(temporary)
        raise TomokitError(_explain(path, error)) from error
    except BaseException:
        _remove(temporary)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as readable JSON; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        TomokitError: when the file is absent or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TomokitError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:
        raise TomokitError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise TomokitError(
            f"{path} can't be read: {error.strerror or error}; give yourself the right to read it"
        ) from error


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV whose columns are all the keys, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _flush(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file that may not be there, nor its folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def _explain(path: Path, error: OSError) -> str:
    """Say which file could not be written, why, and what to do."""
    again = "then run the same command again (a training run: with `--resume true`)"
    advice = {
        errno.ENOSPC: f"the disk is full; free some space, {again}",
        errno.EDQUOT: f"the disk quota is used up; free some space, {again}",
        errno.EFBIG: f"the file would pass the size limit; raise it, {again}",
        errno.EACCES: "no permission; choose another folder or change its rights",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOTDIR: "a part of this path is a file, not a folder; choose another path",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"can't write {path}: {advice}"
