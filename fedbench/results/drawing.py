"""What all pictures share: colours, the look of axes, and SVG that goes inline into a page.

An SVG's text stays text, its ink is ``currentColor`` so that it follows light and dark, and the
same input gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

# Paul Tol's "vibrant" scheme and two of his "muted" one: told apart under the common colour
# blindnesses, and standing out from white and from black.
PALETTE = ("#0077bb", "#ee7733", "#009988", "#ee3377", "#33bbee", "#cc3311", "#aa4499", "#999933")
INK = "#010203"
"""Stands for the text colour of the page; no series has it."""
GREY = "#8a8f98"


@contextlib.contextmanager
def style(name: str) -> Iterator[None]:
    """A context in which matplotlib ignores the user's settings and repeats its ids."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": name,
                "text.parse_math": False,  # a dollar in a name is a dollar
                "font.size": 9.5,
                "text.color": INK,
                "axes.edgecolor": INK,
                "axes.labelcolor": INK,
                "axes.linewidth": 0.8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "xtick.color": INK,
                "ytick.color": INK,
            }
        )
        yield


def draw_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.patch.set_alpha(0.0)
    return figure


def svg_of(figure: Any, name: str, title: str) -> str:
    """The figure as one SVG element that can stand inside HTML."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # Texts stay texts, and the reader's fonts have the letters that matplotlib's lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"font: ((?:\w+ )?[\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    svg = re.sub(r'id="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def standalone(svg: str) -> str:
    """The SVG as a file of its own: dark ink on white, whatever stands around it."""
    start = svg.index(">") + 1
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return (svg[:start] + white + svg[start:]).replace("currentColor", "#1f2328") + "\n"
