"""Which model, where in it, and where results go: the settings every verb shares."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from sae_forge.config.fields import Artefact, Setting, described
from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint, Site

ModelDtype = Literal["auto", "bf16", "fp16", "fp32"]
Quantize = Literal["none", "8bit", "4bit"]

DEFAULT_MODEL = "meta-llama/Llama-2-7b-chat-hf"
HERE = Setting(decides=(), local=True)
"""Where things are on this machine."""
COMPUTED = Setting(decides=("shards", "report"))
"""What a model's numbers hang on."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, where in it, and where results go: the settings every verb shares.

    Every config is a subclass of it: so are the parts that tasks and methods add, which are composed with others and
    therefore check what they check in ``__post_init__`` after calling that of ``super()``.
    """

    heading: ClassVar[str] = "Model and place"
    """What the settings of a class stand under in ``--help``."""
    decides: ClassVar[tuple[Artefact, ...]] = ("report",)
    """What a setting decides that does not say; whoever forgets to say it pays with a measurement, not a number."""

    model: Annotated[
        str,
        "Hub id, folder, GGUF file; built-in: tiny-llama, tiny-gemma2; if installed: smollm2-135m, gemma3-270m.",
    ] = DEFAULT_MODEL
    layer: Annotated[tuple[int, ...] | None, "One layer or several: 3,7,15. Unset: the preset's, else the middle."] = (
        None
    )
    site: Annotated[Site, "Where in the layer; resid_post: its output, z: what attention's projection reads."] = (
        "resid_post"
    )
    run_dir: Annotated[Path | None, "Run folder. Unset: checkpoints/<model with / as -->.", HERE] = None
    seed: Annotated[int, "Seed of everything random.", Setting(decides=("selection", "report"))] = 0
    revision: Annotated[str | None, "Branch, tag or commit of a Hub model.", COMPUTED] = None
    dtype: Annotated[
        ModelDtype, "Precision the model computes in. auto: fp32 on a CPU, as stored on a GPU.", COMPUTED
    ] = "auto"
    model_device: Annotated[str, "Device of the model: auto, cpu, cuda, cuda:1 …", HERE] = "auto"
    device_map: Annotated[str | None, "Spread the model over devices: auto, balanced, sequential.", HERE] = None
    quantize: Annotated[Quantize, "Load the model's weights in 4 or 8 bits (needs bitsandbytes).", COMPUTED] = "none"
    family: Annotated[
        Path | None, "TOML file that describes the model's family, where the table lacks it.", Setting(decides=())
    ] = None
    sae_device: Annotated[str, "Device of the SAE: auto, cpu, cuda …", HERE] = "auto"
    spelled: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    """Settings the user named, by flag or file; the others came from a preset or are defaults. No setting itself."""

    def __post_init__(self) -> None:
        for name, said in described(type(self)).items():
            self.require(**{name: (said.setting.allows(getattr(self, name)), said.setting.advice())})
        if self.layer is not None and (not self.layer or len(set(self.layer)) < len(self.layer)):
            raise ConfigError(f"--layer {','.join(map(str, self.layer))} must name each layer once")
        _ = self.hook_points  # a negative layer or an unknown site is refused here

    @property
    def hook_points(self) -> tuple[HookPoint, ...] | None:
        """The places named by ``layer`` and ``site``, lowest first; None when no layer was named."""
        return None if self.layer is None else tuple(HookPoint(layer, self.site) for layer in sorted(self.layer))

    @property
    def run_folder(self) -> Path:
        """Where artefacts of this model live."""
        return self.run_dir or Path("checkpoints") / one_spelling(self.model).strip("/").replace("/", "--")

    @property
    def starts_over(self) -> bool:
        """Whether finished work is done again instead of being continued or returned."""
        return getattr(self, "fresh", False) or not getattr(self, "resume", True)

    def settings(self, *, local: bool = True) -> dict[str, Any]:
        """JSON-ready values of all settings, or of those that do not say where things are on this machine."""
        said = described(type(self))
        return {name: plain(getattr(self, name)) for name, each in said.items() if local or not each.setting.local}

    def deciding(self, artefact: Artefact) -> dict[str, Any]:
        """JSON-ready values of the settings that decide an artefact, as they were given."""
        said = described(type(self))
        return {name: plain(getattr(self, name)) for name, each in said.items() if artefact in each.decides}

    def items(self, artefact: Artefact) -> Mapping[str, tuple[str, ...]]:
        """What the settings name whose content decides an artefact, by setting."""
        said = described(type(self))
        chosen = [name for name, each in said.items() if each.setting.names_items and artefact in each.decides]
        return {name: getattr(self, name) for name in chosen}

    def require(self, **checks: tuple[bool, str]) -> None:
        """Raise for the first setting whose check is False; the text says what would be right."""
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise ConfigError(f"--{name} {shown(getattr(self, name))}: {wanted}")


def one_spelling(named: str) -> str:
    """A file or folder below the working directory relative to it, another one absolute; any other name as it is.

    Raises:
        ConfigError: as ``expanded``.
    """
    path = expanded(named)
    if not os.path.exists(path):  # noqa: PTH110 (which has no error for a name longer than any file's)
        return named
    # normpath and not resolve: a link keeps the name that the user knows
    full, here = Path(os.path.normpath(path.absolute())), Path.cwd()
    return str(full.relative_to(here) if here in full.parents else full)


def expanded(named: str | Path) -> Path:
    """The path that a name is, with the home that ``~`` stands for.

    Raises:
        ConfigError: the home is of somebody who is not known here.
    """
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{named} does not exist: no user of this machine is called so; give a full path") from error


def plain(value: Any) -> Any:
    """A setting's value as JSON has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def shown(value: Any) -> str:
    """A setting's value as one would spell it on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
