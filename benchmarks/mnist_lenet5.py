"""MNIST, LeNet-5: accuracy of the integer model under a limit on relative BOPs.

Protocol: inputs scaled to [0, 1] and nothing else, 8-bit network input, no augmentation, batch 128, 5,000 training
images held out for validation (the split is fixed by the seed), Adam from 1e-3 with a cosine schedule for the float
network, dropout of 0.25 and 0.5 in front of the two linear layers. Training runs under bfloat16 autocast; what is
decided is computed exactly, and accuracies are those of the integer model. Held-out images decide which widths are
tuned for (`probq.decide`). The test set is opened once, at the end. One JSON line per run is appended to the results;
a run that is already there is skipped.

    python benchmarks/mnist_lenet5.py --data DIR --budget 0.36 --seed 0 --out results.jsonl
    python benchmarks/mnist_lenet5.py --data DIR --uniform 2 2 --seed 0 --out results.jsonl
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import data
import pyro
import safetensors.torch
import torch
from torch import Tensor, nn

import probq
from probq import rules
from probq.decide import probability_within
from probq.testing import lenet5

BATCH, HELD_OUT = 128, 5000
RULES = {
    "DualAscent": rules.DualAscent(),
    "AugmentedLagrangian": rules.AugmentedLagrangian(),
    "PID": rules.PID(),
    "dir1": rules.ConstraintGuided(rules.gradient),
    "dir2": rules.ConstraintGuided(rules.gradient_plus_magnitude),
    "dir3": rules.ConstraintGuided(rules.gradient_times_magnitude),
}
CACHE = Path(__file__).parent / "cache"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=data.DATA_HELP)
    parser.add_argument("--budget", type=float, default=0.36, help="limit in percent of the 32x32-bit network's BOPs")
    parser.add_argument("--uniform", type=int, nargs=2, metavar=("W", "A"), help="fixed widths instead of a budget")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of probq.fit, both phases together")
    parser.add_argument("--float-epochs", type=int, default=16, help="epochs of the float network before it")
    parser.add_argument("--profile", choices=("shift", "dyadic"), default="dyadic", help="of the weights' scales")
    parser.add_argument("--rule", choices=RULES, default="DualAscent", help="enforces the budget in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--temperature", type=float, help="of the KL terms; default: that of probq.fit")
    parser.add_argument("--search", type=float, default=0.5, help="share of the steps that learn widths")
    parser.add_argument("--evaluations", type=int, default=100, help="networks that probq.decide measures; 0: none")
    parser.add_argument("--name", default="probq", help="the method's name in the results")
    parser.add_argument("--no-test", action="store_true", help="leave the test set closed, as in tuning")
    parser.add_argument("--targets", nargs="*", choices=("c", "onnx"), help="exports to verify on all test images")
    parser.add_argument("--out", type=Path, help="results file, one JSON record per line")
    return parser.parse_args()


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of right classes in percent."""
    return 100 * float((outputs.argmax(1) == targets).float().mean())


@torch.no_grad()
def in_parts(function: Any, x: Tensor) -> Tensor:
    """Outputs of a function of images, a few at a time."""
    return torch.cat([torch.as_tensor(function(part)) for part in x.split(1000)])


def with_dropout() -> nn.Sequential:
    """LeNet-5 as `probq.testing.lenet5`, its images held channels last, with dropout before its linear layers."""
    layers = list(lenet5())
    layers = [*layers[:7], nn.Dropout(0.25), *layers[7:9], nn.Dropout(0.5), *layers[9:]]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def autocast() -> torch.autocast:
    """Half the memory traffic in training."""
    return torch.autocast("cpu", torch.bfloat16)


def float_network(train: tuple[Tensor, Tensor], epochs: int, seed: int) -> nn.Sequential:
    """The float network of a seed, from the cache or trained now."""
    path = CACHE / f"lenet5-dropout-seed{seed}-epochs{epochs}.safetensors"
    torch.manual_seed(seed)
    net = with_dropout()
    if path.exists():
        net.load_state_dict(safetensors.torch.load_file(path))
        return net.eval()
    batches = data.Shuffled(*train, BATCH)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            with autocast():
                output = net(x)
            nn.functional.cross_entropy(output.float(), y).backward()
            optimizer.step()
            cosine.step()
    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file(net.state_dict(), path)
    return net.eval()


