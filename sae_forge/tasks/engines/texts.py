"""Plain numbers about texts: overlap and repetition, each a pure function that can be checked by hand."""

import re
from collections.abc import Callable, Sequence

DISTINCT_3_FLOOR, DISTINCT_2_FLOOR = 0.6, 0.4
STUTTER_LENGTH, STUTTER_TIMES = 10, 3
SHORTEST_STEMMED = 4
"""Letters of a word that ROUGE takes the stem of."""
WORD = re.compile("[a-z0-9]+")


def porter() -> Callable[[str], str] | None:
    """Porter's stemmer with NLTK's extensions, as rouge_score has it; None where NLTK is not installed."""
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError:
        return None
    return PorterStemmer().stem


def rouge_l_f1(prediction: str, reference: str, stem: Callable[[str], str] | None = None) -> float:
    """Harmonic mean of what share of either text's words is in their longest common subsequence, in [0, 1].

    Words are runs of a-z and 0-9 in lower case; a text without any scores 0. Without ``stem`` as muse_bench takes them,
    with it as open-unlearning does.
    """
    said, wanted = _words(prediction, stem), _words(reference, stem)
    return 2 * longest_common(said, wanted) / (len(said) + len(wanted)) if said and wanted else 0.0


def rouge_l_recall(prediction: str, reference: str, stem: Callable[[str], str]) -> float:
    """What share of the reference's words is in the texts' longest common subsequence, in [0, 1].

    Words of more than three letters count by their stems, as ``rouge_score`` takes them for TOFU.
    """
    wanted = _words(reference, stem)
    return longest_common(_words(prediction, stem), wanted) / len(wanted) if wanted else 0.0


def _words(text: str, stem: Callable[[str], str] | None) -> list[str]:
    words = WORD.findall(text.lower())
    return [stem(word) if len(word) >= SHORTEST_STEMMED else word for word in words] if stem else words


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest sequence that both hold in order, gaps allowed."""
    row = [0] * (len(other) + 1)  # of what was read of `one` so far, with the first n of `other`
    for mine in one:
        diagonal = 0
        for place, its in enumerate(other, start=1):
            above = row[place]
            row[place] = diagonal + 1 if mine == its else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def distinct(text: str, n: int) -> float:
    """Unique over all word n-grams, in (0, 1]; 1 for a text of fewer than ``n`` words."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def stutters(text: str) -> bool:
    """Whether some stretch of 10 to 49 characters occurs three times without overlapping itself.

    A longer stretch that recurs begins with a stretch of 10 that recurs as often, so those decide.
    """
    starts: dict[str, tuple[int, int]] = {}
    for position in range(len(text) - STUTTER_LENGTH + 1):
        stretch = text[position : position + STUTTER_LENGTH]
        times, free_from = starts.get(stretch, (0, 0))
        if position >= free_from:
            starts[stretch] = (times + 1, position + STUTTER_LENGTH)
            if times + 1 == STUTTER_TIMES:
                return True
    return False


def degenerate(text: str) -> bool:
    """Whether a text repeats itself: distinct-3 below 0.6, distinct-2 below 0.4, or a stutter (INLP_PROJECT)."""
    return distinct(text, 3) < DISTINCT_3_FLOOR or distinct(text, 2) < DISTINCT_2_FLOOR or stutters(text)
