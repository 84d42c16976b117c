"""The lowest versions that pyproject.toml allows, one a line, for pip: ``python .ci/lowest.py [NAME==VERSION …]``.

What is named on the command line stands in the place of its lower bound, where an index does not have that one.
"""

import re
import sys
import tomllib
from pathlib import Path

BOUND = re.compile(r"(?P<name>[\w-]+)(?P<how>>=|==)(?P<version>[\w.]+)")
EXTRAS = ("plot", "test")

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
asked = [*project["dependencies"], *(each for name in EXTRAS for each in project["optional-dependencies"][name])]
instead = {each.partition("==")[0]: each for each in sys.argv[1:]}
lowest: dict[str, str] = {}
for requirement in asked:
    found = BOUND.match(requirement)
    assert found, f"{requirement} has no lower bound"
    lowest.setdefault(found["name"], f"{found['name']}=={found['version']}")
sys.stdout.write("\n".join({**lowest, **instead}.values()) + "\n")
