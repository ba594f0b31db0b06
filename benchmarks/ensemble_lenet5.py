"""MNIST, LeNet-5: an ensemble of integer networks from one posterior, its mode, and deterministic training.

Methods: `mode` is what `probq.fit` decided; `draws` are draws of widths and codes from its posterior whose costs
together keep the budget times their number, and `codes` draws of codes at the decided widths. `ensemble` are such
draws of codes, each tuned for some epochs of its own, and `widths` draws of widths and codes tuned alike. For as many
epochs as all of them together, `drawn` trains one network at the decided widths whose codes are drawn in training
(`probq.fit(..., rounding=False)`) and takes its draws, and `longer` tunes the mode further. `control` trains the
decided widths deterministically, from the float network, for the epochs of the fit and those of all members
(`--epochs 0`: of the fit alone, as `draws` and `codes`). `twice` is the mode of a posterior fitted for twice the
budget, tuned for the epochs of all members, and `pair` are draws as in `widths` whose costs together are at most its
(`--members 2`).

Data, split, float network and training are those of `mnist_lenet5.py`, whose option `--posteriors` writes the files
that are read here. All is decided on held-out images. Figures are those of the integer models, run as C, which is
compared with the interpreter on some images. Shifted images are the test images turned by 90 degrees: ink, strokes and
size are those of digits, but few are digits; those that are (zeros above all) limit what any score can reach. One JSON
line per run is appended to the results; a run that is already there is skipped. Each network is kept in the cache once
it is trained, so a run that was stopped goes on with the next one.

    python benchmarks/ensemble_lenet5.py --data DIR --posteriors DIR --seed 0 --method ensemble --out results.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import data
import numpy as np
from mnist_lenet5 import prepared
from protocol import BATCH, CACHE, autocast, machine, once, versions, write
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import probq
from probq import calibration
from probq.codebooks import ladder
from probq.evaluation.metrics.uncertainty import classification, softmax
from probq.evaluation.studies.ensemble import draw_members

METHODS = ("mode", "draws", "codes", "ensemble", "widths", "drawn", "longer", "control", "twice", "pair")
CHECKED = 100  # images on which C is compared with the interpreter, for each network
FLAGS = ("-O3", "-march=native")
Data = tuple[Tensor, Tensor]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=data.DATA_HELP)
    parser.add_argument("--posteriors", type=Path, required=True, help="folder that mnist_lenet5.py wrote")
    parser.add_argument("--name", default="probq", help="of the posteriors NAME-BUDGET-seedSEED.probq")
    parser.add_argument("--budget", type=float, default=0.36, help="limit in percent of the 32x32-bit network's BOPs")
    parser.add_argument("--method", choices=METHODS, default="ensemble")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1, help="of each member after the fit")
    parser.add_argument("--fit-epochs", type=int, default=16, help="of the fit that made the posterior")
    parser.add_argument("--float-epochs", type=int, default=16, help="of the float network before it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-test", action="store_true", help="leave the test set closed, as in tuning")
    parser.add_argument("--out", type=Path, help="results file, one JSON record per line")
    return parser.parse_args()


def key(args: argparse.Namespace) -> dict[str, Any]:
    """What tells one run from another."""
    names = ["method", "name", "budget", "seed", "fit_epochs", "float_epochs", "no_test"]
    names += ["epochs"] if args.method not in ("mode", "draws", "codes") else []
    names += ["members"] if args.method != "mode" else []
    return {name: getattr(args, name) for name in names}


def posterior(args: argparse.Namespace, net: nn.Module, times: int = 1) -> probq.Quantized:
    """The posterior of a seed under so many times the budget."""
    return probq.load(args.posteriors / f"{args.name}-{args.budget * times:g}-seed{args.seed}.probq", net)


def tuned(args: argparse.Namespace, net: nn.Module, images: Data, member: int) -> probq.Quantized:
    """A draw of codes at the decided widths, or of widths and codes, after epochs of its own."""
    q = posterior(args, net)
    own = args.method in ("widths", "pair")
    fixed = q if own else q.at(q.mode())
    limit = total(args, net)
    draws = draw_members(q, args.members, limit, args.seed) if own else fixed.sample(args.members, seed=args.seed)
    name = f"{f'{args.method}-' if own else ''}member{member}-epochs{args.epochs}"
    return kept(args, name, net, images, fixed.at(draws[member]), args.epochs, member)


def total(args: argparse.Namespace, net: nn.Module) -> probq.Budget:
    """The limit of all members together."""
    if args.method == "pair":
        return probq.Budget(limit=posterior(args, net, 2).mode().cost())
    return probq.Budget(percent=args.members * args.budget)


def longer(args: argparse.Namespace, net: nn.Module, images: Data) -> probq.Quantized:
    """One network at the decided widths with as many epochs more as all members have together."""
    q, epochs = posterior(args, net, 2 if args.method == "twice" else 1), args.members * args.epochs
    start = q.at(q.mode())
    if args.method == "control":
        start, epochs = probq.quantize(net, images[0][:512], at(q.mode().widths)), args.fit_epochs + epochs
    return kept(args, f"{args.method}-epochs{epochs}", net, images, start, epochs)


def kept(
    args: argparse.Namespace, name: str, net: nn.Module, images: Data, q: probq.Quantized, epochs: int, member: int = 0
) -> probq.Quantized:
    """A network trained at its widths, or read from the cache if it was before."""
    path = CACHE / "ensemble_lenet5" / f"{args.name}-{args.budget:g}-seed{args.seed}-{name}.probq"
    if path.exists():
        return probq.load(path, net)
    options = {"seed": 100 * args.seed + member, "search": 0, "rounding": args.method != "drawn"}
    with autocast():
        for _ in probq.steps(q, data.Shuffled(*images, BATCH), None, epochs, **options):
            pass
    write(path, q.save)
    return q


def at(widths: Any) -> Any:
    """A plan of given widths, as `probq.uniform`: nothing is left to learn but scales and codes."""

    def plan(layer: Any) -> probq.Plan:
        own = ladder(int(widths[layer.input]), signed=False)
        return probq.Plan(ladder(int(widths[layer.weight])), own, own)

    return plan


def networks(args: argparse.Namespace, net: nn.Module, images: Data) -> list[tuple[Any, Any]]:
    """The networks of a method and what is decided for each, one but for ensembles."""
    if args.method in ("longer", "control", "drawn", "twice"):
        q = longer(args, net, images)
        return [
            (q, draw) for draw in (q.sample(args.members, seed=args.seed) if args.method == "drawn" else [q.mode()])
        ]
    q = posterior(args, net)
    if args.method == "mode":
        return [(q, q.mode())]
    if args.method in ("ensemble", "widths", "pair"):
        members = [tuned(args, net, images, member) for member in range(args.members)]
        return [(own, own.mode(total(args, net))) for own in members]
    if args.method == "codes":
        fixed = q.at(q.mode())
        return [(fixed, draw) for draw in fixed.sample(args.members, seed=args.seed)]
    return [(q, draw) for draw in draw_members(q, args.members, total(args, net), args.seed)]


def outputs(ensemble: probq.Ensemble, parts: list[Tensor]) -> tuple[list[np.ndarray], int]:
    """Real outputs `[members, n, classes]` of the C programs for each part, and how many differ from the models'."""
    results: list[list[np.ndarray]] = [[] for _ in parts]
    differing = 0
    for model in ensemble.models:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.h")
            probq.export.c.write(model, path)
            with probq.export.c.opened(path, FLAGS) as run:
                for result, x in zip(results, parts, strict=True):
                    integers = run(model.quantize_input(x.numpy()))
                    differing += int((integers[:CHECKED] != model(x[:CHECKED].numpy())).sum())
                    result.append(integers * model.output_scale)
    return [np.stack(result) for result in results], differing


