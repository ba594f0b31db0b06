"""Links between pages, notebooks and other files, as they stand in the repository, become links of the manual."""

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\((?!\w+:)([^()\s#]+)(#[^()\s]*)?\)")


def rewrite(text: str, page: str, files: str | None) -> str:
    """A page's text with each link to a file where the manual has it.

    Args:
        text: of the page, Markdown or a notebook.
        page: its name in the manual, as `start/reading`.
        files: address under which the repository's files are shown, or None: then their names stand without a link.
    """
    home = ROOT if page.startswith("notebooks/") else ROOT / "docs"  # where the file lies in the repository

    def new(match: re.Match[str]) -> str:
        label, target, part = match[1], match[2], match[3] or ""
        path = Path(os.path.normpath((home / page).parent / target))
        if not path.is_relative_to(ROOT) or not path.exists():
            return match[0]  # Sphinx says what is wrong with it
        if path.suffix in (".md", ".ipynb") and path.parts[len(ROOT.parts)] in ("docs", "notebooks"):
            inside = path.relative_to(ROOT / "docs") if path.is_relative_to(ROOT / "docs") else path.relative_to(ROOT)
            return f"[{label}](/{inside}{part})"
        return f"[{label}]({files}/{path.relative_to(ROOT)}{part})" if files else label

    return LINK.sub(new, text)


def repository() -> str | None:
    """Address of the repository's files where a workflow of GitHub builds the pages."""
    name = os.environ.get("GITHUB_REPOSITORY")
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}/blob/main" if name else None


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""

    def read(_app: Any, page: str, source: list[str]) -> None:
        source[0] = rewrite(source[0], page, repository())

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
