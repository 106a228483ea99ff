import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "configs": set(),
    "sharding": {"configs"},
    "model": {"configs", "sharding"},
    "data": {"configs"},
    "train": {"configs", "sharding", "model", "data"},
    "launch": {"configs", "sharding", "model", "data", "train"},
}
OURS = {*MAY_IMPORT, "tests"}


def imports(path: Path) -> set[str]:
    """Returns every module that a file imports, in functions and for type checking too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_the_design_allows(folder):
    assert len(files(folder)) > 1
    for path in files(folder):
        packages = {name.split(".")[0] for name in imports(path)}
        assert (packages & OURS) - MAY_IMPORT[folder] <= {folder}, path


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_symbols_are_imported_from_leaf_modules(folder):
    for path in files(folder):
        for name in imports(path):
            assert not name.startswith("."), (path, name)
            assert name not in OURS, (path, name)
            assert (
                name.split(".")[0] not in OURS or (ROOT / f"{name.replace('.', '/')}.py").exists()
            )


def test_settings_are_read_without_jax():
    for path in files("configs"):
        packages = {name.split(".")[0] for name in imports(path)}
        assert packages <= {"configs", *sys.stdlib_module_names}, path


def test_settings_load_without_jax_in_a_new_process():
    paths = (path.relative_to(ROOT).with_suffix("") for path in files("configs"))
    modules = ", ".join(".".join(path.parts) for path in paths)
    code = f"import sys, {modules}; assert not {{'jax', 'flax', 'numpy'}} & {{*sys.modules}}"
    subprocess.run((sys.executable, "-c", code), cwd=ROOT, check=True)
