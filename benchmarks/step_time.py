"""What a training step costs, as a ratio to the float step of the same network.

One thread, process CPU time, medians over interleaved repetitions, fused Adam everywhere. The probq step learns all
widths (ladders of 1, 2, 4 and 8 bits on weights and inputs, 8 bits for the network's own input) under a budget, or
tunes the network at decided widths; Brevitas, where it is installed, trains fixed 4-bit weights and inputs. Networks:
LeNet-5 with valid padding (4.3 MMAC, batch 128), a quarter-width VGG-7 (batch 64, 32x32), ResNet-20 (batch 32, 32x32),
inverted residuals as in MobileNetV2 (batch 32, 32x32), 1-d convolutions (batch 64) and a perceptron 16-64-32-32-5 as in
jet taggers (batch 1,024); those with convolutions but LeNet-5 have batch normalisation.

    python benchmarks/step_time.py --repetitions 100 --out step_time.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from step_networks import inverted_residuals, jet_tagger, one_dimensional, resnet20
from torch import Tensor, nn

import probq
from probq.codebooks import ladder
from probq.testing import lenet5, vgg7

WARM_UP = 5


def float_steps(net: nn.Module, x: Tensor, y: Tensor) -> Iterator[None]:
    """Steps of Adam on the cross entropy."""
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    while True:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        yield


def probq_steps(net: nn.Module, x: Tensor, y: Tensor, search: bool = True, percent: float = 1.0) -> Iterator[Any]:
    """Steps of `probq.steps` while all widths are learned, or at decided ones."""
    plan = probq.Plan(weight=ladder(1, 2, 4, 8), input=ladder(1, 2, 4, 8, signed=False))
    q = probq.quantize(net, x, plan=plan)
    budget = probq.Budget(percent=percent)
    if not search:
        return probq.steps(q.at(q.mode(budget)), [(x, y)], epochs=100_000)
    return probq.steps(q, [(x, y)], budget, epochs=100_000, search=1.0)


def tuning_steps(net: nn.Module, x: Tensor, y: Tensor) -> Iterator[Any]:
    """Steps of `probq.steps` at decided widths."""
    return probq_steps(net, x, y, search=False)


def brevitas_steps(net: nn.Module, x: Tensor, y: Tensor, bits: int = 4) -> Iterator[None]:
    """Steps of Brevitas' quantization-aware training at fixed widths."""
    import brevitas.nn as qnn

    def quantized(module: nn.Module) -> nn.Module:
        has_bias = getattr(module, "bias", None) is not None
        own: nn.Module
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            kind = qnn.QuantConv1d if isinstance(module, nn.Conv1d) else qnn.QuantConv2d
            where = {key: getattr(module, key) for key in ("stride", "padding", "groups")}
            sizes = (module.in_channels, module.out_channels, module.kernel_size)
            own = kind(*sizes, bias=has_bias, weight_bit_width=bits, **where)
        elif isinstance(module, nn.Linear):
            own = qnn.QuantLinear(module.in_features, module.out_features, bias=has_bias, weight_bit_width=bits)
        else:
            for name, child in module.named_children():
                setattr(module, name, quantized(child))
            return module
        return nn.Sequential(qnn.QuantIdentity(bit_width=bits, return_quant_tensor=False), own)

    return float_steps(quantized(net), x, y)


def cases() -> dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]]:
    """Networks and batches. Random inputs: a step's time does not depend on what they show."""
    torch.manual_seed(0)

    def images(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 3, 32, 32), torch.randint(10, (count,))

    return {
        "LeNet-5": (lenet5, torch.rand(128, 1, 28, 28), torch.randint(10, (128,))),
        "VGG-7, quarter width": (lambda: vgg7(0.25), *images(64)),
        "ResNet-20": (resnet20, *images(32)),
        "inverted residuals": (inverted_residuals, *images(32)),
        "1-d convolutions": (one_dimensional, torch.randn(64, 2, 128), torch.randint(10, (64,))),
        "jet tagger": (jet_tagger, torch.randn(1024, 16), torch.randint(5, (1024,))),
    }


def methods() -> dict[str, Callable[..., Iterator[Any]]]:
    """What is compared; the first one is the unit."""
    result: dict[str, Callable[..., Iterator[Any]]] = {
        "float": float_steps,
        "probq, widths learned": probq_steps,
        "probq, widths decided": tuning_steps,
    }
    try:
        import brevitas

        result[f"Brevitas {brevitas.__version__}, 4 bits"] = brevitas_steps
    except ImportError:
        print("Brevitas is not installed (pip install 'probq[benchmarks]'): its column is left out")
    return result


def measure(make: Callable[[], nn.Module], x: Tensor, y: Tensor, repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of every repetition of every method, the methods taking turns."""
    running = {name: method(make(), x, y) for name, method in methods().items()}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for repetition in range(WARM_UP + repetitions):
        for name, steps in running.items():
            start = time.process_time()
            next(steps)
            if repetition >= WARM_UP:
                seconds[name].append(time.process_time() - start)
    return seconds


def rows(network: str, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each method: median time, and the median and quartiles of the ratio within a repetition."""
    unit = next(iter(seconds.values()))
    result = []
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(times, unit, strict=True)], n=4)
        ratio = statistics.median(times) / statistics.median(unit)
        result.append(
            {
                "network": network,
                "method": name,
                "milliseconds": round(1000 * statistics.median(times), 2),
                "ratio": round(ratio, 3),
                "ratio_quartiles": [round(v, 3) for v in (low, middle, high)],
            }
        )
    return result


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--network", choices=cases(), nargs="*", default=list(cases()))
    parser.add_argument("--autocast", action="store_true", help="all steps under bfloat16 autocast")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.autocast):
        table = [
            row
            for network, (make, x, y) in cases().items()
            if network in args.network
            for row in rows(network, measure(make, x, y, args.repetitions))
        ]
    print("| network | method | CPU ms a step | ratio to float | quartiles |\n|---|---|---|---|---|")
    for row in table:
        print("| {network} | {method} | {milliseconds} | {ratio} | {ratio_quartiles} |".format(**row))
    if args.out is not None:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        result = {"repetitions": args.repetitions, "versions": versions, "rows": table}
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
