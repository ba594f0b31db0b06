"""The one exception type of probq."""


class ProbqError(ValueError):
    """Something a user did that probq cannot carry out; the message says what to do about it."""


def sentence(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters of it; tensors and tables stand below that."""
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip(' :.'):.300}" if lines else type(error).__name__
