"""The canvas every picture is drawn on: the house style, its colours, and figures of the same bytes every time.

Colours are Okabe and Ito's, told apart by colour-blind readers. Within a page a picture takes the page's own colours,
so it is dark where the page is.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from sae_forge.errors import BackendError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["png", "svg"]

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#767676",
)  # fmt: skip
INDIGO, WINE, FOREST = "#332288", "#882255", "#117733"
INKS = {
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
    ORANGE: "orange",
    PURPLE: "purple",
    SKY: "sky",
    GREY: "grey",
    INDIGO: "indigo",
    WINE: "wine",
    FOREST: "forest",
    "#ffffff": "paper",
    "#000000": "ink",
    "#222222": "ink",
    "#444444": "soft",
    "#999999": "soft",
    "#cccccc": "line",
    "#e4e4e4": "line",
}
"""What the page calls each colour of a picture."""
STYLE: dict[Any, Any] = {
    "figure.dpi": 144,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "sae_forge",  # unset, the ids within an SVG are drawn anew for every file
}  # fmt: skip


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple["Figure", Any]]:
    """An empty figure in the house style, and a function that turns it into bytes.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError("plots need matplotlib; install it with: pip install sae-forge[plot]") from error

    # no pyplot: it keeps every figure, picks a backend by the display there is, and is not safe among threads
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)

        def write(kind: Kind) -> bytes:
            held = io.BytesIO()
            # no version of matplotlib and no date in the file: the same data give the same bytes
            drawn.savefig(held, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
            return held.getvalue()

        yield drawn, write


def inline(svg: bytes) -> str:
    """An SVG to stand within a page: without prolog, size and names nobody asks for, in the colours of the page."""
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text, count=1
    )
    asked = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in asked else "", text)
    for colour, name in INKS.items():
        text = text.replace(colour.lower(), f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text)
