"""The one exception type of probq."""


class ProbqError(ValueError):
    """Something a user did that probq cannot carry out; the message says what to do about it."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    r"""The text with what a terminal might obey written out, as in `repr`: names in files are anybody's.

    >>> print(printable("a\x07b"))
    a\x07b
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def sentence(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters of it; tensors and tables stand below that."""
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip(' :.'):.300}" if lines else type(error).__name__
