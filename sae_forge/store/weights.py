"""The one question "same weights?", asked of what was made with one model or SAE before it is used with another."""

from sae_forge.errors import ForgeError


def same(theirs: str, ours: str) -> bool | None:
    """Whether two records mean the same weights; None where one says nothing, or each says it in another way.

    A record is a digest of tensors (``tensors-1:…``), or, of older versions, a sha256 of files or a Hub model's commit.
    """
    if theirs == ours and theirs:
        return True
    comparable = len(theirs) == len(ours) and theirs.partition(":")[1] == ours.partition(":")[1]
    return False if theirs and ours and comparable else None


def require_same(theirs: str, ours: str, made: str, used: str, *, kind: type[ForgeError], advice: str) -> None:
    """Refuse what was made with other weights; where that cannot be known, nothing is held against it.

    Args:
        theirs: What the weights it was made with are known by.
        ours: The same of those it would be used with.
        made: What it is and what it was made from, as ``shards/forget was collected from tiny-llama``.
        used: What it would be used with, as ``this model``.
        kind: The error to raise.
        advice: What to do, for its end.
    """
    if same(theirs, ours) is False:
        shown = [text.rpartition(":")[2][:12] for text in (theirs, ours)]
        raise kind(f"{made} with other weights than {used} has ({shown[0]}, not {shown[1]}); {advice}")
