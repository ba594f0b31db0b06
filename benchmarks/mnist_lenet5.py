"""MNIST, LeNet-5: accuracy of the integer model under a limit on relative BOPs.

Protocol: inputs scaled to [0, 1] and nothing else, 8-bit network input, no augmentation, batch 128, 5,000 training
images held out for validation (the split is fixed by the seed), Adam from 1e-3 with a cosine schedule for the float
network, dropout of 0.25 and 0.5 in front of the two linear layers. Training runs under bfloat16 autocast; what is
decided is computed exactly, and accuracies are those of the integer model. Held-out images decide which widths are
tuned for (`probq.decide`); `--more` goes on tuning there, with a cosine schedule of its own, and with `--more-on all`
on the held-out images too, since nothing is left to decide. The test set is opened once, at the end. One JSON line per
run is appended to the results; a run that is already there is skipped.

    python benchmarks/mnist_lenet5.py --data DIR --budget 0.36 --seed 0 --out results.jsonl
    python benchmarks/mnist_lenet5.py --data DIR --budget 0.36 --seed 0 --more 8 --posteriors FOLDER --out results.jsonl
    python benchmarks/mnist_lenet5.py --data DIR --uniform 2 2 --seed 0 --out results.jsonl
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import data
import safetensors.torch
import torch
from protocol import (
    BATCH,
    CACHE,
    ESTIMATORS,
    HELD_OUT,
    accuracy,
    autocast,
    exported,
    in_parts,
    integer_outputs,
    machine,
    once,
    train,
    versions,
)
from torch import Tensor, nn

import probq
from probq import rules
from probq.decisions.within_budget import probability_within
from probq.testing import lenet5

RULES = {
    "DualAscent": rules.DualAscent(),
    "AugmentedLagrangian": rules.AugmentedLagrangian(),
    "PID": rules.PID(),
    "dir1": rules.ConstraintGuided(rules.gradient),
    "dir2": rules.ConstraintGuided(rules.gradient_plus_magnitude),
    "dir3": rules.ConstraintGuided(rules.gradient_times_magnitude),
}


# options that the fitted posterior depends on, beside its limit or widths
FIT = ("profile", "rule", "estimator", "search", "evaluations", "trials", "temperature", "epochs")
FIT += ("float_epochs", "float_smoothing")


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=data.DATA_HELP)
    parser.add_argument("--budget", type=float, default=0.36, help="limit in percent of the 32x32-bit network's BOPs")
    parser.add_argument("--uniform", type=int, nargs=2, metavar=("W", "A"), help="fixed widths instead of a budget")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of probq.fit, both phases together")
    parser.add_argument("--float-epochs", type=int, default=16, help="epochs of the float network before it")
    parser.add_argument("--more", type=int, default=0, help="epochs of tuning at the decided widths, after probq.fit")
    parser.add_argument("--more-on", choices=("all",), help="let --more see all 60,000 images; default: none held out")
    parser.add_argument("--spend", type=float, help="share of the limit that --more spends at least; default: any")
    parser.add_argument("--profile", choices=("shift", "dyadic"), default="dyadic", help="of the weights' scales")
    parser.add_argument("--estimator", choices=ESTIMATORS, help="of the codes; default: that of Plan")
    parser.add_argument("--rule", choices=RULES, default="DualAscent", help="enforces the budget in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--temperature", type=float, help="of the KL terms; default: that of probq.fit")
    parser.add_argument("--float-smoothing", type=float, default=0.0, help="label smoothing of the float network")
    parser.add_argument("--search", type=float, default=0.5, help="share of the steps that learn widths")
    parser.add_argument("--evaluations", type=int, default=100, help="networks that probq.decide measures; 0: none")
    parser.add_argument("--trials", type=int, default=4, help="contenders that probq.fit tunes for a while; 0: none")
    parser.add_argument("--name", default="probq", help="the method's name in the results")
    parser.add_argument("--no-test", action="store_true", help="leave the test set closed, as in tuning")
    parser.add_argument("--targets", nargs="*", choices=("c", "onnx"), help="exports to verify on all test images")
    parser.add_argument("--posteriors", type=Path, help="folder that keeps fitted posteriors, from which --more begins")
    parser.add_argument("--out", type=Path, help="results file, one JSON record per line")
    return parser


def arguments() -> argparse.Namespace:
    """What the command line was given."""
    parser = options()
    args = parser.parse_args()
    if args.more_on and not args.more:
        parser.error("--more-on says what --more trains on; give --more EPOCHS too")
    return args


def with_dropout() -> nn.Sequential:
    """LeNet-5 as `probq.testing.lenet5`, its images held channels last, with dropout before its linear layers."""
    layers = list(lenet5())
    layers = [*layers[:7], nn.Dropout(0.25), *layers[7:9], nn.Dropout(0.5), *layers[9:]]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def float_network(images: tuple[Tensor, Tensor], epochs: int, seed: int, smoothing: float) -> nn.Sequential:
    """The float network of a seed, from the cache or trained now."""
    smoothed = f"-smoothing{smoothing:g}" if smoothing else ""
    path = CACHE / f"lenet5-dropout{smoothed}-seed{seed}-epochs{epochs}.safetensors"
    torch.manual_seed(seed)
    net = with_dropout()
    if path.exists():
        net.load_state_dict(safetensors.torch.load_file(path))
        return net.eval()
    train(net, data.Shuffled(*images, BATCH), epochs, smoothing=smoothing)
    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    return net.eval()


def prepared(
    args: argparse.Namespace, smoothing: float = 0
) -> tuple[nn.Sequential, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The float network, the training images with their labels, and the held-out ones."""
    (images, labels), held = data.split(*data.mnist(args.data, train=True), HELD_OUT, args.seed)
    kept = images.contiguous(memory_format=torch.channels_last), labels
    return float_network(kept, args.float_epochs, args.seed, smoothing), kept, held


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One run, from the float network to the integer model's accuracy."""
    net, images, held = prepared(args, args.float_smoothing)
    start = time.perf_counter()
    budget = None if args.uniform else probq.Budget(percent=args.budget)
    searched, loss = fitted(args, net, images, held, budget)
    q = searched
    if args.more:
        q = searched.at(spent(searched, budget, args.spend) if args.spend else searched.mode(budget))
        shown = [torch.cat(pair) for pair in zip(images, held, strict=True)] if args.more_on else images
        loss = trained(q, shown, held, None, args.more, args.seed)
    seconds = time.perf_counter() - start
    assignment = q.mode(budget)
    row: dict[str, Any] = key(args)
    row |= {
        "float_validation": accuracy(in_parts(net, held[0]), held[1]),
        "validation": None if args.more_on else accuracy(in_parts(q, held[0]), held[1]),
        "percent": assignment.percent(),
        "within": probability_within(searched, budget) if budget else 1.0,
        "widths": {name: int(bits) for name, bits in assignment.widths.items()},
        "most_probable": searched.mode(budget, measured=False).percent(),
        "expected": probq.table(searched).attrs["expected cost percent"],
        "temperature": q.temperature,
        "last_loss": loss,
        "seconds": round(seconds, 1),
    }
    if not args.no_test:
        row |= tested(q, assignment, net, args)
    return row | {"machine": machine(), "versions": versions()}


