"""CIFAR-10 (JPEG-coded), ResNet-8: probq under a limit on relative BOPs, uniform widths, and Brevitas as a control.

Protocol: images scaled to [0, 1], a black border of 4 pixels, random crop and flip, batch 128, 8-bit network input,
5,000 training images held out (the split is fixed by the seed); Adam from 1e-3 with a cosine schedule, bfloat16
autocast. All methods start from the same float network and take the same number of epochs; what counts is the state
after the last one. The test set is opened once, at the end. A float epoch (12.5 million MACs an image) takes about 42 s
of one CPU thread, one of probq about 100 s. BOPs are MACs x weight bits x input bits, relative to 32 x 32 bits.

A run can be stopped at any time and continued by the same command: float and Brevitas training go on exactly; a fit of
probq goes on from its posterior of the last epoch with a new optimizer and multiplier (`parts` in the record counts
them). `--minutes` stops it at the end of an epoch, with exit status 75.

    python benchmarks/cifar_resnet8.py --data DIR --budget 0.5 --seed 0 --minutes 30 --out results.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import brevitas_net
import data
import protocol
import torch
from protocol import BATCH, CACHE, ESTIMATORS, HELD_OUT, UNFINISHED, accuracy, in_parts
from resnet8 import ResNet8
from torch import Tensor, nn

import probq

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=data.CIFAR_HELP)
    method = parser.add_mutually_exclusive_group()
    method.add_argument("--budget", type=float, help="limit in percent of the 32x32-bit network's BOPs")
    method.add_argument("--uniform", type=int, nargs=2, metavar=("W", "A"), help="fixed widths instead of a budget")
    method.add_argument("--brevitas", type=int, nargs=2, metavar=("W", "A"), help="fixed widths with Brevitas")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of quantized training")
    parser.add_argument("--float-epochs", type=int, default=16, help="epochs of the float network before it")
    parser.add_argument("--search", type=float, default=0.5, help="share of the epochs that learn widths")
    parser.add_argument("--evaluations", type=int, default=100, help="networks that probq.decide measures; 0: none")
    parser.add_argument("--profile", choices=("shift", "dyadic"), default="dyadic", help="of the weights' scales")
    parser.add_argument("--estimator", choices=ESTIMATORS, help="of the codes; default: that of Plan")
    parser.add_argument("--width", type=int, default=16, help="channels of the first block")
    parser.add_argument("--images", type=int, help="use the first ones of each part only, to try the script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no epoch starts after that long")
    parser.add_argument("--work", type=Path, default=CACHE / "cifar_resnet8", help="folder of the checkpoints")
    parser.add_argument("--no-test", action="store_true", help="leave the test set closed, as in tuning")
    parser.add_argument("--out", type=Path, help="results file, one JSON record per line")
    args = parser.parse_args()
    if not (args.budget or args.uniform or args.brevitas):
        parser.error("name a method: --budget, --uniform or --brevitas")
    return args


def key(args: argparse.Namespace) -> dict[str, Any]:
    """What tells one run from another."""
    names = ["epochs", "float_epochs", "width", "images", "seed", "no_test"]
    own: dict[str, Any] = {"method": "Brevitas", "uniform": args.brevitas}
    if args.brevitas is None:
        own = {"method": "probq", "budget": args.budget, "uniform": args.uniform}
        own |= {"own": {"estimator": args.estimator} if args.estimator else None}
        names += ["search", "evaluations", "profile"]
    return own | {name: getattr(args, name) for name in names}


def stem(args: argparse.Namespace) -> str:
    """Name of a run's checkpoints."""
    return "-".join(f"{k}={v}".replace(" ", "") for k, v in key(args).items() if k != "no_test" and v is not None)


def scaled(x: Tensor) -> Tensor:
    """Images in [0, 1] on the device."""
    return x.to(DEVICE).float() / 255


def float_network(args: argparse.Namespace, batches: data.Cropped, deadline: float) -> nn.Module | None:
    """The float network of a seed, from its checkpoint or trained now; None if time ran out."""
    torch.manual_seed(args.seed)
    net = ResNet8(args.width).to(DEVICE, memory_format=torch.channels_last)
    name = f"float-width{args.width}-epochs{args.float_epochs}-images{args.images}-seed{args.seed}.pt"
    return net.eval() if protocol.train(net, batches, args.float_epochs, args.work / name, deadline) else None


def fitted(
    args: argparse.Namespace, net: nn.Module, batches: data.Cropped, held: Any, deadline: float
) -> tuple[probq.Quantized, int] | None:
    """The posterior after all epochs and the number of parts it took; None if time ran out."""
    path = args.work / f"{stem(args)}.safetensors"
    progress = path.with_suffix(".json")
    done, parts = json.loads(progress.read_text()) if progress.exists() else (0, 0)
    if done < args.epochs:
        parts += 1
        q = probq.load(path, net) if done else quantized(args, net, scaled(batches.dataset[:512][0]))
        for step in steps(args, q, batches, held, done, parts):
            if (step.step + 1) % len(batches) == 0:
                done += 1
                protocol.write(path, q.save)
                protocol.write(progress, partial(Path.write_text, data=json.dumps([done, parts])))
                if done < args.epochs and time.monotonic() >= deadline:
                    return None
    return probq.load(path, net), parts


