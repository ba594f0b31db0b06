"""probq has one exception type."""


class ProbqError(ValueError):
    """A user did something that probq cannot carry out; the message says what to do about it."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    r"""Return the text with what a terminal might obey written out, as in `repr`: names in files are anybody's.

    >>> print(printable("a\x07b"))
    a\x07b
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def sentence(error: BaseException) -> str:
    """Return the first line of an error's message, 300 characters at most.

    Tensors and tables stand below that line.
    """
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip(' :.'):.300}" if lines else type(error).__name__