def spent(q: probq.Quantized, budget: Any, share: float) -> Any:
    """The most probable of many draws within the limit that cost at least a share of it: do more bits help?"""
    least = share * budget.absolute(q.layers)
    return max((a for a in q.sample(5000, budget, seed=0) if a.cost() >= least), key=lambda a: a.log_prob)


def posterior_name(args: argparse.Namespace) -> str:
    """A file name that tells fits apart: limit or widths, options that are not the usual ones, and seed."""
    widths = "x".join(map(str, args.uniform or (args.budget,)))
    usual = options()
    own = [f"{name}-{getattr(args, name)}" for name in FIT if getattr(args, name) != usual.get_default(name)]
    return "-".join([args.name, widths, *own, f"seed{args.seed}.probq"])


def fitted(args: argparse.Namespace, net: nn.Module, images: Any, held: Any, budget: Any) -> tuple[Any, float | None]:
    """The fitted posterior and its last loss; where its file is there already, the file's, without a loss."""
    path = args.posteriors and args.posteriors / posterior_name(args)
    if path and args.more and path.exists():
        return probq.load(path, net), None
    estimator = getattr(probq.estimators, args.estimator)() if args.estimator else None
    own = {"profile": args.profile, "estimator": estimator}
    plan = probq.uniform(*args.uniform, **own) if args.uniform else probq.Plan(**own)
    q = probq.quantize(net, images[0][:512], plan)
    how = {} if args.temperature is None else {"temperature": args.temperature}
    how |= {"search": args.search, "evaluations": args.evaluations, "trials": args.trials, "rule": RULES[args.rule]}
    loss = trained(q, images, held, budget, args.epochs, args.seed, **how)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        q.save(path)
    return q, loss


