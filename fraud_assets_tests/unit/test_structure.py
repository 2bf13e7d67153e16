"""Checks the size and the names of modules and functions, which import-linter and ruff do not check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fraud_assets

PACKAGE = Path(fraud_assets.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def name_of(module: Path) -> str:
    return str(module.relative_to(PACKAGE))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_modules_and_functions_stay_small(module: Path) -> None:
    source = module.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_no_module_has_a_vague_name() -> None:
    assert [name_of(module) for module in MODULES if set(module.with_suffix("").parts) & VAGUE_NAMES] == []


def test_tests_import_only_from_support() -> None:
    """A test module is not a library. Code that two of them need is in `support`."""
    tests = Path(__file__).parents[1]
    wrong = [
        f"{path.relative_to(tests)}: {node.module}"
        for path in sorted(tests.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("fraud_assets_tests")
        and not (node.module or "").startswith("fraud_assets_tests.support")
    ]
    assert wrong == []