def scored(logits: np.ndarray, y: np.ndarray, temperature: float) -> dict[str, Any]:
    """Scores of averaged probabilities with bootstrap intervals; `nll_scaled`: with logits divided by a temperature."""
    probs = softmax(logits).mean(0)
    metrics = {
        "nll": calibration.negative_log_likelihood,
        "brier": calibration.brier,
        "ece": calibration.expected_calibration_error,
    }
    return {
        "accuracy": 100 * float((probs.argmax(1) == y).mean()),
        "members_accuracy": 100 * float((logits.argmax(2) == y).mean()),
        **{name: list(calibration.interval(metric, probs, y)) for name, metric in metrics.items()},
        "nll_scaled": nll_at(temperature, logits, y),
    }


def nll_at(temperature: float, logits: np.ndarray, y: np.ndarray) -> float:
    """Negative log-likelihood of averaged probabilities, every member's logits divided by one temperature."""
    return calibration.negative_log_likelihood(softmax(logits / temperature).mean(0), y)


def told_apart(familiar: np.ndarray, shifted: np.ndarray) -> dict[str, float]:
    """AUROC of shifted images against familiar ones, by three scores."""
    parts = [classification(softmax(logits)) for logits in (familiar, shifted)]
    scores = {"probability": [1 - p.mean.max(1) for p in parts], "entropy": [p.total for p in parts]}
    scores |= {"mutual_information": [p.epistemic for p in parts]} if len(familiar) > 1 else {}
    return {name: calibration.ood_auroc(*pair) for name, pair in scores.items()}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    net, images, (x, y) = prepared(args)
    start = time.perf_counter()
    decided = networks(args, net, images)
    seconds = round(time.perf_counter() - start, 1)
    ensemble = probq.Ensemble([probq.lower(q, assignment) for q, assignment in decided])
    percent = [assignment.percent() for _, assignment in decided]
    row = {**key(args), "percent": percent, "total": sum(percent), "seconds": seconds}
    (held,), differing = outputs(ensemble, [x])
    best = float(minimize_scalar(nll_at, bounds=(0.2, 5), args=(held, y.numpy()), method="bounded").x)
    row |= {"scaling": best, "validation": scored(held, y.numpy(), best), "differing": differing}
    row["validation"] |= told_apart(held, outputs(ensemble, [turned(x)])[0][0])
    if not args.no_test:
        x, y = data.mnist(args.data, train=False)
        (test, shifted), more = outputs(ensemble, [x, turned(x)])
        row |= {"test": scored(test, y.numpy(), best) | told_apart(test, shifted), "differing": differing + more}
    return row | {"machine": machine(), "versions": versions()}


def turned(x: Tensor) -> Tensor:
    """Images turned by 90 degrees."""
    return x.rot90(1, (-2, -1))


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    part = "validation" if row["no_test"] else "test"
    s = row[part]
    apart = ", ".join(f"{n} {s[n]:.4f}" for n in ("probability", "entropy", "mutual_information") if n in s)
    print(
        f"{row['method']} seed {row['seed']}: {len(row['percent'])} x {row['percent'][0]:.4f} %, {part} accuracy "
        f"{s['accuracy']:.2f} % (members {s['members_accuracy']:.2f} %), nll {s['nll'][0]:.4f} (scaled "
        f"{s['nll_scaled']:.4f}), brier {s['brier'][0]:.5f}, ece {100 * s['ece'][0]:.2f} % ({100 * s['ece'][1]:.2f} - "
        f"{100 * s['ece'][2]:.2f}), AUROC by {apart}; differing {row['differing']}, {row['seconds']} s"
    )


if __name__ == "__main__":
    show(once(arguments(), key, run))
