"""What a bundle's config asks about its own run: where the bundle is, what was merged, is it right."""

import errno
import functools
import inspect
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver

from tomokit.config_rules import (
    OVERRIDES,
    Merged,
    Source,
    drop_unread,
    load_source,
    merge,
    overlay_base,
    overlay_message,
    shared_findings,
    spelled_switches,
    standard_values,
)
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import write_text

_CAUSE_CHARACTERS = 400
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
INTERRUPTED = "interrupted; no file is half written, run the same command again"
_messages = {"interrupt": INTERRUPTED}


def find_bundle_root() -> str:
    """Return the absolute path of the bundle that is being run: the folder that holds its `configs`.

    Raises:
        TomokitError: when no config is being run.
    """
    folder = config_folder()
    return str(folder.parent if folder.name == "configs" else folder)


def config_folder() -> Path:
    """Return the absolute path of the folder of the first config file that is being run.

    Raises:
        TomokitError: when no config is being run.
    """
    return Path(_running_workflow().config_root_path).absolute()


def running_config() -> dict[str, Any]:
    """Return a copy of the merged config as it is run, overrides included, before anything in it was built.

    Keys that a layer left without a reader are dropped, so that what is saved passes `check_config` again.

    Raises:
        TomokitError: when no config is being run.
    """
    # MONAI resolves into its own ConfigItems and leaves the parser's config as text (a test holds it to that)
    workflow = _running_workflow()
    config = {key: value for key, value in workflow.parser.get().items() if key != ConfigParser.meta_key}
    return drop_unread(config, [workflow.run_id, workflow.init_id, workflow.final_id])


def read_config(path: str | Path) -> dict[str, Any]:
    """Return what a YAML or JSON config file holds, as MONAI reads it.

    Raises:
        TomokitError: when the file is absent or can't be read as a config.
    """
    try:
        return dict(load_source(str(path)).content)
    except FileNotFoundError as error:
        raise TomokitError(f"{path} does not exist") from error
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise TomokitError(f"{path} can't be read as a config: {error}") from error


def write_config(config: dict[str, Any], path: str | Path, header: str = "") -> None:
    """Write a config as YAML, keys in their order, below `header` as comment lines; whole or not at all.

    Raises:
        TomokitError: when a value, given from Python, has no form in YAML; or when the file can't be written.
    """
    plain = {key: _as_yaml(value, str(key)) for key, value in config.items()}
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    write_text(path, comment + body)


def check_config() -> None:
    """Stop the run when its config has a mistake; the first entry of every `initialize`.

    On the command line all problems go to standard error, a line each, and the exit status is 2; later errors
    are then told in a few lines too. Standard keys given as text (`--resume true`) become the value they spell.

    Raises:
        TomokitError: lists all problems, when the workflow runs inside Python (as a RuntimeError's cause).
    """
    workflow = _running_workflow()
    merged = merge(_given_sources(workflow))
    if _is_command_line():
        sys.excepthook = functools.partial(_explain_exception, merged)
    problems = _find_problems(workflow, merged)
    if not problems:
        return
    if _is_command_line():
        print(*(f"error: {problem}" for problem in problems), sep="\n", file=sys.stderr)
        raise SystemExit(2)
    if len(problems) == 1:
        raise TomokitError(problems[0])
    raise_problems(f"the config has {len(problems)} problems:", problems)


def on_interrupt(message: str = INTERRUPTED) -> None:
    """Set the line that is printed when the user presses Ctrl-C from now on."""
    _messages["interrupt"] = message


def _find_problems(workflow: ConfigWorkflow, merged: Merged) -> list[str]:
    """Return all problems of the running config, and set standard values that came as text."""
    config = {key: value for key, value in workflow.parser.get().items() if key != ConfigParser.meta_key}
    files = [source.name for source in merged.sources if source.name != OVERRIDES]
    base = overlay_base(files, config)
    if base:
        return [overlay_message(files, base)]
    values, _ = standard_values(config, merged)
    _set_values(workflow.parser, {**spelled_switches(merged), **values})
    known = [workflow.run_id, workflow.init_id, workflow.final_id]
    root = find_bundle_root()
    sys.path.insert(1, root)  # as MONAI does before `run`, for a bundle's own scripts
    try:
        return list(dict.fromkeys(map(str, shared_findings(config, merged, workflow.parser.locator, known))))
    finally:
        sys.path.remove(root)


def _set_values(parser: ConfigParser, values: dict[str, Any]) -> None:
    """Set values while MONAI resolves: `parser[id] = …` would discard the items it works on."""
    for key, value in values.items():
        block, name = ReferenceResolver.split_id(key, last=True)
        parent = parser[block]
        parent[int(name) if isinstance(parent, list) else name] = value
        item = parser.ref_resolver.get_item(key)
        if item is not None:
            item.update_config(value)
        parser.ref_resolver.remove_resolved_content(key)


