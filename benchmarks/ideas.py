"""Ideas of the literature against the defaults at equal cost: binary or ternary layers, bit planes, mixed rows, steps.

For each seed a float network is trained; each idea then has as many epochs as its control, which gets a limit of just
what the idea's network costs. Updates of weights at fixed widths have straight-through tuning from the same start as
control, and steps set from spreads, without training, those of least squared error. On the digits (the seed also splits
the images) networks are a perceptron and small convolutions; on MNIST a LeNet-5, the first 12,000 images for training.
Inputs have 4 bits, the images 8. All figures are those of integer models on test images. A record that is there already
is not made again; one takes 5 to 60 s of one core on the digits, some 4 minutes on MNIST.

    python benchmarks/ideas.py --seeds 3 --out results_ideas.jsonl
    python benchmarks/ideas.py --seeds 3 --data DIR --network LeNet-5 --out results_ideas.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import data
import numpy as np
import torch
from against_uniform import perceptron
from mnist_lenet5 import with_dropout
from protocol import accuracy, completed, integer_outputs, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq import priors, weight_updates
from probq.cli import demo
from probq.codebooks import ladder, learned, powers_of_two, ternary
from probq.cost import Share

INPUTS = 4  # bits of all inputs but the images
WIDTHS = (1, 2, 3, 4, 5, 6, 8)  # of weights, where all are searched
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the numbers of channels
MNIST_TRAINING = 12_000
TEMPERATURES = (0.1, 1.0)  # at which a prior is heard
Fitted = tuple[probq.Quantized, Any]


class Subject(NamedTuple):
    """A float network with its data.

    Attributes:
        net: trained.
        batches: of training images.
        example: some of them.
        test: images and labels.
        epochs: of each fit.
        seed: of each fit.
        held: held-out images and labels, which one idea alone looks at.
    """

    net: nn.Module
    batches: Iterable[Any]
    example: Tensor
    test: tuple[Tensor, Tensor]
    epochs: int
    seed: int
    held: tuple[Tensor, Tensor] | None = None

    def quantized(self, weight: Any, **options: Any) -> probq.Quantized:
        """The network with a ladder for its weights."""
        return probq.quantize(self.net, self.example, planner(weight, **options))

    def fit(self, q: probq.Quantized, budget: Any = None, epochs: int | None = None, **options: Any) -> Fitted:
        """The network after a fit, and its decision."""
        given = {"seed": self.seed, "progress": False, "trials": 0, **options}
        probq.fit(q, self.batches, budget, epochs or self.epochs, **given)
        return q, q.mode(budget)


def planner(weight: Any, **options: Any) -> Callable[[probq.Layer], probq.Plan]:
    """A plan with a ladder for all weights."""
    plans = [probq.Plan(weight, ladder(INPUTS, signed=signed), **options) for signed in (True, False)]
    return lambda layer: plans[0] if layer.smallest < 0 else plans[1]


def wells(temperature: float, share: float | None = None) -> Callable[[Subject], Fitted]:
    """Three wells of a learned depth, under a limit between all binary and all ternary or none."""

    def run(subject: Subject) -> Fitted:
        q = subject.quantized(ladder(1, ternary()), code_prior=priors.ThreeWells(), width_prior=priors.Geometric(0.5))
        low, high = (subject.quantized(ladder(bits)).mode().cost() for bits in (1, 2))
        budget = None if share is None else probq.Budget(limit=low + share * (high - low))
        return subject.fit(q, budget, temperature=temperature)

    return run


def planes(prior: priors.CodePrior, temperature: float, rounds: int = 3) -> Callable[[Subject], Fitted]:
    """Fits at fixed widths that begin at 8 bits, and the planes dropped that they empty; the last fit rounds."""

    def run(subject: Subject) -> Fitted:
        q = subject.quantized(ladder(0, 1, 2, 3, 4, 5, 6, 7, 8), code_prior=prior)
        for quantizer in q.weights.values():
            quantizer.fix(8)
        q = _decided(q)
        for k in range(rounds + 1):
            last = k == rounds
            epochs = subject.epochs // (rounds + 1)
            q = subject.fit(q, epochs=epochs, temperature=temperature, rounding=last)[0]
            q = _decided(q) if last else probq.drop_planes(_decided(q))
        return q, q.mode()

    return run


def _decided(q: probq.Quantized) -> probq.Quantized:
    return q.at(q.mode()).train()


def rows(subject: Subject) -> Fitted:
    """Rows of powers of two, uniform at 4 and at 8 bits, the latter two for 30 and 5 % of the weights at most."""
    q = subject.quantized(ladder(powers_of_two(3), 4, 8), gates="channel")
    return subject.fit(q, [probq.Budget(percent=30, cost=Share(4)), probq.Budget(percent=5, cost=Share(8))])


def predicted(bits: int, epochs: int = 2) -> Callable[[Subject], Fitted]:
    """Channels and widths searched together by a predictor of losses, at the cost of one width for all weights."""

    def run(subject: Subject) -> Fitted:
        limit = probq.Budget(limit=subject.quantized(ladder(bits)).mode().cost())
        options = {"plan": planner(ladder(*WIDTHS)), "factors": FACTORS, "seed": subject.seed, "progress": False}
        found = probq.search_networks(
            subject.net, subject.example, subject.batches, limit, [subject.held], epochs, **options
        )
        return subject.fit(found.quantized, epochs=subject.epochs - epochs)

    return run


def tuned(books: tuple[Any, ...], scales: str = "channel") -> Callable[[Subject], Fitted]:
    """Straight-through tuning at fixed widths."""
    return lambda subject: subject.fit(_started(subject, books, scales))


def closed_form(books: tuple[Any, ...]) -> Callable[[Subject], Fitted]:
    """Scales of least squared error in closed form, XNOR's of binary weights, then straight-through tuning."""
    return lambda subject: subject.fit(weight_updates.fit_scales(_started(subject, books)))


