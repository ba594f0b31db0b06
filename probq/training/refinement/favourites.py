"""The choice that measured losses make the most probable is measured, too, before the law is trusted."""

from __future__ import annotations

from tqdm import tqdm

from probq.cost.budget import Budgets, budgets
from probq.decisions.constrained_posterior import constrain
from probq.decisions.measured_law import additive_laws
from probq.network.quantized.quantized import Quantized
from probq.training.refinement.best_first import BestFirstSearch
from probq.training.refinement.evidence.evidence import energy_of_choices
from probq.training.refinement.evidence.opinions import Experts
from probq.training.refinement.evidence.space import State


def measure_favourites(
    q: Quantized,
    search: BestFirstSearch,
    budget: Budgets,
    progress: bool = False,
    experts: Experts | None = None,
) -> State:
    """Measure the choice that the measured losses make the most probable within the budget, until it is a known one.

    A sum of effects may promise more of a choice than that holds. Once it was measured, the effects know, and another
    choice may be their favourite. The better of them replaces the best so far; at the end the decision is among the
    most probable choices.

    Args:
        q: the network, its widths not fixed.
        search: that has run.
        budget: that the widths are decided under.
        progress: show a progress bar.
        experts: who have a say in what is probable, or None.

    Returns:
        The state of least measured loss.

    Source: J. Mockus, V. Tiesis, A. Zilinskas, 1978, "The application of Bayesian methods for seeking the extremum".
    """
    with tqdm(disable=not progress, unit="network", desc="favourites", dynamic_ncols=True) as bar:
        while len(search.losses) < search.evaluations:
            state = _favourite(q, search, budget, experts)
            if state is None or state in search.losses:
                break
            search.loss(state)
            bar.update()
    return search.best


def _favourite(q: Quantized, search: BestFirstSearch, budget: Budgets, experts: Experts | None) -> State | None:
    energy = energy_of_choices(q, search.space, search.losses, experts)
    if energy is None:
        return None
    discrete = constrain(q, budgets(budget), laws=additive_laws(q, energy))
    assert discrete is not None  # it raises otherwise
    choice, _ = discrete.most_probable()
    return search.space.state(discrete.problem.widths(choice))