def trained(q: Any, images: Any, held: Any, budget: Any, epochs: int, seed: int, **options: Any) -> float:
    """Fit in place; the last loss in nats for one example."""
    with autocast():
        held_out = data.Shuffled(*held, 1000, shuffle=False)
        batches = data.Shuffled(*images, BATCH)
        return list(probq.steps(q, batches, budget, epochs, seed=seed, validation=held_out, **options))[-1].loss


def tested(q: probq.Quantized, assignment: Any, net: nn.Module, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that needs the test set."""
    x, y = data.mnist(args.data, train=False)
    model = probq.lower(q, assignment)
    outputs, differing = integer_outputs(q, model, x)
    result: dict[str, Any] = {"float_test": accuracy(in_parts(net, x), y), "integer_test": accuracy(outputs, y)}
    result |= {"differing": differing}
    return result | ({"exports_differing": exported(model, args.targets, x)} if args.targets else {})


def key(args: argparse.Namespace) -> dict[str, Any]:
    """What tells one run from another."""
    names = (
        "budget",
        "uniform",
        "profile",
        "rule",
        "search",
        "evaluations",
        "epochs",
        "more",
        "float_epochs",
        "seed",
        "no_test",
    )
    given = {name: getattr(args, name) for name in ("temperature", "spend", "estimator", "float_smoothing", "more_on")}
    own = {name: value for name, value in given.items() if value}
    own |= {"trials": args.trials} if args.trials != options().get_default("trials") else {}
    return {"method": args.name, **{name: getattr(args, name) for name in names}, "own": own or None}


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    widths = row["widths"]
    layers = dict.fromkeys(name.rsplit(".", 1)[0] for name in widths)
    bits = ", ".join(f"{layer} {widths[f'{layer}.weight']}x{widths[f'{layer}.input']}" for layer in layers)
    test = row.get("integer_test")
    limit = "no limit" if row["uniform"] else f"{row['budget']} %"
    result = "test closed" if test is None else f"float test {row['float_test']:.2f} %, integer test {test:.2f} %"
    validation = "none" if row["validation"] is None else f"{row['validation']:.2f} %"
    print(
        f"{row['method']} seed {row['seed']}: {result}, validation {validation} (float "
        f"{row['float_validation']:.2f} %), BOPs {row['percent']:.4f} of {limit}, P(cost <= limit) "
        f"{row['within']:.3f}, weight x input bits {bits}, epochs {row['float_epochs']} + {row['epochs']} + "
        f"{row['more']}, temperature "
        f"{row['temperature']:g}, differing outputs {row.get('differing')}, {row['seconds']} s, {row['versions']}"
    )


if __name__ == "__main__":
    show(once(arguments(), key, run))
