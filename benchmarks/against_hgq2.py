"""Two small perceptrons: widths of tensors, channels and single weights against HGQ2, by one counter of effective BOPs.

`jets` is made like jet tagging: 16 features, five classes, each a mixture of four normal laws, and a perceptron of
16-64-32-32-5; `digits` are scikit-learn's, and a perceptron of 64-32-32-10. HGQ2 trains from nothing with a width for
each weight and each input feature, while its price of a bit rises from 1e-7, as an exponential, for four fifths of the
epochs; bits move with the rate of Adam, so that two rates and four final prices are tried. probq trains in float for a
third of as many epochs and fits in the others. Its limit on BOPs is chosen so that the effective BOPs of what ships
come close to a cost, and not above: a first fit tells how many of the BOPs are effective, a second one ships.

The table has, for each cost, what ships at no more than it: of HGQ2 the best setting, by the mean accuracy on the very
images and jets that judge, which favours it.

Effective BOPs are, for each product of a weight and an input, the weight's binary digits from the first to the last
that is not zero times the input's declared bits. Accuracies are those on images and jets that no fit saw.

HGQ2 lives in a virtual environment of its own, where probq is installed, too: `pip install hgq2 keras` there.

    python benchmarks/against_hgq2.py --tool hgq2 --seeds 3 --out against_hgq2.jsonl
    python benchmarks/against_hgq2.py --tool probq --seeds 3 --out against_hgq2.jsonl
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from protocol import accuracy, completed, machine, train, versions
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq.codebooks import ladder

SIZES: Mapping[str, Sequence[int]] = MappingProxyType({"jets": (16, 64, 32, 32, 5), "digits": (64, 32, 32, 10)})
EPOCHS, FLOAT_SHARE = 60, 1 / 3
BATCH: Mapping[str, int] = MappingProxyType({"jets": 128, "digits": 32})
RATES = (3e-3, 1e-2)
PRICES: Mapping[str, Sequence[float]] = MappingProxyType(
    {"jets": (1e-6, 5e-6, 2e-5, 8e-5), "digits": (1e-5, 3e-5, 1e-4, 3e-4)}
)
LIMITS: Mapping[str, Sequence[int]] = MappingProxyType(
    {"jets": (12_000, 20_000, 32_000, 56_000), "digits": (5_000, 8_000, 12_000, 16_000)}
)
WIDTHS = (1, 2, 3, 4, 5, 6, 8)
GATES = ("tensor", "channel", "weight")
FIRST_PRICE = 1e-7
LARGEST = 2.0  # BOPs of a second limit, in those of the first


class Task(NamedTuple):
    """Inputs and classes to train with, to decide with, and to judge by."""

    train: tuple[Tensor, Tensor]
    decide: tuple[Tensor, Tensor]
    judge: tuple[Tensor, Tensor]


def jets(seed: int) -> Task:
    """Five classes of four normal laws each in 16 dimensions; the laws are the same for every seed."""
    laws, generator = np.random.default_rng(0), np.random.default_rng(seed + 1)
    means = laws.normal(size=(5, 4, 16))
    mixing = laws.normal(size=(5, 4, 16, 16)) * 0.35
    y = generator.integers(5, size=18_000)
    component = generator.integers(4, size=len(y))
    noise = generator.normal(size=(len(y), 16))
    x = means[y, component] + np.einsum("nij,nj->ni", mixing[y, component], noise)
    return _parts(torch.tensor(x / 2, dtype=torch.float32), torch.tensor(y), (8000, 2000))


def digits(seed: int) -> Task:
    """The digits of scikit-learn in an order of their own for each seed."""
    order = np.random.default_rng(seed).permutation(1797)
    x, y = load_digits(return_X_y=True)
    return _parts(torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order]), (1000, 300))


def _parts(x: Tensor, y: Tensor, sizes: tuple[int, int]) -> Task:
    train, decide = slice(0, sizes[0]), slice(sizes[0], sum(sizes))
    return Task((x[train], y[train]), (x[decide], y[decide]), (x[sum(sizes) :], y[sum(sizes) :]))


TASKS = MappingProxyType({"jets": jets, "digits": digits})


def digits_of(weights: np.ndarray) -> np.ndarray:
    """Binary digits from the first to the last that is not zero, of multiples of 2^-24; none for 0."""
    whole = np.abs(np.round(weights.astype(np.float64) * 2**24)).astype(np.int64)
    return np.ceil(np.log2(whole // np.maximum(whole & -whole, 1) + 1.0))


def hgq2(task: str, rate: float, price: float, seed: int) -> dict[str, Any]:
    """HGQ2's accuracy and effective BOPs with a rate of Adam and a final price of a bit."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    from hgq.config import LayerConfigScope, QuantizerConfigScope
    from hgq.layers import QDense
    from hgq.utils import trace_minmax
    from hgq.utils.sugar import BetaScheduler

    keras.utils.set_random_seed(seed)
    own, start = TASKS[task](seed), time.process_time()
    rise = lambda epoch: FIRST_PRICE * (price / FIRST_PRICE) ** min(1.0, epoch / (0.8 * EPOCHS))  # noqa: E731
    with (
        QuantizerConfigScope(place="all", default_q_type="kbi", overflow_mode="SAT_SYM"),
        QuantizerConfigScope(place="datalane", default_q_type="kif", overflow_mode="WRAP"),
        LayerConfigScope(enable_ebops=True, beta0=FIRST_PRICE),
    ):
        sizes = SIZES[task]
        layers = [QDense(n, activation="relu") for n in sizes[1:-1]] + [QDense(sizes[-1])]
        model = keras.Sequential([keras.Input((sizes[0],)), *layers])
    steps = EPOCHS * -(-len(own.train[0]) // BATCH[task])
    cosine = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(cosine), loss)
    x, y = (part.numpy() for part in own.train)
    model.fit(x, y, batch_size=BATCH[task], epochs=EPOCHS, verbose=0, callbacks=[BetaScheduler(rise)])
    trace_minmax(model, x, verbose=0)
    outputs = torch.as_tensor(np.asarray(model.predict(own.judge[0].numpy(), verbose=0)))
    effective = 0.0
    for layer in layers:
        kernel = layer.qkernel.detach().cpu().numpy()
        bits = np.asarray(layer.iq.bits_((1, kernel.shape[0])).detach().cpu()).reshape(-1)
        effective += float((digits_of(kernel) * bits[:, None]).sum())
    own_count = float(sum(float(layer.ebops) for layer in layers))
    return _record(task, "hgq2", seed, outputs, own, effective, start) | {
        "rate": rate,
        "price": price,
        "own": own_count,
    }


