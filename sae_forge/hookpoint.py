"""Names of places in a decoder, in the words the field shares: ``blocks.15.hook_resid_post``."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from sae_forge.errors import ConfigError

Site = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "z"]
SITES: tuple[str, ...] = get_args(Site)

_PATTERN = re.compile(r"blocks\.(\d+)\.(attn\.)?hook_(" + "|".join(SITES) + r")")


@dataclass(frozen=True, order=True)
class HookPoint:
    """A site of one layer; prints as TransformerLens and SAELens name it."""

    layer: int
    """Zero-based index of the decoder block."""
    site: Site = "resid_post"
    """``resid_post`` is the block's output, before any final norm; ``z`` what attention's output projection reads."""

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ConfigError(f"layer={self.layer} is negative; layers count from 0")
        if self.site not in SITES:
            raise ConfigError(f"site={self.site!r} is unknown; choose one of {', '.join(SITES)}")

    @classmethod
    def parse(cls, text: str) -> "HookPoint":
        """Read back what ``str`` gives."""
        match = _PATTERN.fullmatch(text)
        if match is None or (match[3] == "z") != bool(match[2]):
            raise ConfigError(f"hook point {text!r} is not of the form blocks.<layer>.hook_<{'|'.join(SITES)}>")
        return cls(int(match[1]), match[3])  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{'attn.' if self.site == 'z' else ''}hook_{self.site}"
