"""Every method there is, in the order of reports: one file and one line each. Plug-ins add to it, nothing is found."""

from collections.abc import Sequence

from sae_forge.errors import ConfigError
from sae_forge.methods.edits import (
    clamp,
    clamp_prime,
    conditional_clamp,
    diff_means,
    dsg,
    mean_ablate,
    project,
    refusal_clamp,
    scale,
    steer,
    zero,
)
from sae_forge.methods.method import Method, Wrapper
from sae_forge.methods.weights import crisp, grad_diff, gradient_ascent, npo, rmu, simnpo, suppress
from sae_forge.methods.wrappers import folds, quantised, relearned, stacked

METHODS: tuple[Method | Wrapper, ...] = (
    scale.METHOD,
    zero.METHOD,
    clamp.METHOD,
    clamp_prime.METHOD,
    conditional_clamp.METHOD,
    refusal_clamp.METHOD,
    dsg.METHOD,
    mean_ablate.METHOD,
    steer.METHOD,
    project.METHOD,
    diff_means.METHOD,
    rmu.METHOD,
    gradient_ascent.METHOD,
    grad_diff.METHOD,
    npo.METHOD,
    simnpo.METHOD,
    crisp.METHOD,
    suppress.METHOD,
    relearned.METHOD,
    quantised.METHOD,
    stacked.METHOD,
    folds.SCAL,
    folds.SUST,
)


def methods_of(names: Sequence[str], table: Sequence[Method | Wrapper] = METHODS) -> tuple[Method, ...]:
    """The methods to measure, in the order of reports; ``all`` stands for every one, and controls are no method.

    A wrapper that is named is done to the methods beside it, and what comes of that follows them; ``all`` names none.

    Raises:
        ConfigError: a wrapper is named and nothing beside it that it can be done to.
    """
    plain = tuple(one for one in table if isinstance(one, Method) and ("all" in names or one.name in names))
    wrapped: list[Method] = []
    for wrapper in (one for one in table if isinstance(one, Wrapper) and one.name in names):
        if not (made := wrapper.over(wrapper, plain)):
            raise ConfigError(
                f"--methods {wrapper.name} is done to methods named beside it, and there is none it can be done to; "
                f"name them too, as in scale,steer,{wrapper.name}"
            )
        wrapped += made
    return (*plain, *wrapped)


def controlled(names: Sequence[str]) -> bool:
    """Whether random controls are measured beside the edits."""
    return "random" in names or "all" in names
