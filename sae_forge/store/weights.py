"""The one question "same weights?", asked of what was made with one model or SAE before it is used with another."""

from sae_forge.errors import ForgeError


def require_same(theirs: str, ours: str, made: str, used: str, *, kind: type[ForgeError], advice: str) -> None:
    """Refuse what was made with other weights; where either are unknown, an empty text, nothing is held against it.

    Args:
        theirs: Hash or revision of the weights it was made with.
        ours: Those it would be used with.
        made: What it is and what it was made from, as ``shards/forget was collected from tiny-llama``.
        used: What it would be used with, as ``this model``.
        kind: The error to raise.
        advice: What to do, for its end.
    """
    if theirs and ours and theirs != ours:
        raise kind(f"{made} with other weights than {used} has ({theirs[:12]}, not {ours[:12]}); {advice}")
