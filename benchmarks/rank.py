"""Digits: which predictors rank choices of widths as training at these widths does.

For each network and limit, 24 choices of widths are drawn at random among those that cost 75 to 100 % of the limit. The
truth about a choice is the held-out loss after training at its widths, all epochs, from the float network. A predictor
is a number for each choice, made before that. Records of truth take up to two minutes each, those of predictors some
seconds; a record that is there already is not made again, and criteria that are new in the package are added.

    python benchmarks/rank.py --seeds 3 --out rank.jsonl
    python benchmarks/rank.py --seeds 3 --float-epochs 160 --network perceptron residual --out rank.jsonl
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from against_uniform import EPOCHS_FLOAT, Residual
from protocol import completed, machine, train, versions
from rank_table import table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import probq
from probq.cli import demo
from probq.codebooks import ladder
from probq.cost import percent as percent_of
from probq.cost import total
from probq.criteria.clado import projected
from probq.decisions.widths import fix_widths
from probq.decisions.within_budget import with_widths
from probq.training.ptq.input_scales import set_input_scales
from probq.training.refinement.evidence.validation_loss import ValidationLoss
from probq.training.svi.learning_rates import parameter_groups
from probq.training.svi.objective import Objective
from probq.utils.batches import Batches

EPOCHS = 16  # of each fit, as in float
WIDTHS = (1, 2, 4, 8)  # of weights and inputs, in bits
CHOICES, SPENT = 24, 0.75  # choices of widths, and the least share of the limit that each costs
TRAIN, DECIDE = 1000, 300  # images; the others judge, and those to decide with them
TRAINED = ("fit with a prior", "drawn widths")
POOL = 400  # choices of widths to train at
EXAMPLES = 512  # of the training images, which criteria see


def perceptron() -> nn.Sequential:
    """Four linear layers without normalisation."""
    sizes = ((64, 32), (32, 32), (32, 32))
    hidden = [module for size in sizes for module in (nn.Linear(*size), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"convolutions": demo.network, "perceptron": perceptron, "residual": Residual}
)
LIMITS = MappingProxyType({"convolutions": (0.6, 1.6), "perceptron": (1.5, 4.0), "residual": (0.5, 1.0)})


class Subject(NamedTuple):
    """A float network with scales, and the images of its seed."""

    q: probq.Quantized
    batches: DataLoader[Any]
    examples: list[tuple[Tensor, Tensor]]
    decide: list[tuple[Tensor, Tensor]]
    judge: tuple[Tensor, Tensor]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--network", choices=NETWORKS, nargs="*", default=list(NETWORKS))
    parser.add_argument("--float-epochs", type=int, default=EPOCHS_FLOAT, help="epochs of the float network")
    parser.add_argument("--truth", action="store_true", help="make no records of predictors")
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def plan(layer: probq.Layer) -> probq.Plan:
    """The ladders of the records."""
    return probq.Plan(ladder(*WIDTHS), ladder(*WIDTHS, signed=layer.smallest < 0))


def subject(network: str, seed: int, epochs: int) -> Subject:
    """The float network of a seed, which also splits the images, after some epochs."""
    torch.manual_seed(seed)
    images, net = demo.digits(seed), NETWORKS[network]()
    x, y = (
        torch.cat(p) for p in zip(*(p.tensors for p in (images.train, images.validation, images.test)), strict=True)
    )
    batches = DataLoader(TensorDataset(x[:TRAIN], y[:TRAIN]), batch_size=demo.BATCH, shuffle=True)
    train(net, batches, epochs)
    q = probq.quantize(net, x[: demo.BATCH], plan, likelihood=probq.likelihoods.categorical)
    examples = list(zip(x[:EXAMPLES].split(demo.BATCH), y[:EXAMPLES].split(demo.BATCH), strict=True))
    set_input_scales(q, Batches(examples, q.device))
    decide = slice(TRAIN, TRAIN + DECIDE)
    return Subject(q, batches, examples, [(x[decide], y[decide])], (x[TRAIN:], y[TRAIN:]))


def choices(q: probq.Quantized, limit: float) -> list[dict[str, int]]:
    """Random choices of widths that cost about as much as a limit in percent; the same ones for every seed."""
    generator, found = np.random.default_rng(0), []
    while len(found) < CHOICES:
        widths = {name: int(generator.choice(quantizer.ladder.bits)) for name, quantizer in q.named_quantizers()}
        if SPENT * limit <= percent_of(total(q.layers, widths), q.layers) <= limit and widths not in found:
            found.append(widths)
    return found


def truth(network: str, limit: float, seed: int, float_epochs: int) -> dict[str, Any]:
    """The held-out loss of every choice after training at its widths."""
    own, losses = subject(network, seed, float_epochs), []
    drawn = choices(own.q, limit)
    for widths in tqdm(drawn, desc=f"{network} {limit:g} %", leave=False):
        q = own.q.at(with_widths(own.q, widths, None))
        probq.fit(q, own.batches, epochs=EPOCHS, seed=seed, progress=False)
        losses.append(float(nn.functional.cross_entropy(q(own.judge[0]), own.judge[1])))
    record: dict[str, Any] = {"kind": "truth", "network": network, "limit": limit, "seed": seed}
    record |= {"float_epochs": float_epochs, "losses": losses}
    record["percent"] = [percent_of(total(own.q.layers, widths), own.q.layers) for widths in drawn]
    record["float"] = float(nn.functional.cross_entropy(own.q.net(own.judge[0]), own.judge[1]).detach())
    record |= {"names": list(drawn[0]), "widths": [" ".join(map(str, widths.values())) for widths in drawn]}
    return {**record, "machine": machine(), "versions": versions()}


Values = dict[str, dict[float, list[float]]]


def predictions(network: str, source: str, seed: int, float_epochs: int) -> dict[str, Any]:
    """What a source says about every choice under each limit; less is better."""
    own, start = subject(network, seed, float_epochs), time.perf_counter()
    drawn = {limit: choices(own.q, limit) for limit in LIMITS[network]}
    if source == "float network":
        values = of_float_network(own, drawn)
    elif source == "search fit":
        values = of_search(own, drawn, seed)
    elif source == "default fit":
        values = of_default_fit(own, drawn, seed)
    elif source == "fit with a prior":
        values = of_prior(own, drawn, seed)
    elif source == "drawn widths":
        values = of_drawn_widths(own, drawn, seed)
    else:
        values = of_criterion(own, drawn, source)
    record = {"kind": "predictor", "network": network, "source": source, "seed": seed, "float_epochs": float_epochs}
    listed = {name: {f"{limit:g}": row for limit, row in rows.items()} for name, rows in values.items()}
    return {**record, "values": listed, "seconds": time.perf_counter() - start}


def of_float_network(own: Subject, drawn: Mapping[float, list[dict[str, int]]]) -> Values:
    """The cost, dearer ones first, and the loss on training examples with float weights rounded to the widths."""
    examples = Batches(own.examples, own.q.device)
    measured = ValidationLoss(own.q, examples, examples, None)
    return {
        "cost": {limit: [-total(own.q.layers, widths) for widths in several] for limit, several in drawn.items()},
        "loss at all widths": {limit: [measured(widths) for widths in several] for limit, several in drawn.items()},
    }


def of_criterion(own: Subject, drawn: Mapping[float, list[dict[str, int]]], name: str) -> Values:
    """The energy of a criterion with its defaults, of the pairwise one also without negative eigenvalues."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*energies of")
        energies = {name: getattr(probq.criteria, name)(own.q, own.examples, progress=False)}
    if name == "clado":
        energies["clado, projected"] = projected(energies[name])
    return {n: {limit: [e(w) for w in several] for limit, several in drawn.items()} for n, e in energies.items()}