def levels_first(books: tuple[Any, ...]) -> Callable[[Subject], Fitted]:
    """Learned levels that are means of their weights, then straight-through tuning."""
    return lambda subject: subject.fit(weight_updates.fit_levels(_started(subject, books, "tensor")))


def newton(books: tuple[Any, ...]) -> Callable[[Subject], Fitted]:
    """Loss-aware proximal Newton steps in place of Adam's."""

    def run(subject: Subject) -> Fitted:
        q = _started(subject, books)
        return subject.fit(q, optimizer=weight_updates.loss_aware(q))

    return run


def multipliers(books: tuple[Any, ...]) -> Callable[[Subject], Fitted]:
    """ADMM for half of the epochs, straight-through tuning for the other half."""

    def run(subject: Subject) -> Fitted:
        torch.manual_seed(subject.seed)
        half = subject.epochs // 2
        start = _started(subject, books)
        return subject.fit(weight_updates.admm(start, subject.batches, half, progress=False), epochs=half)

    return run


def _started(subject: Subject, books: tuple[Any, ...], scales: str = "channel") -> probq.Quantized:
    return subject.quantized(ladder(*books), scales=scales)


def spreads(bits: int) -> Callable[[Subject], Fitted]:
    """No training: scales of weights and inputs from how widely each channel's numbers are spread."""
    return lambda subject: _as_it_is(probq.ptq.deviations(_untrained(subject, bits), subject.batches))


def squares(bits: int) -> Callable[[Subject], Fitted]:
    """No training: scales of least squared error."""
    return lambda subject: _as_it_is(probq.ptq.ranges(_untrained(subject, bits), subject.batches))


def _untrained(subject: Subject, bits: int) -> probq.Quantized:
    q = subject.quantized(ladder(bits))
    return q.at(q.mode())


def _as_it_is(q: probq.Quantized) -> Fitted:
    return q, q.mode()


FIXED: Mapping[str, tuple[Any, ...]] = MappingProxyType({"binary": (1,), "ternary": (2,)})
LEVELS = (learned([-1.5, -0.5, 0.5, 1.5]),)
METHODS: Mapping[str, Callable[[Subject], Fitted]] = MappingProxyType(
    {
        "all binary": tuned((1,)),
        "all ternary": tuned((2,)),
        **{f"three wells, temperature {t}": wells(t) for t in TEMPERATURES},
        "three wells, half the way": wells(0.1, 0.5),
        **{f"bit planes, temperature {t}": planes(priors.BitPlanes(), t) for t in TEMPERATURES},
        "dropped bits, temperature 1.0": planes(priors.DropBits(), 1.0),
        "mixed rows": rows,
        **{f"channels and widths, cost of {name}": predicted(bits) for name, bits in (("binary", 1), ("ternary", 2))},
        **{f"steps from spreads, {bits} bits": spreads(bits) for bits in (2, 3, 4)},
        "closed-form scales, binary": closed_form((1,)),
        **{f"loss-aware, {name}": newton(books) for name, books in FIXED.items()},
        **{f"ADMM, {name}": multipliers(books) for name, books in FIXED.items()},
        "levels fitted, 2 bits": levels_first(LEVELS),
    }
)
CONTROLS: Mapping[str, Callable[[Subject], Fitted]] = MappingProxyType(  # of those whose control is no fit in a budget
    {
        **{f"steps from spreads, {bits} bits": squares(bits) for bits in (2, 3, 4)},
        "closed-form scales, binary": tuned((1,)),
        **{f"{update}, {name}": tuned(books) for update in ("loss-aware", "ADMM") for name, books in FIXED.items()},
        "levels fitted, 2 bits": tuned(LEVELS, "tensor"),
    }
)
ON_MNIST = ("all binary", "all ternary", "three wells, temperature 1.0", "three wells, half the way")
NETWORKS = ("perceptron", "convolutions", "LeNet-5")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of each fit on the digits")
    parser.add_argument("--network", choices=NETWORKS, nargs="*", default=["perceptron", "convolutions"])
    parser.add_argument("--data", type=Path, help=data.DATA_HELP)
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def subject_of(network: str, seed: int, epochs: int, folder: Path | None) -> Subject:
    """A float network, trained on the seed's images."""
    torch.manual_seed(seed)
    if network == "LeNet-5":
        if folder is None:
            raise SystemExit("LeNet-5 needs --data")
        x, y = (part[:MNIST_TRAINING] for part in data.mnist(folder, True))
        net, test = with_dropout(), data.mnist(folder, False)
        batches: Any = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
        train(net, batches, 4)
        return Subject(net.eval(), batches, x[:64], test, 4, seed)
    images, net = demo.digits(seed), perceptron() if network == "perceptron" else demo.network()
    batches = DataLoader(images.train, batch_size=demo.BATCH, shuffle=True)
    train(net, batches, 16)
    example: Tensor = images.train.tensors[0][: demo.BATCH]
    test, held = images.test.tensors, images.validation.tensors
    return Subject(net, batches, example, test, epochs, seed, held)  # type: ignore[arg-type]


