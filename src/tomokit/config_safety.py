"""Rules on the code that a config runs: what its expressions hold, and where its targets come from.

It is a list of known ways to run programs, pickles or other configs, not a sandbox: code can hide behind names that
are not on the list. Read a config from a stranger before you run it.
"""

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from monai.bundle import ComponentLocator, ConfigExpression
from monai.bundle.reference_resolver import ReferenceResolver

from tomokit.config_rules import Merged, is_component, is_text, locate_target, walk

TRUSTED_PACKAGES = ("monai", "torch", "ignite", "tomokit", "numpy")
_PLAIN_MODULES = ("os", "glob", "json", "math", "pathlib")  # of Python's own, for paths and numbers
# modules whose use in a config means that it runs a program, or code or pickles from elsewhere
_MODULES = frozenset(
    {"subprocess", "pty", "ctypes", "socket", "pickle", "marshal", "importlib", "runpy", "builtins"}
    | {"codeop", "shutil", "sys", "cffi", "cpp_extension", "hub"}
)
# calls that do so under any name that leads to them
_CALLS_ANYWHERE = frozenset(
    {"system", "popen", "Popen", "check_output", "check_call", "getoutput", "getstatusoutput", "run_cmd"}
    | {"import_module", "run_path", "run_module", "optional_import", "load_library", "load_inline"}
    | {"load_state_dict_from_url", "load_url", "rmtree", "unlink", "remove", "rmdir"}
)
# what `monai.bundle` does with other configs and bundles: run, build, download or upload them
_BUNDLE_CALLS = frozenset(
    {"run", "run_workflow", "create_workflow", "ConfigWorkflow", "PythonicWorkflow", "verify_net_in_out"}
    | {"onnx_export", "ckpt_export", "trt_export", "load", "download", "download_large_files", "verify_metadata"}
    | {"push_to_hf_hub"}
)
_BUILTIN_CALLS = frozenset(
    {"eval", "exec", "compile", "__import__", "open", "input", "breakpoint", "globals", "locals", "vars"}
    | {"getattr", "setattr", "delattr"}
)
_SYSTEM_CALLS = ("exec", "spawn", "posix_spawn", "fork", "kill", "remove", "unlink", "rmdir", "startfile", "putenv")
_HARMLESS_DUNDERS = frozenset({"__version__", "__name__", "__len__"})

Problem = tuple[str, str, str, str]  # id, kind, message, severity


def may_import(target: str) -> bool:
    """Tell whether the linter may import what a target names: MONAI's short names and trusted packages."""
    return "." not in target or target.partition(".")[0] in TRUSTED_PACKAGES


def code_problems(config: dict[str, Any], merged: Merged, locator: ComponentLocator) -> Iterator[Problem]:
    """Yield (id, kind, message, severity) for targets and expressions that hide logic or reach beyond the config."""
    for identifier, value in walk(config):
        if is_component(value) and isinstance(value["_target_"], str) and is_text(value["_target_"]):
            yield from _target_problems(f"{identifier}::_target_", value, locator)
        elif isinstance(value, str) and value.startswith("$"):
            yield from _expression_problems(identifier, value)
    for source in merged.sources:
        for identifier, value in walk(dict(source.content)):
            if isinstance(value, str) and value.startswith("%") and _names_a_file(value):
                text = (
                    f"`{identifier}` is the macro `{value}`, whose path depends on the current directory; merge files"
                )
                yield identifier, "macro", text, "error"


def _names_a_file(macro: str) -> bool:
    return any(f".{suffix}" in macro.lower() for suffix in ("json", "yaml", "yml"))


def _target_problems(key: str, block: dict[str, Any], locator: ComponentLocator) -> Iterator[Problem]:
    """Yield what is unsafe about the target of a component."""
    target = block["_target_"]
    parts = target.split(".")
    found = locate_target(target, locator)[0] if may_import(target) else None
    real = _defining_path(found) if callable(found) else [""]
    pickles = _pickle_reason(parts, block) or _pickle_reason(real, block)
    if _is_unsafe_path(parts) or _is_unsafe_path(real) or real[0] in ("os", "posix", "nt", "_io"):
        yield key, "unsafe", f"`{key}` is `{target}`, which can run programs or code; name a component instead", "error"
    elif pickles:
        yield key, "unsafe", f"`{key}` is `{target}`, which {pickles}", "error"
    elif parts[0] not in TRUSTED_PACKAGES and "." in target:
        yield key, "package", f"`{key}` is `{target}`, which runs code from the package `{parts[0]}`", "warning"


