"""The page is a template, filled with elements; Jinja escapes all text: names of layers come from files of others."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from jinja2 import Environment, FunctionLoader, StrictUndefined

from probq import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Cell:
    """A cell of a table has what is read, and the number (or None) that sorts it."""

    text: str
    value: float | None = None

    @property
    def key(self) -> str:
        """Return what the cell is sorted by: all digits of its number; a missing one comes last."""
        return "" if self.value is None else repr(self.value)


@dataclass(frozen=True)
class Table:
    """A table names its rows in the first column; `kinds` has the class of each column, empty for numbers."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    kinds: tuple[str, ...]
    macro: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """A figure is a picture within the page (SVG in base 64) with its title and what is to be seen on it."""

    title: str
    caption: str
    data: str
    macro: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph is plain text, of a class or none."""

    text: str
    kind: str = ""
    macro: ClassVar[str] = "paragraph"


Element = Table | Figure | Paragraph


@dataclass(frozen=True)
class Section:
    """A section is a part of the page; it is left out where it has no elements."""

    heading: str
    elements: Sequence[Element]

    @property
    def name(self) -> str:
        """Return the name by which the page refers to the heading."""
        return self.heading.split()[0].lower()


@dataclass
class Content:
    """The content is what the page says, as plain text, apart from `tables` and `figures`.

    Attributes:
        title: the title of the page.
        summary: one or two sentences.
        verdict: class ("kept", "broken" or "open") and text.
        facts: pairs of a name and a text.
        tables, figures: elements.
        warnings: sentences.
    """

    title: str
    summary: str
    verdict: tuple[str, str]
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def number(value: float | None, form: str = ",.4g") -> Cell:
    """Return a cell of a number; a dash where there is none."""
    return Cell("–") if value is None or value != value else Cell(format(value, form), float(value))


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]], texts: int = 1) -> Table:
    """Return a table whose first columns hold text and the others numbers; the first names the row."""
    kinds = ("name", *["text"] * (texts - 1), *[""] * (len(headings) - texts))
    return Table(caption, tuple(headings), tuple(map(tuple, rows)), kinds)


def figure(ax: Axes, caption: str) -> Figure:
    """Return a picture within the page, and what is to be seen on it; closes the figure."""
    data = base64.b64encode(plot.svg(ax).encode()).decode()
    return Figure(ax.get_title(), caption, data)


def page(content: Content, sections: Sequence[Section], footer: str) -> str:
    """Return the whole document."""
    style, script = _text("page.css"), _text("page.js")
    environment = Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        finalize=_readable,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        content=content,
        sections=[section for section in sections if section.elements],
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        footer=footer,
    )


def _readable(value: Any) -> Any:
    """Return text in which what cannot be printed, or changes the direction of text, is replaced."""
    if hasattr(value, "__html__"):  # what the template made, of text that went through here
        return value
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _text(name: str) -> str:
    return files("probq.evaluation.reporting").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what the page's policy allows, this text and no other script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
