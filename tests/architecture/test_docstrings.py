"""The first sentence of a docstring has a subject and a verb, as far as a list of verbs can tell.

A function's docstring may open with an imperative; in that of a module or a class stands a verb in the present. Whoever
needs another verb adds it to `verbs.txt`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A reader must guess the subject or the verb of a sentence that opens so.
FRAGMENT = re.compile(r"(Of|Those|That of|What|Whether|How|Why|Which|Within:)(?= |$)")
# Imperatives have a capital: a function's first sentence may open with one.
VERBS = frozenset(Path(__file__).with_name("verbs.txt").read_text("utf-8").split())


def first_sentence(docstring: str) -> str:
    """Return the words up to the first full stop; a formula is one word, and `is` if it opens with an equation."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    opening = re.match(r"`[^`]* = [^`]*`", paragraph)
    words = re.sub(r"`[^`]*`", "it", paragraph)
    return "is" if opening else re.split(r"[.?!](?: |$)", words, maxsplit=1)[0]


def is_whole(docstring: str, of_function: bool) -> bool:
    """Return whether the first sentence has a subject and a verb."""
    sentence = first_sentence(docstring)
    words = re.findall(r"[A-Za-z'-]+", sentence)
    if FRAGMENT.match(sentence):
        return False
    imperative = of_function and words[0] in VERBS
    return imperative or words[0] == "Is" or not VERBS.isdisjoint(word for word in words if word.islower())


def docstrings(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield line and text of every docstring in a source, and whether it is a function's."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text, isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def test_first_sentences_have_a_subject_and_a_verb() -> None:
    fragments = []
    for path in sorted((ROOT / "probq").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for line, text, of_function in docstrings(path.read_text("utf-8")):
            if not is_whole(text, of_function):
                fragments.append(f"{name}:{line}: {first_sentence(text)}")
    assert not fragments, "no subject or no verb:\n" + "\n".join(fragments)


@pytest.mark.parametrize(
    "docstring",
    [
        "Of a cost that is a sum over layers.",
        "Those of the bound.",
        "What is folded into it.",
        "Whether every width is fixed.",
        "Within: evaluation mode, as in everything that is decided.",
        "Number of gates `G`.",
        "`P(cost <= limit)` and what remains to 1.",
        "The quantizer of a weight: the laws of its codes, and their priors.",
        "Cost in percent.\n\nIt is that of the network with 32-bit weights.",
    ],
)
def test_fragments_are_found(docstring: str) -> None:
    assert not is_whole(docstring, of_function=True)
    assert not is_whole(docstring, of_function=False)


@pytest.mark.parametrize(
    ("docstring", "of_function"),
    [
        ("Return the number of gates `G`.", True),
        ("A budget limits the cost of a network.", False),
        ("`w = l_j` with `j ~ q`.\n\nIts gradient is that of the mean.", False),
        ("Is a predictive distribution honest? Scores tell.", False),
    ],
)
def test_whole_sentences_pass(docstring: str, of_function: bool) -> None:
    assert is_whole(docstring, of_function)
