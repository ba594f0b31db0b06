"""Pictures are written to files and pages here."""

from __future__ import annotations

import io
import warnings
from os import PathLike

from matplotlib import rc_context
from matplotlib.axes import Axes

from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError


def save(ax: Axes, path: str | PathLike[str]) -> None:
    """Write the figure of `ax` to a file in the format of its suffix, whole or not at all, and close the figure.

    Raises:
        ProbqError: if the file cannot be written, or matplotlib does not know its format.
    """
    from matplotlib import pyplot

    figure = ax.get_figure(root=True)
    assert figure is not None
    try:
        with replace_atomically(path) as temporary:
            figure.savefig(temporary, dpi=150)
    except ProbqError:
        raise
    except ValueError as error:
        raise ProbqError(f"cannot write {path}: {error}") from error
    finally:
        pyplot.close(figure)


def svg(ax: Axes) -> str:
    """Return the figure of `ax` as an SVG document, and close it; the same picture always gives the same text."""
    from matplotlib import pyplot

    figure = ax.get_figure(root=True)
    assert figure is not None
    buffer = io.StringIO()
    try:
        with rc_context({"svg.hashsalt": "probq"}), warnings.catch_warnings():
            # a name in a script that the font lacks is drawn as boxes; the tables beside have it whole
            warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
            figure.savefig(buffer, format="svg", metadata={"Date": None})
    finally:
        pyplot.close(figure)
    return buffer.getvalue()
