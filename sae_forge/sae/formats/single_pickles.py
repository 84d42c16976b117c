"""SAEs that are one pickle whose name says the layer: Goodfire, qresearch's of DeepSeek-R1, Qwen Scope, INLP's.

Source: SAELens' loaders ``goodfire``, ``deepseek_r1``, ``qwen_scope``; the INLP project's trainer.
"""

import re

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.formats.format import Described, Format, Found, Hints, Recipe

_TURNED = frozenset({"W_enc", "W_dec"})
_ITSELF = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def _linear(encoder: str, decoder: str) -> dict[str, str]:
    return {
        "W_enc": f"{encoder}.weight", "b_enc": f"{encoder}.bias",
        "W_dec": f"{decoder}.weight", "b_dec": f"{decoder}.bias",
    }  # fmt: skip


def _named_layer(found: Found, pattern: str) -> HookPoint:
    match = re.fullmatch(pattern, found.weights.name)
    if match is None:
        raise CheckpointError(f"{found.weights} does not say its layer in its name, as {pattern} would")
    return HookPoint(int(match[1]))


def describe_goodfire(found: Found, hints: Hints) -> Described:
    """What its name says; the latents are ReLU and ``b_dec`` is not taken off."""
    del hints
    recipe = Recipe(
        architecture="standard",
        names=_linear("encoder_linear", "decoder_linear"),
        turned=_TURNED,
        takes_off_b_dec=False,
    )
    model = f"meta-llama/{found.weights.name.partition('-SAE-')[0]}"
    return Described(recipe=recipe, point=_named_layer(found, r".*-SAE-l(\d{1,6})\.pth?"), model=model)


def describe_deepseek(found: Found, hints: Hints) -> Described:
    """What its name says; the latents are ReLU and ``b_dec`` is not taken off."""
    del hints
    recipe = Recipe(architecture="standard", names=_linear("encoder", "decoder"), turned=_TURNED, takes_off_b_dec=False)
    model = f"deepseek-ai/{found.weights.name.partition('-SAE-')[0]}"
    return Described(recipe=recipe, point=_named_layer(found, r".*-SAE-l(\d{1,6})\.pth?"), model=model)


def describe_qwen(found: Found, hints: Hints) -> Described:
    """What its name and that of its repository say: TopK, and k stands only there.

    Raises:
        CheckpointError: its path does not name the repository.
    """
    del hints
    match = re.search(r"SAE-Res-(?P<model>[\w.-]+)-W\d+K-L0_(?P<k>\d{1,6})", found.where)
    if match is None:
        raise CheckpointError(
            f"{found.weights} does not say how many latents it keeps; the name of its repository on the Hub does: "
            "keep it in a folder of that name, as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        )
    recipe = Recipe(architecture="topk", names=_ITSELF, turned=_TURNED, takes_off_b_dec=False, k=int(match["k"]))
    return Described(
        recipe=recipe, point=_named_layer(found, r"layer(\d{1,6})\.sae\.pt"), model=f"Qwen/{match['model']}"
    )


def describe_inlp(found: Found, hints: Hints) -> Described:
    """What its name says; k stands in the file, among the arguments of its training."""
    del hints
    recipe = Recipe(
        architecture="topk", names=_ITSELF, takes_off_b_dec=True, k_name="args.k",
        ignored=frozenset({"ticks_since_active", "total_steps"}),
    )  # fmt: skip
    return Described(recipe=recipe, point=_named_layer(found, r"sae_layer_(\d{1,6})\.pt"))


GOODFIRE = Format(name="Goodfire", weights="Llama-*-SAE-l*.pt*", describe=describe_goodfire)
DEEPSEEK_R1 = Format(name="DeepSeek-R1 of qresearch", weights="DeepSeek-*-SAE-l*.pt*", describe=describe_deepseek)
QWEN_SCOPE = Format(name="Qwen Scope", weights="layer*.sae.pt", describe=describe_qwen)
INLP = Format(name="INLP", weights="sae_layer_*.pt", describe=describe_inlp)
