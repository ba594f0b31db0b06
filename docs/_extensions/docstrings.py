"""Docstrings as Sphinx and napoleon understand them: formulas, properties, several names in one line."""

import inspect
import re
from typing import Any

SECTION = re.compile(r"[A-Z][A-Za-z ]*:")
NO_FORMULA = (">>>", "* ", "- ", "..", ":")


def mark_formulas(lines: list[str]) -> list[str]:
    """The lines of a docstring, with a `::` before each indented paragraph that follows a plain one."""
    marked: list[str] = []
    inside, last = False, ""  # of a formula; last line of text
    for line in lines:
        text, indented = line.strip(), line.startswith("    ")
        starts = indented and not inside and marked and not marked[-1].strip() and last[:1].strip()
        if starts and not SECTION.fullmatch(last) and not text.startswith(NO_FORMULA):
            marked += ["::", ""]
            inside = True
        inside = inside and (indented or not text)
        last = line if text else last
        marked.append(line)
    return marked


def join_names(line: str) -> str:
    """A line `a, b: text` of a section as `a,b: text`, or Sphinx takes the first name for a type."""
    match = re.match(r"    (\w+(?:, \w+)+): ", line)
    return line if match is None else line.replace(match[1], match[1].replace(", ", ","), 1)


def inherited_attributes(item: Any) -> list[str]:
    """The section on attributes of the base class that has one, for a class of probq whose docstring has none."""
    for base in item.__mro__[1:] if inspect.isclass(item) and "Attributes:" not in (item.__doc__ or "") else ():
        text = inspect.cleandoc(vars(base).get("__doc__") or "")
        if base.__module__.startswith("probq.") and "Attributes:" in text:
            return ["", *text[text.index("Attributes:") :].split("\n\n")[0].splitlines(), ""]
    return []


def _expression(match: re.Match[str]) -> str:
    return "..." if match[1] == "factory" else match[1]


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx; napoleon rewrites the sections afterwards."""
    from sphinx.domains.python import PyObject  # here, so that the tests of this file need no Sphinx

    def process(_app: Any, what: str, _name: str, item: Any, _options: Any, lines: list[str]) -> None:
        lines += inherited_attributes(item) if what == "class" else []
        lines[:] = [join_names(line) for line in mark_formulas(lines)]
        if what in ("attribute", "property"):
            lines[:0] = ["..", ""]  # or napoleon takes what stands before a colon for a type

    def sign(_app: Any, _what: str, _name: str, _object: Any, _options: Any, signature: Any, result: Any) -> Any:
        # Sphinx cannot read a signature in which a default value is no expression
        return signature and (re.sub(r"<(?:function )?(\w+)>", _expression, signature), result)

    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings say, not "Variables"
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-signature", sign)
    return {"parallel_read_safe": True}
