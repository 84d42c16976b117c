"""Every package the code imports is one that pyproject.toml says it needs, by itself and not by another's needs."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = {"cli", "data_scripts", "sae_forge"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def named(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", text, maxsplit=1)[0].lower().replace("_", "-") for text in requirements}


def imported() -> dict[str, str]:
    """Module at the top of what is imported, and a file that does so."""
    files = [*(ROOT / "sae_forge").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    return {module: str(path.relative_to(ROOT)) for path in files for module in modules(ast.parse(path.read_text()))}


def modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_what_is_imported_is_declared() -> None:
    extras = [needed for extra, needed in PROJECT["optional-dependencies"].items() if extra not in ("dev", "test")]
    declared = named([*PROJECT["dependencies"], *(text for extra in extras for text in extra)])
    found = {module: path for module, path in imported().items() if module not in sys.stdlib_module_names | OWN}
    assert {"torch", "transformers", "typer"} <= set(found)
    packages = packages_distributions()
    undeclared = [
        f"{path} imports {module}: declare it"
        for module, path in found.items()
        if not declared & {name.lower().replace("_", "-") for name in packages.get(module, [module])}
    ]
    assert undeclared == []
