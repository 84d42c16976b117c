"""The public names: each is where it is said to be, and importing the package loads nothing heavy."""

import subprocess
import sys

import pytest

import sae_forge


@pytest.mark.parametrize("name", [name for name in sae_forge.__all__ if name != "__version__"])
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(sae_forge, name).__name__ == name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="load_sae"):
        _ = sae_forge.load_autoencoder


def test_importing_the_package_is_light() -> None:
    code = "import sys, sae_forge; assert not {'torch', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
