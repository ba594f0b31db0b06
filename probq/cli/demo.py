"""The demonstration takes handwritten digits from training in float to a bit-exact integer model under a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import probq
from probq import codebooks, plot
from probq.decisions.within_budget import probability_within
from probq.evaluation.diagnostics.table import format_table, table
from probq.network.quantizers.plan import WIDTHS
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.random_stream import Stream

EPOCHS_FLOAT, EPOCHS = 10, 16
FILES = ("posterior.safetensors", "model.safetensors", "table.csv", "widths.png", "cost.png", "history.png")
BATCH = 64


@dataclass(frozen=True)
class Digits:
    """There are 1797 images of digits, 8 x 8 in [0, 1], in parts for training (60 %), validation and test."""

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


def digits(seed: int) -> Digits:
    """Return the digits that scikit-learn ships, split by a seed.

    Raises:
        ProbqError: if scikit-learn is not installed.

    Source: E. Alpaydin, C. Kaynak, 1998, "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ProbqError('the demo needs scikit-learn: pip install "probq[demo]"') from error
    images, classes = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(classes, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first, second = round(0.6 * len(x)), round(0.8 * len(x))
    parts = order[:first], order[first:second], order[second:]
    return Digits(*(TensorDataset(x[part], y[part]) for part in parts))


def network() -> nn.Sequential:
    """Return two convolutions with batch normalisation and a linear layer, 309,248 MACs for one image."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10)),
    )


def plan(layer: probq.Layer) -> probq.Plan:
    """Return the plan of a layer.

    Weights and inputs take the default widths, weights also 0 but in the first layer; the images have 8 bits.
    """
    return probq.Plan() if layer.first else probq.Plan(weight=codebooks.ladder(0, *WIDTHS))


def run(out: Path, percent: float, seed: int, say: Callable[[str], None] = print) -> bool:
    """Train, quantize under a budget, decide, lower and check; write the results to a folder.

    Args:
        out: folder for `posterior.safetensors`, `model.safetensors`, `table.csv` and three pictures.
        percent: budget in percent of the BOPs of the 32-bit network.
        seed: the seed of the split, the training and the fit.
        say: takes each line of the report.

    Returns:
        Whether the integer model keeps the budget and agrees with the network on every test input.

    Raises:
        ProbqError: if scikit-learn is missing, the folder cannot be written, or no widths keep the budget; all of it
            is found before anything is trained.
    """
    data, budget = digits(seed), probq.Budget(percent=percent)
    with Stream(seed).drawing():
        net = network()
        _check(net, data, budget)
        _folder(out)
        _train(net, data.train)
    example = data.train.tensors[0][:BATCH]
    q = probq.quantize(net, example, plan)
    generator = torch.Generator().manual_seed(seed)
    held = DataLoader(data.validation, batch_size=len(data.validation))
    history = probq.fit(q, _batches(data.train, generator), budget, EPOCHS, validation=held, seed=seed)
    assignment = q.mode(budget)
    model = probq.lower(q, assignment)
    result = _compared(q, net, assignment, model, data)
    _write(out, q, model, history)
    _report(result, q, budget, out, say)
    return result.kept and result.differing == 0


@dataclass(frozen=True)
class Result:
    """A result is what the demo measured, with accuracies in [0, 1] on `images` test images."""

    float_accuracy: float
    validation_accuracy: float
    integer_accuracy: float
    differing: int
    images: int
    percent: float
    bops: float
    limit: float

    @property
    def kept(self) -> bool:
        """Return whether the decided widths keep the budget."""
        return self.bops <= self.limit


def _check(net: nn.Module, data: Digits, budget: probq.Budget) -> None:
    """Raise if no choice of widths keeps the budget; costs do not depend on training."""
    probq.quantize(net, data.train.tensors[0][:2], plan).mode(budget)


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProbqError(f"cannot make the folder {out}: {error}; name another with --out") from error


def _batches(part: TensorDataset, generator: torch.Generator | None = None) -> DataLoader[Any]:
    return DataLoader(part, BATCH, shuffle=True, generator=generator)


def _train(net: nn.Module, part: TensorDataset) -> None:
    batches = _batches(part)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS_FLOAT * len(batches))
    net.train()
    for _ in tqdm(range(EPOCHS_FLOAT), desc="float", unit="epoch", dynamic_ncols=True):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def _compared(
    q: probq.Quantized, net: nn.Module, assignment: probq.Assignment, model: probq.IntegerModel, data: Digits
) -> Result:
    """Return the accuracies, and the number of test images for which any output differs in float64."""
    x, y = data.test.tensors
    integers = model(x.numpy())
    decided = q.at(assignment)(x.double()).numpy()
    differing = int((integers * model.output_scale != decided).any(1).sum())
    held, held_y = data.validation.tensors
    return Result(
        _accuracy(net(x), y),
        _accuracy(torch.from_numpy(model(held.numpy())), held_y),
        _accuracy(torch.from_numpy(integers), y),
        differing,
        len(x),
        assignment.percent(),
        assignment.cost(),
        assignment.limit or float("inf"),
    )


def _accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(1) == target).double().mean())


def _write(out: Path, q: probq.Quantized, model: probq.IntegerModel, history: probq.History) -> None:
    posterior, integers, frame, *pictures = (out / name for name in FILES)
    q.save(posterior)
    model.save(integers)
    with replace_atomically(frame) as temporary:
        table(q).to_csv(temporary)
    for axes, picture in zip((plot.widths(q), plot.cost(q), plot.history(history)), pictures, strict=True):
        plot.save(axes, picture)


def _report(result: Result, q: probq.Quantized, budget: probq.Budget, out: Path, say: Callable[[str], None]) -> None:
    """Say what was measured."""
    within = probability_within(q, budget)
    cost = f"{result.bops:,.0f} of at most {result.limit:,.0f} ({result.percent:.4g} %, budget {budget.percent:g} %)"
    say(f"""
{format_table(table(q))}

accuracy on {result.images} test images
  float network   {100 * result.float_accuracy:6.2f} %
  integer model   {100 * result.integer_accuracy:6.2f} %   (validation: {100 * result.validation_accuracy:.2f} %)
test images for which integers and network differ: {result.differing} of {result.images}
BOPs for one image: {cost}
probability that a draw keeps the budget: {within:.4g}
written to {out}: {", ".join(FILES)}""")