def integer_outputs(q: probq.Quantized, model: probq.IntegerModel, x: Tensor) -> tuple[Tensor, int]:
    """Outputs of the integer model, and how many of its output numbers differ from the mode of `q`."""
    integers = in_parts(lambda part: model(part.numpy()), x)
    outputs = integers.double() * model.output_scale
    return outputs, int((outputs.float() != in_parts(q, x).float()).sum())


def exported(model: probq.IntegerModel, targets: list[str], x: Tensor) -> dict[str, int]:
    """For each export target, how many images give an artefact's integers other than the model's."""
    endings = {"c": ".h", "onnx": ".onnx"}
    with tempfile.TemporaryDirectory() as folder:
        differing = {}
        for target in targets:
            path = Path(folder, f"lenet5{endings[target]}")
            getattr(probq.export, target).write(model, path)
            differing[target] = probq.export.verify(model, path, x.numpy()).differing
    return differing


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One run, from the float network to the integer model's accuracy."""
    (images, labels), held = data.split(*data.mnist(args.data, train=True), HELD_OUT, args.seed)
    train = images.contiguous(memory_format=torch.channels_last), labels
    net = float_network(train, args.float_epochs, args.seed)
    start = time.perf_counter()
    profile = {"profile": args.profile}
    plan = probq.uniform(*args.uniform, **profile) if args.uniform else probq.Plan(**profile)
    q = probq.quantize(net, train[0][:512], plan)
    budget = None if args.uniform else probq.Budget(percent=args.budget)
    options = {} if args.temperature is None else {"temperature": args.temperature}
    options |= {"search": args.search, "evaluations": args.evaluations, "rule": RULES[args.rule]}
    with autocast():
        held_out = data.Shuffled(*held, 1000, shuffle=False)
        fitting = probq.steps(
            q, data.Shuffled(*train, BATCH), budget, args.epochs, seed=args.seed, validation=held_out, **options
        )
        history = list(fitting)
    seconds = time.perf_counter() - start
    assignment = q.mode(budget)
    row: dict[str, Any] = key(args)
    row |= {
        "float_validation": accuracy(in_parts(net, held[0]), held[1]),
        "validation": accuracy(in_parts(q, held[0]), held[1]),
        "percent": assignment.percent(),
        "within": probability_within(q, budget) if budget else 1.0,
        "widths": {name: int(bits) for name, bits in assignment.widths.items()},
        "most_probable": q.mode(budget, measured=False).percent(),
        "expected": next((step.percent for step in reversed(history) if step.phase == "search"), assignment.percent()),
        "temperature": q.temperature,
        "last_loss": history[-1].loss,
        "seconds": round(seconds, 1),
    }
    if not args.no_test:
        row |= tested(q, assignment, net, args)
    return row | {"versions": versions()}


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
        "float_epochs",
        "seed",
        "no_test",
    )
    own = {} if args.temperature is None else {"temperature": args.temperature}
    return {"method": args.name, **{name: getattr(args, name) for name in names}, **({"own": own} if own else {})}


def versions() -> dict[str, str]:
    """Versions of what a figure depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}


def done(args: argparse.Namespace) -> dict[str, Any] | None:
    """The record of this run, if the results already hold it."""
    if args.out is None or not args.out.exists():
        return None
    records = [json.loads(line) for line in args.out.read_text().splitlines() if line.strip()]
    return next((r for r in records if all(r.get(k) == v for k, v in key(args).items())), None)


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    widths = row["widths"]
    layers = dict.fromkeys(name.rsplit(".", 1)[0] for name in widths)
    bits = ", ".join(f"{layer} {widths[f'{layer}.weight']}x{widths[f'{layer}.input']}" for layer in layers)
    test = row.get("integer_test")
    limit = "no limit" if row["uniform"] else f"{row['budget']} %"
    result = "test closed" if test is None else f"float test {row['float_test']:.2f} %, integer test {test:.2f} %"
    print(
        f"{row['method']} seed {row['seed']}: {result}, validation {row['validation']:.2f} % (float "
        f"{row['float_validation']:.2f} %), BOPs {row['percent']:.4f} of {limit}, P(cost <= limit) "
        f"{row['within']:.3f}, weight x input bits {bits}, epochs {row['float_epochs']} + {row['epochs']}, temperature "
        f"{row['temperature']:g}, differing outputs {row.get('differing')}, {row['seconds']} s, {row['versions']}"
    )


def main() -> None:
    """Run once, or show the record of the same run."""
    args = arguments()
    torch.set_num_threads(args.threads)
    row = done(args)
    if row is None:
        row = run(args)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    show(row)


if __name__ == "__main__":
    main()
