"""Widths that depend on the input against fixed ones of the same expected cost, on digits and on finer images.

For each network and seed a float network is trained once. A narrow and a wide form of it are fitted under a limit each,
and a selector between them on held-out data (`probq.select`), so that its expected cost is at most a limit between the
two. Then one fixed form is fitted under a limit of just what the selection costs on the test data, from the same float
network, for as many epochs, on the same data. Scores are those of the integer models on test data. `random` takes the
choices in another order, and `best` those that the test's own losses would make at the same cost, which no selector
knows. `differing` counts outputs of the integer model that are not those of its networks, and `exported` examples whose
outputs in generated C and ONNX Runtime are not the integer model's. A record that is there already is not made again.

    python benchmarks/selection.py --seeds 0 1 2 --out results_selection.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from protocol import completed, exported, machine, versions
from sequence_tasks import TASKS, Parts, Task, accuracy, digits
from sequences import Shuffled, outputs
from torch import Tensor, nn
from torch.nn import functional as F

import probq
from probq.training.selection.losses import example_losses
from probq.training.selection.multiplier import Scores, least_price
from probq.utils.batches import Batches

EXPORTED = 64  # test examples that exported models are compared on
FINE = 1e-4  # nats, in which the test's own losses are counted
LADDER = (1, 2, 3, 4, 5, 6, 8)


class Setting(NamedTuple):
    """What is selected between, in percent of the BOPs of the 32-bit network, and by what."""

    task: Task
    narrow: float
    between: float
    wide: float
    selector: Callable[[], nn.Module]


def images(seed: int) -> Parts:
    """The digits as images of one channel."""
    return tuple((x[:, None], y) for x, y in digits(seed))


def small() -> nn.Module:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(144, 10),
    )  # fmt: skip


def averages() -> nn.Module:
    """A linear layer on 4x4 averages of a digit."""
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def edges() -> nn.Module:
    """Mean magnitudes of four learned gradients of a patch, as CADyQ looks at gradients."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "digits": Setting(
            Task(small, images, probq.likelihoods.Categorical, F.cross_entropy, accuracy, "accuracy, %", 30, 12),
            *(0.4, 0.8, 1.6), averages,
        ),
        "super-resolution": Setting(TASKS["super-resolution"], 0.5, 1.0, 2.0, edges),
    }
)  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--task", choices=SETTINGS, nargs="*", default=list(SETTINGS))
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def trained(task: Task, parts: Parts, seed: int) -> nn.Module:
    """A float network."""
    torch.manual_seed(seed)
    net, batches = task.make(), Shuffled(*parts[0], task.batch)
    optimizer = torch.optim.Adam(net.parameters(), task.rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.float_epochs * len(batches))
    for _ in range(task.float_epochs):
        for x, y in batches:
            optimizer.zero_grad()
            task.loss(net(x), y).backward()
            optimizer.step()
            cosine.step()
    return net.eval()


def form(task: Task, net: nn.Module, parts: Parts, percent: float, seed: int) -> probq.Quantized:
    """The network at learned widths within a limit."""
    (x, y), held, _ = parts
    unsigned, signed = (
        probq.Plan(probq.codebooks.ladder(*LADDER), probq.codebooks.ladder(*LADDER, signed=sign))
        for sign in (False, True)
    )
    q = probq.quantize(net, x[: task.batch], lambda layer: signed if layer.smallest < 0 else unsigned)
    budget, batches = probq.Budget(percent=percent), Shuffled(x, y, task.batch)
    options = {"likelihood": task.likelihood(), "validation": [held]}
    probq.fit(q, batches, budget, task.epochs, seed=seed, progress=False, **options)
    return q.at(q.mode(budget))


