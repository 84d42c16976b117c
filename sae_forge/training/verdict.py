"""Is this SAE fit to be used? A verdict on what was measured of it, and what would help."""

from typing import NamedTuple

CE_FIT, CE_USABLE = 0.95, 0.8
"""Share of the loss recovered from which on an SAE is fit, and below which what is read off it says little."""
DEAD = 0.2
"""Share of dead latents from which on the width is not used."""
FALLING = 0.02
"""Fall of the loss over the last tenth of the steps at the full rate from which on it was still falling."""
FEW_STEPS = 200


class Verdict(NamedTuple):
    """What an SAE is good for."""

    fit: bool
    said: str
    """One line: the word, why, and what would help."""


def judged(
    *,
    fvu: float,
    fvu_pca: float | None,
    ce_recovered: float | None,
    dead_share: float,
    falling: float | None,
    steps: int,
    tokens: int,
) -> Verdict:
    """The verdict on these figures; what was not measured counts for nothing.

    Args:
        fvu_pca: What a PCA of rank k leaves unexplained of the same rows.
        falling: Fall of the training loss towards the end of the full rate, as a share.
    """
    against, worst = [], "fit"
    if fvu_pca is not None and fvu >= fvu_pca:
        against.append(f"FVU {fvu:.2f}, where a PCA of rank k leaves {fvu_pca:.2f}")
        worst = "not fit"
    if ce_recovered is not None and ce_recovered < CE_FIT:
        against.append(f"CE recovered {ce_recovered:.2f}")
        worst = "not fit" if ce_recovered < CE_USABLE else worst
    if dead_share > DEAD:
        against.append(f"{dead_share:.0%} of the latents are dead")
    if against and worst == "fit":
        worst = "usable, with care"
    why = f": {'; '.join(against)}" if against else ""
    still = falling is not None and falling > FALLING
    help_ = _help(
        weak=bool(against), dead=dead_share > DEAD, short=still or steps < FEW_STEPS, steps=steps, tokens=tokens
    )
    fell = f"; the loss was still falling at the end ({falling:.1%} over a tenth of the steps)" if still else ""
    return Verdict(worst != "not fit", f"{worst}{why}{fell}{help_}")


def _help(*, weak: bool, dead: bool, short: bool, steps: int, tokens: int) -> str:
    """What to try first."""
    if short and (weak or steps < FEW_STEPS):
        return (
            f". {steps} steps on {tokens:,} tokens are few: more text (--max_tokens), more --epochs or a smaller "
            "--batch_size would help"
        )
    if short:
        return ". More --epochs or text would still help"
    if dead:
        return ". A smaller --expansion_factor, a lower --lr or more text would help"
    return ". A larger --k or --expansion_factor would help" if weak else ""
