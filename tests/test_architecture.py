"""The imports of the package go one way; its functions stay short."""

import ast
import configparser
from pathlib import Path

import tomokit

SOURCE = Path(tomokit.__file__).parent
GROUPS = (
    "errors memory files config_rules config_safety configs geometry labels statistics conformal volumes",
    "datasets phantoms splits dicom importers reading catalogue checks caching",
    "transforms spacing intensity augmentation degradation networks sequences regions losses optimizers measure "
    "metrics pictures panels rivals records modalities anomalies pairs registration restoration subgroups explain",
    "runs inference inputs engines decisions held_out ensembles finetuning joining postprocessing readout selftraining",
    "bundles lint report check_report planning search release",
    "cli",
)
GROUP = {name: number for number, names in enumerate(GROUPS) for name in names.split()}


def read_imports() -> dict[str, set[str]]:
    """Return the top-level names of `tomokit` that each top-level name imports, late imports too."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module == "tomokit":
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tomokit."):
                names = [node.module.split(".")[1]]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tomokit.")]
            found.setdefault(own, set()).update(set(names) - {own})
    return found


def test_every_module_has_its_place():
    assert set(read_imports()) - {"__init__"} == set(GROUP)


def test_imports_go_to_the_same_or_an_earlier_group():
    wrong = [f"{a} -> {b}" for a, names in read_imports().items() for b in names if GROUP[b] > GROUP.get(a, 99)]
    assert wrong == []


def test_simpleitk_is_imported_late():
    begun = [
        path.name
        for path in SOURCE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "SimpleITK" in ast.unparse(node)
    ]
    assert begun == []  # it takes 100 MB


def test_there_is_no_cycle():
    imports = read_imports()
    done: list[str] = []
    while len(done) < len(imports):
        ready = [name for name, names in imports.items() if name not in done and names <= set(done)]
        assert ready, f"a cycle among {sorted(set(imports) - set(done))}"
        done += ready


def test_functions_are_short():
    lengths = {
        f"{path.name}:{node.name}": node.end_lineno
        - node.lineno
        + 1
        - len((ast.get_docstring(node) or "").splitlines())
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert max(lengths.values()) <= 60, max(lengths, key=lengths.get)
    assert sum(length < 30 for length in lengths.values()) >= 0.9 * len(lengths)


def test_modules_are_short():
    assert [path.name for path in SOURCE.rglob("*.py") if path.read_text().count("\n") > 700] == []


def test_every_package_is_shipped():
    listed = configparser.ConfigParser()
    listed.read(SOURCE.parents[1] / "setup.cfg")
    packages = {
        path.parent.relative_to(SOURCE.parent).as_posix().replace("/", ".") for path in SOURCE.rglob("__init__.py")
    }
    assert packages <= set(listed["options"]["packages"].split())
