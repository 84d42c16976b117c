"""How this command line was called, so that the commands it names can be pasted as they stand."""

import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

NAME = "sae-forge"
_NAMED = re.compile(rf"\b{NAME} (?=[a-z-])")


def as_called(words: str) -> str:
    """The words, in which a command is spelled as one would have to type it here."""
    return words if (program := _program()) == NAME else _NAMED.sub(lambda _: f"{program} ", words)


@cache
def _program() -> str:
    """``sae-forge`` where the shell finds this very program by its name; else its path, or the module."""
    called, found = Path(sys.argv[0]), shutil.which(NAME)
    if called.name == NAME and called.exists():
        return NAME if found and Path(found).samefile(called) else shlex.quote(str(called))
    if found or called.parts[-2:] != ("sae_forge", "__main__.py"):
        return NAME
    return f"{shlex.quote(sys.executable)} -m sae_forge"
