"""The stations import each other in one direction only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BEFORE = {"common", "dataset", "tokenizer"}
MAY_IMPORT = {
    "common": {"common"},
    "dataset": {"common", "dataset"},
    "tokenizer": {"common", "dataset", "tokenizer"},
    "autoregressive/models": {*BEFORE, "autoregressive.models"},
    "autoregressive/train": {*BEFORE, "autoregressive.models", "autoregressive.train"},
    "autoregressive/sample": {*BEFORE, "autoregressive.models", "autoregressive.sample"},
    "evaluations": {"common", "dataset", "evaluations"},
}
STATIONS = {"common", "dataset", "tokenizer", "autoregressive", "evaluations", "benchmarks", "tests"}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("station", MAY_IMPORT)
def test_station_imports_only_what_lies_before_it(station):
    files = list((ROOT / station).rglob("*.py"))
    assert files
    for path in files:
        for module in imported_modules(path):
            if module.split(".")[0] in STATIONS:
                if path.name == "likelihood.py" and module.startswith(("tokenizer", "autoregressive.models")):
                    continue  # it asks the model itself
                allowed = any(f"{module}.".startswith(f"{name}.") for name in MAY_IMPORT[station])
                assert allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_process_group_is_known_to_two_modules_only():
    files = [path for station in MAY_IMPORT for path in (ROOT / station).rglob("*.py")]
    users = {path.relative_to(ROOT).as_posix() for path in files
             if any(module.startswith("torch.distributed") for module in imported_modules(path))}
    assert users == {"common/distributed.py", "common/sharded.py"}
