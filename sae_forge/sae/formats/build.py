"""A dictionary from the tensors of a file: what a format says by convention is folded in, in float64."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sae_forge.errors import CheckpointError
from sae_forge.sae.architectures.architecture import Architecture, Built, Parts
from sae_forge.sae.architectures.table import ARCHITECTURES
from sae_forge.sae.formats.checked import MAX_SIZE
from sae_forge.sae.formats.format import Described, Recipe
from sae_forge.sae.formats.stored import Stored, lines, matrix, number, opened, vector

_BLOCK = 2**22
"""Numbers that are held in float64 at a time, beside the vectors."""


def read(path: Path, told: Described, *, allow_pickle: bool, what: str, centre: bool = False) -> Built:
    """The dictionary in a weights file, in fp32 on the CPU, its weights asking for no gradient.

    Beside what is returned it holds a few vectors and one piece of the file.

    Args:
        what: What the file should be, for messages.
        centre: Fold the mean over the width off the input (see ``Described.centred``).

    Raises:
        CheckpointError: missing, damaged, a pickle that was not allowed, or not what its settings say.
    """
    with opened(path, allow_pickle=allow_pickle, what=what) as stored:
        recipe = sized(stored, told.recipe)
        architecture = ARCHITECTURES[recipe.architecture]
        parts = _parts(stored, recipe, architecture)
        k = recipe.k if recipe.k_name is None else number(stored, recipe.k_name)
    if architecture.has_k and not 1 <= (k or 0) <= len(parts.b_enc):
        raise CheckpointError(f"{path} keeps k={k} latents per token of only d_sae={len(parts.b_enc)}")
    return architecture.built(_folded(parts, recipe, architecture, centre=centre), k or 0)


def read_latents(path: Path, told: Described, latents: Sequence[int], *, what: str, centre: bool = False) -> Built:
    """Some latents of a dictionary whose latents fire each by itself, in the order given: as ``read`` gives them.

    Of what lies latent by latent only these are read; of what lies across, everything is, and little of it kept.

    Raises:
        CheckpointError: as ``read``, but for what is not read.
    """
    with opened(path, allow_pickle=False, what=what) as stored:
        recipe = sized(stored, told.recipe)
        architecture = ARCHITECTURES[recipe.architecture]
        parts = _parts(stored, recipe, architecture, latents)
    return architecture.built(_folded(parts, recipe, architecture, centre=centre), 0)


def sized(stored: Stored, recipe: Recipe) -> Recipe:
    """The recipe with its sizes; the file's tensors are refused unless they are the expected ones, in these sizes."""
    names = dict(recipe.names)
    if recipe.threshold is not None and names.get("threshold") not in stored.shapes:
        names.pop("threshold", None)
    expected = {*names.values(), *filter(None, (recipe.k_name,))}
    if missing := expected - set(stored.shapes):
        raise CheckpointError(f"{stored.path}: expected the tensors {_listed(expected)}; it lacks {_listed(missing)}")
    if extra := set(stored.shapes) - expected - recipe.ignored:
        raise CheckpointError(f"{stored.path}: expected the tensors {_listed(expected)}; found {_listed(extra)} too")
    shape = stored.shapes[recipe.names["W_enc"]]
    if len(shape) != 2:
        raise CheckpointError(f"{stored.path}: W_enc has the shape {list(shape)[:8]}, not [d_in, d_sae]")
    d_in, d_sae = shape[::-1] if "W_enc" in recipe.turned else shape
    sizes = {"d_in": recipe.d_in or d_in, "d_sae": recipe.d_sae or d_sae}
    if not all(1 <= size <= MAX_SIZE for size in sizes.values()):
        raise CheckpointError(f"{stored.path}: d_in={sizes['d_in']} and d_sae={sizes['d_sae']} are beyond {MAX_SIZE}")
    axes = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
    for name, theirs in sorted(names.items(), key=lambda each: each[0] not in ("W_enc", "W_dec")):
        wanted = tuple(sizes[axis] for axis in axes.get(name, ("d_sae",)))
        wanted = wanted[::-1] if name in recipe.turned else wanted
        given = stored.shapes[theirs]
        if given != wanted and not (name == "threshold" and given == ()):
            raise CheckpointError(f"{stored.path}: expected {theirs} of shape {list(wanted)}, found {list(given)[:8]}")
    return replace(recipe, names=names, **sizes)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(name[:40] for name in names)[:8])