def quantized(args: argparse.Namespace, net: nn.Module, example: Tensor) -> probq.Quantized:
    """A new posterior."""
    estimator = getattr(probq.estimators, args.estimator)() if args.estimator else None
    own = {"profile": args.profile, "estimator": estimator}
    return probq.quantize(net, example, probq.uniform(*args.uniform, **own) if args.uniform else probq.Plan(**own))


def steps(
    args: argparse.Namespace, q: probq.Quantized, batches: data.Cropped, held: Any, done: int, part: int
) -> Iterator[Any]:
    """Steps of the epochs that are left."""
    left, searching = args.epochs - done, round(args.search * args.epochs)
    tuned = max(0, done - searching) / max(1, args.epochs - searching)
    rate = (1 + math.cos(math.pi * tuned)) / 2  # where the cosine schedule stood
    with protocol.autocast(DEVICE):
        yield from probq.steps(
            q,
            batches,
            probq.Budget(percent=args.budget) if args.budget else None,
            left,
            search=max(0, searching - done) / left,
            rates=probq.Rates(weights=1e-3 * rate, scales=5e-3 * rate, spread=5e-3 * rate),
            validation=held,
            evaluations=args.evaluations,
            seed=args.seed + 1000 * (part - 1),
        )


def run(args: argparse.Namespace, deadline: float) -> dict[str, Any] | None:
    """One run, from the float network to the test; None if time ran out."""
    known = data.cifar10(args.data, True, args.images)
    train, (x, y) = data.split(*known, min(HELD_OUT, len(known[0]) // 5), args.seed)
    held, batches = (scaled(x), y.to(DEVICE)), data.Cropped(*train, BATCH)
    net = float_network(args, batches, deadline)
    if net is None:
        return None
    row = key(args) | {"float_validation": accuracy(in_parts(net, held[0]), held[1])}
    own = (brevitas_run if args.brevitas else probq_run)(args, net, batches, held, deadline)
    if own is None:
        return None
    versions = protocol.versions() | (brevitas_net.versions() if args.brevitas else {})
    return row | own | {"machine": protocol.machine(), "versions": versions}


def brevitas_run(
    args: argparse.Namespace, net: nn.Module, batches: data.Cropped, held: Any, deadline: float
) -> dict[str, Any] | None:
    """Quantization-aware training with Brevitas; its accuracy is that of a simulation in float32."""
    torch.manual_seed(args.seed)
    qat = brevitas_net.quantized(net, *args.brevitas).to(DEVICE)
    if not protocol.train(qat, batches, args.epochs, args.work / f"{stem(args)}.pt", deadline):
        return None
    percent = probq.quantize(net, held[0][:8], probq.uniform(*args.brevitas)).mode().percent()
    row = {"validation": accuracy(in_parts(qat, held[0]), held[1]), "percent": percent}
    if not args.no_test:
        x, y = data.cifar10(args.data, False, args.images)
        test, y = scaled(x), y.to(DEVICE)
        row |= {"float_test": accuracy(in_parts(net, test), y), "simulated_test": accuracy(in_parts(qat, test), y)}
    return row


def probq_run(
    args: argparse.Namespace, net: nn.Module, batches: data.Cropped, held: Any, deadline: float
) -> dict[str, Any] | None:
    """A fit of probq; its accuracy is that of the integer model."""
    result = fitted(args, net, batches, data.Shuffled(*held, 1000, shuffle=False), deadline)
    if result is None:
        return None
    q, parts = result
    assignment = q.mode(probq.Budget(percent=args.budget) if args.budget else None)
    row = {
        "validation": accuracy(in_parts(q, held[0]), held[1]),
        "percent": assignment.percent(),
        "widths": {name: int(bits) for name, bits in assignment.widths.items()},
        "temperature": q.temperature,
        "parts": parts,
    }
    if not args.no_test:
        x, y = data.cifar10(args.data, False, args.images)
        outputs, differing = protocol.integer_outputs(q.cpu(), probq.lower(q.cpu(), assignment), x.float() / 255)
        row |= {"float_test": accuracy(in_parts(net, scaled(x)), y.to(DEVICE))}
        row |= {"integer_test": accuracy(outputs, y), "differing": differing}
    return row


def main() -> None:
    """Run once, or show the record of the same run."""
    args = arguments()
    deadline = time.monotonic() + 60 * args.minutes
    torch.set_num_threads(args.threads)
    row = protocol.found(args.out, key(args))
    if row is None:
        row = run(args, deadline)
        if row is None:
            print("out of time; the same command continues")
            raise SystemExit(UNFINISHED)
        protocol.append(args.out, row)
    print(row)


if __name__ == "__main__":
    main()
