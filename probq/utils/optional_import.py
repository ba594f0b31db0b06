"""Libraries that only some targets need are imported when they are needed."""

import importlib
from typing import Any

from probq.utils.errors import ProbqError


def require(module: str, extra: str) -> Any:
    """Return the module of the given dotted name.

    Args:
        module: as `onnx.helper`.
        extra: the extra of probq that installs it.

    Raises:
        ProbqError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.split(".")[0]
        raise ProbqError(
            f'{library} cannot be imported ({error}); install it with: pip install "probq[{extra}]"'
        ) from error