def plan(layer: probq.Layer, gates: str) -> probq.Plan:
    """Ladders of 1 to 8 bits, of the network's input as well; single weights and channels may have 0 bits."""
    weights = WIDTHS if gates == "tensor" else (0, *WIDTHS)
    inputs = ladder(*WIDTHS, signed=layer.smallest < 0)
    return probq.Plan(ladder(*weights), inputs, network_input=inputs, gates=gates)


def fitted(task: str, wanted: int, gates: str, seed: int) -> dict[str, Any]:
    """What probq ships at no more than so many effective BOPs."""
    own, start = TASKS[task](seed), time.process_time()
    torch.manual_seed(seed)
    sizes = SIZES[task]
    hidden = [m for a, b in pairwise(sizes[:-1]) for m in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*hidden, nn.Linear(*sizes[-2:]))
    batches = DataLoader(TensorDataset(*own.train), batch_size=BATCH[task], shuffle=True)
    train(net, batches, round(EPOCHS * FLOAT_SHARE))
    limit, best, epochs = float(wanted), None, EPOCHS - round(EPOCHS * FLOAT_SHARE)
    for _ in range(2):
        q = probq.quantize(
            net, own.train[0][: BATCH[task]], partial(plan, gates=gates), likelihood=probq.likelihoods.categorical
        )
        budget = probq.Budget(limit=limit)
        probq.fit(q, batches, budget, epochs, validation=[own.decide], seed=seed, progress=False)
        effective = probq.effective_bops(q, q.mode())
        if effective <= wanted and (best is None or effective > best[1]):
            best = q, effective
        limit = limit * min(LARGEST, wanted / effective) * 0.98
    assert best is not None  # the first fit keeps the limit, and effective BOPs are no more than BOPs
    with torch.no_grad():
        outputs = best[0](own.judge[0])
    return _record(task, f"probq, {gates}", seed, outputs, own, best[1], start) | {"wanted": wanted}


