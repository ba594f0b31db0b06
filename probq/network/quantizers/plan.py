"""The plan says which widths each layer may take, and what shares one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from probq.codebooks import Ladder, ladder
from probq.codebooks.rounding.scales import MULTIPLIERS
from probq.estimators import Estimator, SecondOrder
from probq.network.distributions.categorical_codes import MOST_LEVELS
from probq.network.tracing.layer import Layer
from probq.priors import CodePrior, WidthPrior
from probq.priors.energies.energy import Energy
from probq.utils.arguments import is_count
from probq.utils.errors import ProbqError

GATES = ("tensor", "channel", "weight")
SCALES = ("tensor", "channel")
PROFILES = ("dyadic", "shift")
WIDTHS = (1, 2, 3, 4, 5, 6, 8)  # of the default ladders, in bits


@dataclass(frozen=True)
class Plan:
    """A plan says how layers are quantized.

    Give one `Plan` for all, or a function `Layer -> Plan | None` (None: float).

    Attributes:
        weight: ladder of the weight; by default 1, 2, 3, 4, 5, 6 or 8 bits.
        input: ladder of the input; by default the same widths, signed where the example has negative values.
        network_input: ladder of the network's own input; by default 8 bits, not learned.
        gates: what shares one weight width: the "tensor", each output "channel", or each "weight" has its own.
        scales: what shares one weight scale: the "tensor" or each output "channel".
        profile: how hardware applies weight scales: "dyadic" (an integer multiplier of 16 to 31 and a shift, which
            follows the gain of a batch normalisation) or "shift" (powers of two, for every target: FPGA flows take no
            others; less accurate, above all with batch normalisation). By default "dyadic", and "shift" with
            `gates="weight"`, where weights of one sum have scales of their own. Scales of inputs are powers of two in
            both, which takes nothing from what the network can express.
        codes: number of nearest levels in the code posterior of a weight; 1 rounds deterministically.
        spread: initial spread of the code posterior in steps.
        activation: width in bits, 2 to 16, of what enters and leaves a non-linear function (Sigmoid, Tanh, GELU,
            SiLU, Softplus, ELU and others, as modules or called), so that it is a table of integers. It is not
            learned, has no place among the widths, and costs no bit operations; the plan of the layer called before
            the function counts. None leaves the function in float, where the network cannot be lowered. It leaves
            softmax in float too, which otherwise needs no width; at the end of a network the integer model then stops
            in front of it.
        state: width in bits, 4 to 16, of the memory of a recurrent cell where it is multiplied: the state `c` of an
            LSTM by the forget gate, the distance to the new state by the update gate of a GRU. It is not learned,
            because small changes have to add up over time, and counts in all costs; the plan of that product counts.
        tie_weight: a name; all weights and inputs that carry the same name share one width. Their ladders must have
            the same widths, and their gates the same shape. None: a width of its own.
        tie_input: the same for the input; the network's own input is never tied.
        free_codes: whether every weight has log-odds of its own for every level, in place of a law around a real-valued
            location; for codebooks of at most 16 levels, on layers without batch normalisation.
        keep_zeros: whether the zeros of the given weight stay zeros, as in a pruned network. Every codebook of the
            weight then needs the level 0, which the binary one of 1 bit lacks.
        estimator: how the gradients of the posteriors are estimated, one of `probq.estimators`; None: `SecondOrder`,
            but `StraightThrough` for codes while a fit at a temperature below 1 searches for widths.
        code_prior: prior of the codes, one of `probq.priors`; None: every level is equally probable.
        width_prior, input_prior: prior of the widths of the weight and of the input, of `probq.priors`; None: every
            rung is equally probable, and a fit at a temperature below 1 leaves out 0 bits of one width for the whole
            tensor where nothing leads around the layer. As `width_prior` of all layers, an energy of the whole network
            (`probq.Energy`, times the number of examples that it shall count for) is the prior
            `P(widths) proportional to exp(-energy)`.

    Raises:
        ProbqError: if a field has a value that it cannot take.

    Example: a function gives every layer its own ladder. A ladder with one rung requires its width, a width that is
    not on the ladder is forbidden, and None leaves the layer in float.

        >>> def plan(layer: Layer) -> Plan:
        ...     if layer.name == "head":
        ...         return Plan(weight=ladder(8), input=ladder(8))  # required
        ...     return Plan(weight=ladder(2, 4), tie_weight="body")  # 1 and 8 forbidden, one width for the whole body
        >>> plan(Layer("head", "head.weight", "head.input", 12, 12, 4, 3, (3, 4))).weight.bits
        (8,)
    """

    weight: Ladder = field(default_factory=lambda: ladder(*WIDTHS))
    input: Ladder | None = None
    network_input: Ladder | None = None
    gates: str = "tensor"
    scales: str = "channel"
    profile: str | None = None
    codes: int = 2
    spread: float = 0.1
    activation: int | None = 8
    state: int = 16
    tie_weight: str | None = None
    tie_input: str | None = None
    free_codes: bool = False
    keep_zeros: bool = False
    estimator: Estimator | None = None
    code_prior: CodePrior | None = None
    width_prior: WidthPrior | Energy | None = None
    input_prior: WidthPrior | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "input", "network_input"):
            value = getattr(self, name)
            if not isinstance(value, Ladder) and (name == "weight" or value is not None):
                raise ProbqError(
                    f"Plan({name}=...) takes a ladder such as probq.codebooks.ladder(2, 4, 8), not {value!r}"
                )
            if name != "weight" and value is not None and value.has_vectors:
                raise ProbqError(f"Plan({name}=...) takes codebooks of single numbers; vectors are for weights alone")
        _one_of("gates", self.gates, GATES)
        _one_of("scales", self.scales, SCALES)
        if self.profile is not None:
            _one_of("profile", self.profile, PROFILES)
        if self.profile == "dyadic" and self.gates == "weight":
            raise ProbqError(
                'Plan(gates="weight") needs profile="shift": weights of one sum with scales of their own must be '
                "powers of two apart"
            )
        if not is_count(self.codes, 1):
            raise ProbqError(f"Plan(codes=...) takes a number of levels, 1 or more, not {self.codes!r}")
        for name in ("tie_weight", "tie_input"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ProbqError(f"Plan({name}=...) takes a name, the same for all that share a width, not {value!r}")
        if not 0 < self.spread < 10:
            raise ProbqError(f"Plan(spread=...) takes a spread in steps between 0 and 10, not {self.spread!r}")
        if self.activation is not None and (type(self.activation) is not int or not 2 <= self.activation <= 16):
            raise ProbqError(f"Plan(activation=...) takes a width of 2 to 16 bits or None, not {self.activation!r}")
        if type(self.state) is not int or not 4 <= self.state <= 16:
            raise ProbqError(f"Plan(state=...) takes a width of 4 to 16 bits, not {self.state!r}")
        self._check_laws()
        if self.keep_zeros:
            self._check_zeros()

    def _check_zeros(self) -> None:
        """Raise unless every codebook of the weight has a level of 0 that stays there."""
        lacking = [rung.bits for rung in self.weight.rungs if rung.learned or not (rung.levels() == 0).any()]
        if lacking:
            raise ProbqError(
                f"Plan(keep_zeros=True) needs codebooks with a level of 0 that is not learned, which the one of "
                f"{lacking[0]} bits lacks; give e.g. weight=probq.codebooks.ladder(2, 4, 8)"
            )
        if self.free_codes:
            raise ProbqError("Plan(keep_zeros=True) fixes codes that free_codes=True would learn; use one of them")

    def _check_laws(self) -> None:
        """Raise unless estimator and priors are such, and fit the codes."""
        kinds = (("estimator", Estimator), ("code_prior", CodePrior), ("width_prior", WidthPrior))
        if isinstance(self.width_prior, Energy) and self.input_prior is not None:
            raise ProbqError("the energy in Plan(width_prior=...) knows the inputs too; leave input_prior out")
        for name, kind in (*kinds, ("input_prior", WidthPrior)):
            value = getattr(self, name)
            if name == "width_prior" and isinstance(value, Energy):
                continue
            if not isinstance(value, kind) and value is not None:
                home = "estimators" if name == "estimator" else "priors"
                raise ProbqError(f"Plan({name}=...) takes an object of probq.{home}, not {value!r}")
        if self.code_prior is not None:
            self.code_prior.check(self.weight)
        if self.codes == 1 and (self.free_codes or self.code_prior or self.estimator not in (None, SecondOrder())):
            raise ProbqError("Plan(codes=1) rounds: it has no law of codes to estimate; use codes=2 or more")
        if self.free_codes and self.gates != "tensor":
            raise ProbqError(
                'Plan(free_codes=True) needs gates="tensor": log-odds belong to one codebook for each rung'
            )
        if self.free_codes and max(rung.count for rung in self.weight.rungs) > MOST_LEVELS:
            raise ProbqError(
                f"Plan(free_codes=True) takes codebooks of at most {MOST_LEVELS} levels, not the ladder "
                f"{self.weight.bits}; use free_codes=False for wide ones"
            )

    @property
    def multipliers(self) -> int:
        """Return the least `m` of the scales `m 2^e` of weights, below twice that; 1 where scales are powers of two."""
        profile = self.profile or ("shift" if self.gates == "weight" else "dyadic")
        return MULTIPLIERS if profile == "dyadic" else 1

    def check(self, layer: Layer, layers: Sequence[Layer]) -> None:
        """Raise where this plan cannot be had on a layer.

        Args:
            layer: the layer.
            layers: all of the network.
        """
        kind, noisy = type(self.estimator).__name__, self.estimator is not None and self.estimator.noisy
        if noisy and sum(other.weight == layer.weight for other in layers) > 1:
            raise ProbqError(
                f"{kind} draws the outputs of one layer, but {layer.weight} is shared by several; give them another "
                "estimator"
            )
        if noisy and not layer.macs:
            raise ProbqError(f"{kind} needs a layer of products, which {layer.name} is not; give it another estimator")
        if noisy and not layer.plain:
            raise ProbqError(
                f"{kind} draws a layer's outputs, and {layer.name} has a forward of its own; give it another estimator"
            )
        if self.free_codes and layer.norm is not None:
            raise ProbqError(
                f"{layer.name} is followed by a batch normalisation that moves its weights when folded; give it a plan "
                "with free_codes=False"
            )

    def input_ladder(self, layer: Layer) -> Ladder:
        """Return the ladder of a layer's input, with the defaults filled in from what the example showed."""
        signed = layer.smallest < 0
        if layer.memory:
            return ladder(self.state, signed=True)
        if layer.first:
            return self.network_input or ladder(8, signed=signed)
        return self.input or ladder(*WIDTHS, signed=signed)


Planner: TypeAlias = Plan | Callable[[Layer], Plan | None]


def uniform(weight_bits: int, input_bits: int, **options: Any) -> Callable[[Layer], Plan]:
    """Return a plan of one width for all weights and one for all inputs.

    It is the baseline that learned widths are to beat.

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
    """Return the plan of one layer."""
    result: Any = plan if isinstance(plan, Plan) else plan(layer) if callable(plan) else plan
    if result is not None and not isinstance(result, Plan):
        names = ", ".join(f.name for f in fields(Plan))
        raise ProbqError(f"a plan is a probq.Plan({names}) or a function that returns one or None, not {result!r}")
    return result


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ProbqError(f"Plan({name}=...) takes one of {', '.join(map(repr, allowed))}, not {value!r}")
