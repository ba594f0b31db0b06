"""The one exception type of probq."""


class ProbqError(ValueError):
    """Something a user did that probq cannot carry out; the message says what to do about it."""
