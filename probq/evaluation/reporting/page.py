"""These are the elements of the page. All text goes through `escape`: names of layers come from files of others."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from probq import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Cell:
    """A cell of a table has what is read, and the number (or None) that sorts it."""

    text: str
    value: float | None = None


@dataclass
class Content:
    """The content is what the page says, as plain text, apart from `tables` and `figures`, which are HTML.

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
    tables: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def escape(text: Any) -> str:
    """Return text that no browser takes for markup.

    What cannot be printed, or changes the direction of text, is replaced.
    """
    return html.escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)))


def number(value: float | None, form: str = ",.4g") -> Cell:
    """Return a cell of a number; a dash where there is none."""
    return Cell("–") if value is None or value != value else Cell(format(value, form), float(value))


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]], texts: int = 1) -> str:
    """Return a table whose first columns hold text and the others numbers; the first names the row."""
    kinds = ["name", *["text"] * (texts - 1), *[""] * (len(headings) - texts)]
    head = "".join(f'<th scope="col" class="{k}">{escape(h)}</th>' for k, h in zip(kinds, headings, strict=True))
    body = "\n".join("<tr>" + "".join(map(_cell, kinds, row)) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="sortable"><caption><span>{escape(caption)}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(kind: str, cell: Cell) -> str:
    # a number sorts by all its digits, a missing one comes last
    key = "" if kind else f' data-sort="{"" if cell.value is None else repr(cell.value)}"'
    if kind == "name":
        return f'<th scope="row" class="name">{escape(cell.text)}</th>'
    return f'<td class="{kind}"{key}>{escape(cell.text)}</td>'


def figure(ax: Axes, caption: str) -> str:
    """Return a picture within the page and what is to be seen on it, and close the figure."""
    data = base64.b64encode(plot.svg(ax).encode()).decode()
    alt = f"{escape(ax.get_title())}. {escape(caption)}"
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{alt}">'
    return (
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{escape(ax.get_title())}">{image}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(heading: str, *elements: str) -> str:
    """Return a part of the page; nothing where it has no elements."""
    if not elements:
        return ""
    name = escape(heading.split()[0].lower())
    inner = "\n".join([f'<h2 id="{name}">{escape(heading)}</h2>', *elements])
    return f'<section aria-labelledby="{name}">{inner}</section>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def page(content: Content, sections: Sequence[str], footer: str) -> str:
    """Return the whole document."""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in content.facts)
    body = [
        f"<header><h1>{escape(content.title)}</h1>",
        paragraph(content.summary, "summary"),
        paragraph(content.verdict[1], f"verdict {content.verdict[0]}"),
        "</header>",
    ]
    if content.warnings:
        items = "".join(f"<li>{escape(text)}</li>" for text in content.warnings)
        body.append(f'<ul class="warnings" aria-label="warnings">{items}</ul>')
    body += [f"<dl>{facts}</dl>", *sections]
    style, script = _text("page.css"), _text("page.js")
    return Template(_text("page.html")).substitute(
        title=escape(content.title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        body="\n".join(body),
        footer=escape(footer),
    )


def _text(name: str) -> str:
    return files("probq.evaluation.reporting").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what the page's policy allows, this text and no other script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