def of_search(own: Subject, drawn: Mapping[float, list[dict[str, int]]], seed: int) -> Values:
    """A posterior fitted under the limit without tuning, and the held-out loss with its weights."""
    values: Values = {"posterior, all search": {}, "loss with searched weights": {}}
    for limit, several in drawn.items():
        q, budget = copy.deepcopy(own.q), probq.Budget(percent=limit)
        probq.fit(q, own.batches, budget, EPOCHS, search=1.0, seed=seed, progress=False)
        values["posterior, all search"][limit] = [-with_widths(q, widths, budget).log_prob for widths in several]
        measured = ValidationLoss(q, Batches(own.decide, q.device), Batches(own.batches, q.device), None)
        values["loss with searched weights"][limit] = [measured(widths) for widths in several]
    return values


def of_default_fit(own: Subject, drawn: Mapping[float, list[dict[str, int]]], seed: int) -> Values:
    """The posterior after a default fit under the limit with held-out images, and the gates alone."""
    values: Values = {"posterior, default fit": {}, "gates, default fit": {}}
    for limit, several in drawn.items():
        q, budget = copy.deepcopy(own.q), probq.Budget(percent=limit)
        probq.fit(q, own.batches, budget, EPOCHS, validation=own.decide, seed=seed, progress=False)
        values["posterior, default fit"][limit] = [-q.log_prob(widths) for widths in several]
        q.energy = None  # the gates have the word
        values["gates, default fit"][limit] = [-q.log_prob(widths) for widths in several]
    return values


