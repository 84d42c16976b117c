"""What is kept like an SAE and is none that can be used: recognised, so that the refusal is true."""

from collections.abc import Callable

from sae_forge.errors import CheckpointError
from sae_forge.sae.formats.format import TRANSCODER, Described, Format, Found, Hints


def _because(reason: str) -> Callable[[Found, Hints], Described]:
    def describe(found: Found, hints: Hints) -> Described:
        del hints
        raise CheckpointError(f"{found.weights} {reason}")

    return describe


_TRANSCODER = f"is a transcoder of circuit-tracer: it {TRANSCODER}"
_CROSS_LAYER = "is a cross-layer transcoder: it writes to many layers at once, so it is no SAE"
_TEMPORAL = "is a temporal SAE, whose acts hang on the tokens before; what it computes cannot be folded into an encoder"
_HEADS = "is an SAE of hook_z, attention's heads apart; no such place can be edited here"

REFUSED = (
    Format(name="circuit-tracer", weights="layer_*.safetensors", describe=_because(_TRANSCODER)),
    Format(name="cross-layer transcoder", weights="W_enc_*.safetensors", describe=_because(_CROSS_LAYER)),
    Format(name="temporal", weights="latest_ckpt.safetensors", describe=_because(_TEMPORAL)),
    Format(name="attention SAEs of ckkissane", weights="*_z_*.pt", describe=_because(_HEADS)),
)
