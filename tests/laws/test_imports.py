import ast
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

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


def modules_of_ours() -> dict[str, ast.Module]:
    """Returns {name: syntax tree} of the modules of the product."""
    paths = [path for folder in MAY_IMPORT for path in files(folder)]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


def imported_names(tree: ast.Module) -> set[str]:
    """Returns MODULE or MODULE.SYMBOL of every import, in functions and for type checking too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_modules_do_not_import_one_another_in_a_circle():
    modules = modules_of_ours()
    left = {
        name: {
            module
            for imported in imported_names(tree)
            for module in (imported, imported.rpartition(".")[0])
            if module in modules
        }
        for name, tree in modules.items()
    }
    while leaves := [name for name, needed in left.items() if not needed & {*left}]:
        for name in leaves:
            del left[name]
    assert not left


def test_no_private_name_is_imported_from_another_module():
    for name, tree in modules_of_ours().items():
        imported = {i for i in imported_names(tree) if i.split(".")[0] in OURS}
        assert not [i for i in imported if i.rpartition(".")[2].startswith("_")], name
        bound = {i.rpartition(".")[2] for i in imported} | {i.split(".")[0] for i in imported}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                root = ast.unparse(node.value).split(".")[0]
                assert root not in bound or node.attr.startswith("__"), (name, ast.unparse(node))


def test_faults_are_imported_by_chaos_alone():
    for name, tree in modules_of_ours().items():
        if not name.startswith(("launch.faults.", "launch.commands.chaos")):
            assert not [i for i in imported_names(tree) if i.startswith("launch.faults")], name
