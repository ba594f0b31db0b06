"""MNIST, LeNet-5: quantization-aware training at fixed widths with Brevitas, under the protocol of `mnist_lenet5.py`.

The same float network, batches, held-out images and number of epochs; Adam from 1e-3 with a cosine schedule over them
all, under bfloat16 autocast. Quantizers as in `brevitas_net.py`. What is tested is the state after the last epoch, as
with probq. The accuracy is that of Brevitas' own simulation in float32, not that of an integer model: its scales are
float numbers, and its biases stay float. BOPs are counted by probq.

    python benchmarks/brevitas_lenet5.py --data DIR --bits 2 2 --seed 0 --out results.jsonl
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import brevitas_net
import data
import torch
from mnist_lenet5 import prepared
from protocol import BATCH, UNFINISHED, accuracy, append, found, in_parts, machine, train, versions

import probq


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=data.DATA_HELP)
    parser.add_argument("--bits", type=int, nargs=2, default=[2, 2], metavar=("W", "A"), help="weights, inputs")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of quantization-aware training")
    parser.add_argument("--float-epochs", type=int, default=16, help="epochs of the float network before it")
    parser.add_argument("--float-smoothing", type=float, default=0.0, help="label smoothing of the float network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no epoch starts after that long")
    parser.add_argument("--checkpoint", type=Path, help="file from which an interrupted run continues")
    parser.add_argument("--no-test", action="store_true", help="leave the test set closed, as in tuning")
    parser.add_argument("--out", type=Path, help="results file, one JSON record per line")
    return parser.parse_args()


def key(args: argparse.Namespace) -> dict[str, Any]:
    """What tells one run from another."""
    own = {name: getattr(args, name) for name in ("epochs", "float_epochs", "seed", "no_test")}
    smoothed = {"float_smoothing": args.float_smoothing} if args.float_smoothing else None
    return {"method": "Brevitas", "uniform": list(args.bits), **own, "own": smoothed}


def run(args: argparse.Namespace, deadline: float) -> dict[str, Any] | None:
    """One run, from the float network to the test; None if time ran out."""
    net, images, held = prepared(args, args.float_smoothing)
    start = time.perf_counter()
    qat = brevitas_net.quantized(net, *args.bits)
    torch.manual_seed(args.seed)
    if not train(qat, data.Shuffled(*images, BATCH), args.epochs, args.checkpoint, deadline):
        return None
    row = key(args) | {
        "float_validation": accuracy(in_parts(net, held[0]), held[1]),
        "validation": accuracy(in_parts(qat, held[0]), held[1]),
        "percent": probq.quantize(net, images[0][:8], probq.uniform(*args.bits)).mode().percent(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if not args.no_test:
        x, y = data.mnist(args.data, train=False)
        row |= {"float_test": accuracy(in_parts(net, x), y), "simulated_test": accuracy(in_parts(qat, x), y)}
    return row | {"machine": machine(), "versions": versions() | brevitas_net.versions()}


def main() -> None:
    """Run once, or show the record of the same run."""
    args = arguments()
    deadline = time.monotonic() + 60 * args.minutes
    torch.set_num_threads(args.threads)
    row = found(args.out, key(args))
    if row is None:
        row = run(args, deadline)
        if row is None:
            print("out of time; the same command with the same checkpoint continues")
            raise SystemExit(UNFINISHED)
        append(args.out, row)
    print(row)


if __name__ == "__main__":
    main()