def of_prior(own: Subject, drawn: Mapping[float, list[dict[str, int]]], seed: int) -> Values:
    """The posterior of a search whose prior is the divergence of outputs, measured before."""
    energy = probq.criteria.kl(own.q, own.examples, progress=False)
    values: dict[float, list[float]] = {}
    for limit, several in drawn.items():
        q, budget = copy.deepcopy(own.q), probq.Budget(percent=limit)
        probq.fit(q, own.batches, budget, EPOCHS, search=1.0, prior=energy, seed=seed, progress=False)
        values[limit] = [-with_widths(q, widths, budget).log_prob for widths in several]
    return {"posterior, prior of kl": values}


def of_drawn_widths(own: Subject, drawn: Mapping[float, list[dict[str, int]]], seed: int) -> Values:
    """The held-out loss with weights that were trained at other widths in each step, uniform ones within the limit."""
    values: dict[float, list[float]] = {}
    for limit, several in drawn.items():
        q = copy.deepcopy(own.q)
        names, widths = zip(*((n, z.ladder.bits) for n, z in q.named_sites() if len(z.ladder) > 1), strict=True)
        flat = probq.Energy(names, widths, tuple(np.zeros(len(bits)) for bits in widths))
        pool = probq.WidthField(q, flat, probq.Budget(percent=limit)).draws(POOL, seed)
        train_at_drawn_widths(q, Batches(own.batches, q.device), pool, seed)
        measured = ValidationLoss(q, Batches(own.decide, q.device), Batches(own.batches, q.device), None)
        values[limit] = [measured(widths) for widths in several]
    return {"loss after drawn widths": values}


def train_at_drawn_widths(q: probq.Quantized, data: Batches, pool: list[dict[str, int]], seed: int) -> None:
    """Train all that is no width, codes rounded, each step at widths from a pool; a cosine schedule."""
    torch.manual_seed(seed)
    generator, objective = np.random.default_rng(seed), Objective(q, data.size, draws=1)
    fixed = {name: quantizer.ladder.bits[0] for name, quantizer in q.named_quantizers()}
    optimizer = torch.optim.Adam(parameter_groups(q, probq.Rates(), None))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(data))
    q.temperature, q.rounding = 0.001, True
    q.train()
    for _ in range(EPOCHS):
        for x, y in data:
            fix_widths(q, fixed | pool[generator.integers(len(pool))])
            optimizer.zero_grad()
            bound = objective(x, y)
            objective.backward(bound.value, bound, settling=False)
            optimizer.step()
            cosine.step()
    q.rounding = False
    q.eval()


def one(kind: str, network: str, what: Any, seed: int, float_epochs: int) -> dict[str, Any]:
    """A record of truth under a limit, or of a source of predictions."""
    return (truth if kind == "truth" else predictions)(network, what, seed, float_epochs)


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of: the arguments of `one`."""
    what = record["limit"] if record["kind"] == "truth" else record["source"]
    return record["kind"], record["network"], what, record["seed"], record["float_epochs"]


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    several, last = list(product(options.network, range(options.seeds))), options.float_epochs
    runs: list[tuple[Any, ...]] = [("truth", n, limit, s, last) for n, s in several for limit in LIMITS[n]]
    if not options.truth:
        sources = ("float network", "search fit", "default fit", *TRAINED, *probq.criteria.__all__)
        runs += [("predictor", n, source, s, last) for source in sources for n, s in several]
    print(table(completed(options.out, runs, kind, one)))


if __name__ == "__main__":
    main()