def _defining_path(component: Any) -> list[str]:
    """Return the dotted name under which a component was defined, whatever name leads to it."""
    component = inspect.unwrap(component)
    module = str(getattr(component, "__module__", "") or "")
    return [*(module.split(".") if module != "builtins" else []), str(getattr(component, "__name__", ""))]


def _pickle_reason(parts: list[str], arguments: dict[Any, Any]) -> str:
    """Say why a `….load` of torch or numpy runs pickled code; empty when it does not."""
    if parts[-1] == "load" and "torch" in parts and arguments.get("weights_only") is not True:
        return "runs pickled code unless `weights_only` is true"
    if parts[-1] == "load" and {"np", "numpy"} & set(parts) and arguments.get("allow_pickle", False) is not False:
        return "runs pickled code unless `allow_pickle` is false"
    return ""


def _is_unsafe_path(parts: list[str]) -> bool:
    """Tell whether a dotted name is or passes through an unsafe module, or ends in an unsafe call."""
    *through, last = parts
    if not _MODULES.isdisjoint(through) or last in _CALLS_ANYWHERE:
        return True
    if not {"os", "posix", "nt"}.isdisjoint(through):
        return last.startswith(_SYSTEM_CALLS)
    if "bundle" in through and last in _BUNDLE_CALLS:
        return True
    return not through and last in _BUILTIN_CALLS


def _expression_problems(identifier: str, value: str) -> Iterator[Problem]:
    """Yield what is wrong or unsafe in a `$` expression."""
    text = ReferenceResolver.id_matcher.sub("reference", ReferenceResolver.normalize_id(value[1:]))
    shown = f"`{identifier}` is `{value if len(value) <= 80 else value[:80] + ' …'}`"
    try:
        if ConfigExpression.is_import_statement(value):
            yield from _import_problems(identifier, shown, text)
            return
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        yield identifier, "expression", f"{shown}, which is not one Python expression: {error.msg}", "error"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda | ast.NamedExpr | ast.Await | ast.Yield):
            yield identifier, "logic", f"{shown}: logic belongs in a named function, reached by `_target_`", "error"
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            yield identifier, "logic", f"{shown}: a loop belongs in a named function, reached by `_target_`", "warning"
        reason = _unsafe_node(node)
        if reason:
            yield identifier, "unsafe", f"{shown}: {reason}", "error"


def _import_problems(identifier: str, shown: str, text: str) -> Iterator[Problem]:
    """Yield the modules of an import statement that are unsafe, or not trusted."""
    statement = ast.parse(text.strip()).body[0]
    module = getattr(statement, "module", None)
    names = [alias.name for alias in getattr(statement, "names", [])]
    for path in [f"{module}.{name}" for name in names] if module else names:
        parts = path.split(".")
        is_loader = parts[-1] == "load" and parts[0] in ("torch", "numpy")
        if is_loader or _is_unsafe_path([*parts, ""]) or _is_unsafe_path(parts):
            yield identifier, "unsafe", f"{shown}: `{path}` can run programs or code", "error"
        elif parts[0] not in (*TRUSTED_PACKAGES, *_PLAIN_MODULES):
            yield identifier, "package", f"{shown}, which runs code from the package `{parts[0]}`", "warning"


def _unsafe_node(node: ast.AST) -> str:
    """Say why a node of an expression is unsafe; empty when it is not."""
    if isinstance(node, ast.Name) and node.id in _BUILTIN_CALLS | _MODULES:
        return f"`{node.id}` can run programs or code"
    if isinstance(node, ast.Attribute):
        parts = ast.unparse(node).split(".")
        if node.attr.startswith("__") and node.attr not in _HARMLESS_DUNDERS:
            return f"`{node.attr}` reaches into Python's own workings"
        if _is_unsafe_path(parts):
            return f"`{ast.unparse(node)}` can run programs or code"
    if isinstance(node, ast.Call):
        arguments = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        called = ast.unparse(node.func)
        if len(node.args) > 2:  # numpy's third is `allow_pickle`; torch takes `weights_only` by name alone
            arguments["allow_pickle"] = getattr(node.args[2], "value", None)
        reason = _pickle_reason(called.split("."), arguments)
        return f"`{called}` {reason}" if reason else ""
    return ""