def _parts(stored: Stored, recipe: Recipe, architecture: Architecture, latents: Sequence[int] | None = None) -> Parts:
    """The weights as they lie, but for what the architecture says otherwise than by ``b_enc`` and a threshold.

    Args:
        latents: Those that are wanted, in their order; None: all.
    """

    def rows(name: str, *, turned: bool) -> Tensor:
        if latents is None:
            return matrix(stored, recipe.names[name], turned=turned)
        return lines(stored, recipe.names[name], latents, turned=turned)

    vectors = {
        name: vector(stored, recipe.names[name]).double() for name in architecture.tensors if name in recipe.names
    }
    if recipe.threshold is not None and "threshold" not in vectors:
        vectors["threshold"] = torch.tensor(recipe.threshold, dtype=torch.float64)
    if recipe.log_threshold:
        vectors["threshold"] = vectors["threshold"].exp()
    b_enc, threshold, strength = architecture.plain(vectors)
    threshold = threshold.expand(len(b_enc)).clone()
    if latents is not None:
        wanted = torch.tensor(latents, dtype=torch.long)
        b_enc, threshold, strength = b_enc[wanted], threshold[wanted], None if strength is None else strength[wanted]
    encoders = rows("W_enc", turned="W_enc" not in recipe.turned)
    if strength is not None:
        _multiply(encoders, strength)
    W_dec = rows("W_dec", turned="W_dec" in recipe.turned)
    return Parts(encoders, b_enc, W_dec, vector(stored, recipe.names["b_dec"]).double(), threshold)


def _folded(parts: Parts, recipe: Recipe, architecture: Architecture, *, centre: bool) -> Parts:
    """The same SAE without its conventions; the two matrices are changed where they lie."""
    encoders, b_enc, W_dec, b_dec, threshold = parts
    if recipe.by_norm and architecture.by_norm:
        norms = torch.cat([rows.double().norm(dim=1) for rows in W_dec.split(_rows(W_dec))])
        _multiply(encoders, norms)
        _multiply(W_dec, torch.where(norms > 0, 1 / norms, 0.0))  # a row of zeros never fires: its acts are 0 too
        b_enc = b_enc * norms
    if recipe.scale != 1:
        _multiply(encoders, torch.full_like(b_enc, recipe.scale))
        _multiply(W_dec, torch.full_like(b_enc, 1 / recipe.scale))
        b_dec = b_dec / recipe.scale
    if recipe.takes_off_b_dec == architecture.takes_off_b_dec and not centre:
        return Parts(encoders, b_enc, W_dec, b_dec, threshold)
    if recipe.takes_off_b_dec:
        b_enc = b_enc - answers(encoders, b_dec)
    if centre:  # W_enc less the mean of each column answers to x as W_enc does to x less its mean
        for rows in encoders.split(_rows(encoders)):
            rows.copy_(rows.double() - rows.double().mean(dim=1, keepdim=True))
    if architecture.takes_off_b_dec:
        b_enc = b_enc + answers(encoders, b_dec)
    return Parts(encoders, b_enc, W_dec, b_dec, threshold)


def answers(encoders: Tensor, x: Tensor) -> Tensor:
    """``x @ W_enc`` in float64, of one ``x`` [d_in] and encoders [d_sae, d_in]."""
    # a sum for each row, and no product: that of a few latents is then the same to the bit as that of all
    return torch.cat([(rows.double() * x).sum(dim=1) for rows in encoders.split(_rows(encoders))])


def _multiply(matrix: Tensor, by: Tensor) -> None:
    """Multiply each row by a number of its own."""
    size = _rows(matrix)
    for rows, factors in zip(matrix.split(size), by.split(size), strict=True):
        rows.copy_(rows.double() * factors[:, None])


def _rows(matrix: Tensor) -> int:
    return max(1, _BLOCK // matrix.shape[1])
