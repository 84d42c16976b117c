"""Every method there is, in the order of reports: one file and one line each. Plug-ins add to it, nothing is found."""

from collections.abc import Sequence

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
from sae_forge.methods.method import Method
from sae_forge.methods.weights import crisp, grad_diff, gradient_ascent, npo, rmu, simnpo

METHODS: tuple[Method, ...] = (
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
)


def methods_of(names: Sequence[str], table: Sequence[Method] = METHODS) -> tuple[Method, ...]:
    """The methods to measure, in the order of reports; ``all`` stands for every one, and controls are no method."""
    return tuple(method for method in table if "all" in names or method.name in names)


def controlled(names: Sequence[str]) -> bool:
    """Whether random controls are measured beside the edits."""
    return "random" in names or "all" in names
