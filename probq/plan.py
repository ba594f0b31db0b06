"""The plan: which widths each layer may take, and what shares one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from probq.codebooks import Ladder, ladder
from probq.errors import ProbqError
from probq.layers import Layer

GATES = ("tensor", "channel", "weight")
SCALES = ("tensor", "channel")


@dataclass(frozen=True)
class Plan:
    """How the layers are quantized. Give one `Plan` for all, or a function `Layer -> Plan | None` (None: float).

    Attributes:
        weight: ladder of the weight.
        input: ladder of the input; by default 1, 2, 4 or 8 bits, signed where the example has negative values.
        network_input: ladder of the network's own input; by default 8 bits, not learned.
        gates: what shares one weight width: the "tensor", each output "channel", or each "weight" has its own.
        scales: what shares one weight scale: the "tensor" or each output "channel".
        codes: number of nearest levels in the code posterior of a weight; 1 rounds deterministically.
        spread: initial spread of the code posterior in steps.

    Raises:
        ProbqError: if a field has a value that it cannot take.
    """

    weight: Ladder = field(default_factory=lambda: ladder(1, 2, 4, 8))
    input: Ladder | None = None
    network_input: Ladder | None = None
    gates: str = "tensor"
    scales: str = "channel"
    codes: int = 2
    spread: float = 0.1

    def __post_init__(self) -> None:
        for name in ("weight", "input", "network_input"):
            value = getattr(self, name)
            if not isinstance(value, Ladder) and (name == "weight" or value is not None):
                raise ProbqError(
                    f"Plan({name}=...) takes a ladder such as probq.codebooks.ladder(2, 4, 8), not {value!r}"
                )
        _one_of("gates", self.gates, GATES)
        _one_of("scales", self.scales, SCALES)
        if isinstance(self.codes, bool) or not isinstance(self.codes, int) or self.codes < 1:
            raise ProbqError(f"Plan(codes=...) takes a number of levels, 1 or more, not {self.codes!r}")
        if not 0 < self.spread < 10:
            raise ProbqError(f"Plan(spread=...) takes a spread in steps between 0 and 10, not {self.spread!r}")

    def input_ladder(self, layer: Layer) -> Ladder:
        """Ladder of a layer's input, with the defaults filled in from what the example showed."""
        signed = layer.smallest < 0
        if layer.first:
            return self.network_input or ladder(8, signed=signed)
        return self.input or ladder(1, 2, 4, 8, signed=signed)


Planner: TypeAlias = Plan | Callable[[Layer], Plan | None]


def uniform(weight_bits: int, input_bits: int, **options: Any) -> Callable[[Layer], Plan]:
    """One width for all weights and one for all inputs: the baseline that learned widths are to beat.

    Nothing is left to learn but scales and codes; `fit` takes the same steps as for learned widths.

    Args:
        weight_bits: width of every weight in bits.
        input_bits: width of every layer's input in bits, signed where the example has negative values. The network's
            own input has 8 bits unless `network_input=...` says otherwise.
        options: further arguments of `Plan`.

    Raises:
        ProbqError: if there is no such width, or `Plan` has no such argument.

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> probq.quantize(net, torch.rand(4, 2), probq.uniform(4, 2)).mode().widths
        {'0.weight': 4, '2.weight': 4, '0.input': 8, '2.input': 2}
    """
    known = [f.name for f in fields(Plan) if f.name not in ("weight", "input")]
    for name in options:
        if name not in known:
            raise ProbqError(f"uniform has no option {name!r}; besides the two widths it takes {', '.join(known)}")
    signed, unsigned = (Plan(ladder(weight_bits), ladder(input_bits, signed=s), **options) for s in (True, False))
    return lambda layer: signed if layer.smallest < 0 else unsigned


def plan_for(plan: Planner, layer: Layer) -> Plan | None:
    """The plan of one layer."""
    result: Any = plan if isinstance(plan, Plan) else plan(layer) if callable(plan) else plan
    if result is not None and not isinstance(result, Plan):
        names = ", ".join(f.name for f in fields(Plan))
        raise ProbqError(f"a plan is a probq.Plan({names}) or a function that returns one or None, not {result!r}")
    return result


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ProbqError(f"Plan({name}=...) takes one of {', '.join(map(repr, allowed))}, not {value!r}")