def one(name: str, seed: int) -> dict[str, Any]:
    """Both forms, the selection, and one form of its cost."""
    setting = SETTINGS[name]
    task, parts = setting.task, setting.task.data(seed)
    net, (test, truth) = trained(task, parts, seed), parts[2]
    forms = [form(task, net, parts, percent, seed) for percent in (setting.narrow, setting.wide)]
    selector = probq.quantize(setting.selector(), parts[0][0][: task.batch], probq.uniform(8, 8))
    held = list(zip(parts[1][0].split(32), parts[1][1].split(32), strict=True))
    limit, rates = probq.Budget(percent=setting.between), probq.Rates(weights=1e-2)
    chosen = probq.select(forms, selector, held, limit, 40, seed=seed, progress=False, rates=rates)
    model, choices = chosen.lower(), chosen.choices(test)
    fixed = form(task, net, parts, chosen.percent(test), seed)
    both = torch.stack([outputs(q, test) for q in forms])
    integers = torch.from_numpy(model.real_output(model(test.numpy()))).float()

    def score(of: np.ndarray) -> float:
        return task.score(both[torch.from_numpy(of), torch.arange(len(test))], truth)

    return {
        **{"task": name, "seed": seed, "epochs": task.epochs, "float_epochs": task.float_epochs},
        "score": {
            "float": task.score(outputs(net, test), truth),
            "narrow": task.score(both[0], truth),
            "wide": task.score(both[1], truth),
            "selected": task.score(integers, truth),
            "fixed": task.score(outputs(fixed, test), truth),
            "random": score(np.random.default_rng(seed).permutation(choices)),
            "best": score(best(forms, test, truth, chosen.cost(test) - selector.mode().cost())),
        },
        "percent": {
            **{"narrow": forms[0].mode().percent(), "wide": forms[1].mode().percent(), "limit": setting.between},
            **{"held out": chosen.percent(), "test": chosen.percent(test), "fixed": fixed.mode().percent()},
            "selector": 100 * selector.mode().cost() / limit.full(forms[0].layers),
        },
        "wide share": float(choices.mean()),
        "differing": int((integers != outputs(chosen, test)).sum()),
        "exported": exported(model, ("c", "onnx"), test[:EXPORTED]),
        **{"machine": machine(), "versions": versions()},
    }


def best(forms: list[probq.Quantized], x: Tensor, y: Tensor, limit: float) -> np.ndarray:
    """The choices that the examples' own losses make under a limit on their mean cost."""
    data = Batches(list(zip(x.split(200), y.split(200), strict=True)), torch.device("cpu"))
    modes = [q.mode() for q in forms]
    losses = np.floor(example_losses(forms, modes, data)[1] / FINE + 0.5).astype(np.int64)
    costs = np.array([mode.cost() for mode in modes])
    scores = Scores(losses, FINE, np.zeros(2), int(losses.max() - losses.min()), costs)
    return scores.choices(scores.offsets(least_price(scores, limit)))


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of: the arguments of `one`."""
    return record["task"], record["seed"]


def table(records: list[dict[str, Any]]) -> str:
    """A row for each network: means and standard deviations over seeds, and the difference of pairs."""
    rows = [
        "| network | score | seeds | narrow, wide: BOPs, % | selected, fixed: BOPs, % | selector, % | narrow | wide "
        "| selected | fixed | selected - fixed | random choices | best choices | differing |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        own = [record for record in records if record["task"] == name]
        if own:
            rows.append(row(name, setting.task.unit, own))
    return "\n".join(rows)


def row(name: str, unit: str, own: list[dict[str, Any]]) -> str:
    """One row of the table."""

    def spread(values: Any, sign: str = "") -> str:
        error = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{np.mean(values):{sign}.2f}{error}"

    def percent(*which: str) -> str:
        return ", ".join(f"{np.mean([r['percent'][each] for r in own]):.3f}" for each in which)

    scores = {method: np.array([r["score"][method] for r in own]) for method in own[0]["score"]}
    gains = scores["selected"] - scores["fixed"]
    error = f" ± {gains.std(ddof=1) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
    differing = sum(r["differing"] + sum(r["exported"].values()) for r in own)
    cells = [
        *(name, unit, str(len(own)), percent("narrow", "wide"), percent("test", "fixed"), percent("selector")),
        *(spread(scores[method]) for method in ("narrow", "wide", "selected", "fixed")),
        *(f"{gains.mean():+.2f}{error}", spread(scores["random"]), spread(scores["best"]), str(differing)),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    runs = [(task, seed) for seed in options.seeds for task in options.task]
    print(table(completed(options.out, runs, kind, one)))


if __name__ == "__main__":
    main()