def _record(task: str, tool: str, seed: int, outputs: Tensor, own: Task, effective: float, start: float) -> Any:
    record: dict[str, Any] = {"task": task, "tool": tool, "seed": seed, "accuracy": accuracy(outputs, own.judge[1])}
    record |= {"effective": effective, "seconds": time.process_time() - start}
    return {**record, "machine": machine(), "versions": versions()}


def table(runs: Iterable[dict[str, Any]]) -> str:
    """A row for each task and cost, means over seeds; each tool's accuracy, effective BOPs in thousands and seconds."""
    found = list(runs)
    lines = [f"| task | at most, k | hgq2 | {' | '.join(f'probq, {gates}' for gates in GATES)} |", "|---" * 6 + "|"]
    for task, wanted in ((name, limit) for name, limits in LIMITS.items() for limit in limits):
        own = [r for r in found if r["task"] == task]
        settings: dict[tuple[float, float], list[dict[str, Any]]] = {}
        for r in own:
            if r["tool"] == "hgq2":
                settings.setdefault((r["rate"], r["price"]), []).append(r)
        cheap = [several for several in settings.values() if _mean(several, "effective") <= wanted]
        cells = [_cell(max(cheap, key=lambda several: _mean(several, "accuracy"))) if cheap else "-"]
        for gates in GATES:
            fits = [r for r in own if r["tool"] == f"probq, {gates}" and r["wanted"] == wanted]
            cells.append(_cell(fits) if fits else "-")
        if any(cell != "-" for cell in cells):
            lines.append(f"| {task} | {wanted / 1000:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(own: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([r[key] for r in own]))


def _cell(own: Sequence[dict[str, Any]]) -> str:
    error = np.std([r["accuracy"] for r in own], ddof=1) / len(own) ** 0.5 if len(own) > 1 else float("nan")
    cost, seconds = _mean(own, "effective") / 1000, _mean(own, "seconds")
    return f"{_mean(own, 'accuracy'):.2f} ± {error:.2f} % at {cost:.1f} k ({len(own)} seeds, {seconds:.0f} s)"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=("hgq2", "probq"), required=True)
    parser.add_argument("--gates", choices=GATES, nargs="*", default=list(GATES), help="of probq")
    parser.add_argument("--task", choices=TASKS, nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def main() -> None:
    """Make what is missing, print the table."""
    options = arguments()
    if options.tool == "hgq2":
        runs = list(product(options.task, RATES, range(4), range(options.seeds)))
        settings = [(task, rate, PRICES[task][place], seed) for task, rate, place, seed in runs]
        records = completed(options.out, settings, _setting, hgq2)
    else:
        fits = list(product(range(options.seeds), options.task, range(4), options.gates))
        limits = [(task, LIMITS[task][place], gates, seed) for seed, task, place, gates in fits]
        records = completed(options.out, limits, _fit, fitted)
    print(table(records))


def _setting(r: dict[str, Any]) -> tuple[Any, ...] | None:
    """Which of HGQ2's runs a record is of: the arguments of `hgq2`."""
    return (r["task"], r["rate"], r["price"], r["seed"]) if r["tool"] == "hgq2" else None


def _fit(r: dict[str, Any]) -> tuple[Any, ...] | None:
    """Which of probq's runs a record is of: the arguments of `fitted`."""
    return None if r["tool"] == "hgq2" else (r["task"], r["wanted"], r["tool"].removeprefix("probq, "), r["seed"])


if __name__ == "__main__":
    main()