def _frames() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _running_workflow() -> ConfigWorkflow:
    """Return the workflow that evaluates the calling config entry.

    MONAI gives neither expressions nor components a way to their parser, so the workflow is looked up on the
    call stack: the nearest frame whose `self` is one.
    """
    for frame in _frames():
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, ConfigWorkflow):
            return candidate
    raise TomokitError(
        "no bundle is being run: name this function as a `_target_` in a config and start it by "
        "`python -m monai.bundle run --config_file …`, or set `bundle_root` to the bundle's folder"
    )


def _given_sources(workflow: ConfigWorkflow) -> list[Source]:
    """Return the config files and overrides of the run; empty when no frame on the stack tells.

    A workflow keeps only the folder of its first file; MONAI's `create_workflow` is still on the stack.
    """
    for frame in _frames():
        given = frame.f_locals.get("config_file")
        files = [str(path) for path in ([given] if isinstance(given, str | Path) else given or [])]
        if not files or Path(files[0]).parent != workflow.config_root_path:
            continue
        sources = [load_source(path) for path in files]
        if frame.f_code.co_name == "create_workflow" and "_args" in frame.f_locals:
            named = inspect.signature(ConfigWorkflow).parameters
            overrides = {k: v for k, v in frame.f_locals["_args"].items() if k not in named}
            sources.append(Source(OVERRIDES, overrides))
        return sources
    return []


def _is_command_line() -> bool:
    """Tell whether the program is `python -m monai.bundle`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", "") == "monai.bundle.__main__"


def _as_yaml(value: Any, key: str) -> Any:
    """Return `value` built of what YAML holds and MONAI reads back alike."""
    if isinstance(value, dict):
        return {name: _as_yaml(item, f"{key}::{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_yaml(item, f"{key}::{position}") for position, item in enumerate(value)]
    if isinstance(value, torch.device | torch.dtype):
        return f"$torch.device('{value}')" if isinstance(value, torch.device) else f"${value}"
    if isinstance(value, np.generic | Path):
        return str(value) if isinstance(value, Path) else value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TomokitError(
        f"`{key}` holds a {type(value).__name__}, which a config file can't; give it as `_target_`, text or numbers"
    )


# ------------------------------------------------------------------------------- errors after the check


def _explain_exception(
    merged: Merged, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an uncaught error in a few lines where its cause is known, else as Python does."""
    chain = _chain(error)
    ours = next((link for link in chain if isinstance(link, TomokitError)), None)
    if isinstance(error, KeyboardInterrupt):
        lines = [_messages["interrupt"]]
    elif ours is not None:
        lines = [_own_text(ours)]
    elif any(isinstance(link, OSError) and link.errno in _DISK_FULL for link in chain):
        lines = ["the disk is full; free some space, then go on with `--resume true`"]
    elif any(isinstance(link, KeyboardInterrupt) for link in chain):
        lines = [_messages["interrupt"]]
    else:
        lines = _explain_item(merged, chain)
    if lines:
        print("error: " + "\n".join(lines), file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return the error and what caused it, outermost first."""
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return links


def _own_text(error: TomokitError) -> str:
    """Return the text; torch wraps that of a loader's worker process in the worker's traceback."""
    return str(error).rpartition(f"{TomokitError.__module__}.{TomokitError.__name__}: ")[2].rstrip()


def _explain_item(merged: Merged, chain: list[BaseException]) -> list[str]:
    """Return lines on the config entry that MONAI was building when the error came; none if it was not."""
    found = None
    for link in chain:
        for frame, _ in traceback.walk_tb(link.__traceback__):
            if frame.f_code is ReferenceResolver._resolve_one_item.__code__:
                found = frame.f_locals
    if found is None:
        return []
    identifier, block = str(found.get("id")), found.get("item_config")
    file = merged.file_of(identifier)
    target = block.get("_target_") if isinstance(block, dict) else block
    cause = chain[-1]
    text = " ".join(str(cause).split())
    shown = text if len(text) <= _CAUSE_CHARACTERS else text[:_CAUSE_CHARACTERS] + " …"
    return [
        f"`{identifier}`{f' in {file}' if file else ''} failed",
        *([f"  it is: {target}"] if isinstance(target, str) else []),
        f"  cause: {type(cause).__name__}: {shown}",
        f"  full traceback: {_save_traceback(chain[0])}",
    ]


def _save_traceback(error: BaseException) -> str:
    """Return the path of a new file with the traceback, or why there is none."""
    text = io.StringIO()
    traceback.print_exception(error, file=text)
    try:
        descriptor, path = tempfile.mkstemp(prefix="tomokit-traceback-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text.getvalue())
    except OSError as problem:
        return f"could not be saved ({problem.strerror})"
    return path
