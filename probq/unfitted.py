"""A word of warning where a posterior that was never fitted is about to be drawn from."""

from __future__ import annotations

import warnings

from probq.network import Network


def warn_unfitted(q: Network, stacklevel: int = 3) -> None:
    """Warn unless `fit` has seen the network.

    Args:
        q: the network; `fit` sets its `calibrated`, which is saved with it.
        stacklevel: whose line is shown, as in `warnings.warn`; by default the caller's caller.
    """
    if not q.calibrated:
        warnings.warn(
            "the posterior was never fitted, so its draws are those of the starting point; run probq.fit first, or set "
            "q.calibrated = True if you fitted it in another way",
            UserWarning,
            stacklevel=stacklevel,
        )