def scored(q: probq.Quantized, decision: Any, subject: Subject) -> dict[str, Any]:
    """What a decision costs, in percent of the float network that all begin with, and how its integer model does."""
    test = subject.test
    outputs, differing = integer_outputs(q, probq.lower(q, decision), test[0])
    layers = q.weight_names
    return {
        "test": accuracy(outputs, test[1]),
        "loss": float(nn.functional.cross_entropy(outputs, test[1])),
        "percent": probq.cost.percent(decision.cost(), probq.layers(subject.net, subject.example)),
        "binary": 100 * float(np.mean([np.all(np.asarray(decision.widths[name]) == 1) for name in layers])),
        "widths": {name: np.unique(decision.widths[name]).tolist() for name in layers},
        "differing": differing,
    }


def one(network: str, method: str, seed: int, epochs: int, folder: Path | None) -> dict[str, Any]:
    """One float network, quantized by an idea and by the defaults at what that costs."""
    subject = subject_of(network, seed, epochs, folder)
    record: dict[str, Any] = {"network": network, "method": method, "seed": seed, "epochs": subject.epochs}
    q, decision = METHODS[method](subject)
    record["idea"] = scored(q, decision, subject)
    if method in CONTROLS:
        record["default"] = scored(*CONTROLS[method](subject), subject)
    elif not method.startswith("all "):
        lowest = 0 if any(np.any(np.asarray(w) == 0) for n, w in decision.widths.items() if n in q.weight_names) else 1
        least = subject.quantized(ladder(lowest)).mode().cost()  # fewer channels may cost less than that
        budget = probq.Budget(limit=max(decision.cost(), least))
        control = subject.quantized(ladder(*range(lowest, 7), 8))
        record["default"] = scored(*subject.fit(control, budget), subject)
    return record


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of."""
    return record["network"], record["method"], record["seed"]


def table(records: list[dict[str, Any]]) -> str:
    """A row for each network and idea; the difference from the default is of pairs, with a standard error."""
    lines = [
        "| network | idea | seeds | BOPs, % | binary layers, % | accuracy, % | loss, nats | default at that cost, % | "
        "ahead of it | verdict | differing |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network in NETWORKS:
        for method in METHODS:
            own = [r for r in records if (r["network"], r["method"]) == (network, method)]
            if own:
                lines.append(row(network, method, own))
    return "\n".join(lines)


def row(network: str, method: str, own: list[dict[str, Any]]) -> str:
    """One row of the table."""
    mean = {key: np.mean([r["idea"][key] for r in own]) for key in ("percent", "binary", "test", "loss")}
    pairs = [r for r in own if "default" in r]
    against = ["-", "-", "-"]
    if pairs:
        gains = np.array([r["idea"]["test"] - r["default"]["test"] for r in pairs])
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.nan
        level = abs(gains.mean()) <= 2 * error
        verdict = "one seed" if np.isnan(error) else "level" if level else "wins" if gains.mean() > 0 else "loses"
        shown = f"{gains.mean():+.2f}" + ("" if np.isnan(error) else f" ± {error:.2f}")
        against = [f"{np.mean([r['default']['test'] for r in pairs]):.2f}", shown, verdict]
    differing = sum(r[part]["differing"] for r in own for part in ("idea", "default") if part in r)
    cells = [network, method, str(len(own)), f"{mean['percent']:.3f}", f"{mean['binary']:.0f}"]
    return "| " + " | ".join([*cells, f"{mean['test']:.2f}", f"{mean['loss']:.4f}", *against, str(differing)]) + " |"


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    torch.set_num_threads(1)
    runs = [
        (network, method, seed)
        for seed in range(options.seeds)
        for network in options.network
        for method in (ON_MNIST if network == "LeNet-5" else METHODS)
    ]
    print(table(completed(options.out, runs, kind, lambda *run: one(*run, options.epochs, options.data))))


if __name__ == "__main__":
    main()
