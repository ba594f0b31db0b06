"""Weights that were trained for a little while at drawn widths favour no choice of widths."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from probq.decisions.widths import fix_widths, release_widths
from probq.network.quantized.quantized import Quantized
from probq.training.svi.learning_rates import Rates, parameter_groups
from probq.training.svi.objective import Objective
from probq.utils.errors import ProbqError
from probq.utils.random_stream import Stream
from probq.utils.structures.tensors import rows_of


def train_at_drawn_widths(
    q: Quantized,
    examples: Sequence[tuple[Any, Tensor]],
    drawn: Sequence[Mapping[str, Any]],
    rates: Rates,
    progress: bool,
) -> Quantized:
    """Return a copy of a network that was trained in one step at each of some choices of widths.

    A search leaves weights for the widths that it came to prefer, and what is measured with them favours these. One set
    of weights that has to serve all choices ranks them as training at each of them would.

    Args:
        q: the network, its widths not fixed, which stays as it is.
        examples: batches of training data.
        drawn: the widths of each step.
        rates: of the parameters; they fall with a cosine.
        progress: show a progress bar.

    Raises:
        ProbqError: if a loss is not finite.

    Source: H. Cai, C. Gan, T. Wang, Z. Zhang, S. Han, 2020, "Once-for-All: Train One Network and Specialize it for
    Efficient Deployment" (one set of weights for all choices).
    """
    with Stream(0).training():
        own = copy.deepcopy(q)
        own.rounding = True
        own.train()
        objective = Objective(own, sum(rows_of(x) for x, _ in examples), draws=1)
        optimizer = Adam(parameter_groups(own, rates, None))
        schedule = CosineAnnealingLR(optimizer, len(drawn))
        shown = tqdm(drawn, disable=not progress, unit="step", desc="drawn widths", dynamic_ncols=True)
        for widths, (x, y) in zip(shown, cycle(examples), strict=False):
            fix_widths(own, widths)
            optimizer.zero_grad()
            bound = objective(x, y)
            if not bound.value.detach().isfinite():
                raise ProbqError(f"the loss is {float(bound.value.detach())} where widths are drawn")
            objective.backward(bound.value, bound, settling=False)
            optimizer.step()
            schedule.step()
        release_widths(own)
        own.rounding = False
        own.eval()
    return own
