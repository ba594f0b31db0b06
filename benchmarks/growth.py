"""How each public call grows with the number of layers: 10, 50 and 200 of them.

CPU time of one thread; the sizes take turns, and a ratio is of one turn. Networks: chains of 8 x 8 linear layers with
ReLUs between them and three outputs at the end, random weights and inputs; the budget is 2 % of the BOPs. Per layer, a
call that grows linearly costs as much in a large network as in a small one: its exponent, log(ratio) / log(4) from 50
to 200 layers, is 1.

    python benchmarks/growth.py --out benchmarks/results_growth.json

A turn that stands in the record is not made again, so that a run can be stopped and continued.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import probq

SIZES = (10, 50, 200)
BUDGET = probq.Budget(percent=2)


def chain(layers: int) -> nn.Sequential:
    """A network of so many layers."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(8, 8), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(8, 3)).eval()


def calls(layers: int, x: Tensor, y: Tensor, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each public call and what it is called in the table, in the order of a user's work."""
    net = chain(layers)
    q = probq.quantize(net, x)
    q.budget = BUDGET
    running = probq.steps(q, [(x, y)], BUDGET, epochs=1000, search=1.0)
    next(running)
    yield "quantize", lambda: probq.quantize(net, x)
    yield "a step of fit", lambda: next(running)
    running.close()
    assignment = q.mode()
    yield "mode", q.mode
    yield "table", lambda: probq.table(q)
    yield "decide, 20 networks", lambda: probq.decide(q, BUDGET, [(x, y)], evaluations=20, progress=False)
    yield "lower", lambda: probq.lower(q, assignment)
    yield "save", lambda: q.save(folder / "q.safetensors")
    yield "load", lambda: probq.load(folder / "q.safetensors", net)
    model = probq.lower(q, assignment)
    yield "export to C", lambda: probq.export.c.write(model, folder / "m.h")
    yield "export to ONNX", lambda: probq.export.onnx.write(model, folder / "m.onnx")


def turn() -> dict[str, dict[str, float]]:
    """CPU seconds of every call at every size."""
    x, y = torch.randn(32, 8), torch.arange(32) % 3
    seconds: dict[str, dict[str, float]] = {}
    for layers in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for name, call in calls(layers, x, y, Path(folder)):
                start = time.process_time()
                call()
                seconds.setdefault(name, {})[str(layers)] = time.process_time() - start
    return seconds


def rows(turns: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each call: median times, and the median of the turns' exponents."""
    result = []
    small, large = str(SIZES[-2]), str(SIZES[-1])
    for name in turns[0]:
        ratios = [one[name][large] / one[name][small] for one in turns]
        exponent = math.log(statistics.median(ratios)) / math.log(SIZES[-1] / SIZES[-2])
        times = {size: statistics.median(one[name][str(size)] for one in turns) for size in SIZES}
        result.append({"call": name, "seconds": times, "exponent": exponent})
    return result


def table(record: dict[str, Any]) -> str:
    """A row for each call."""
    heads = [
        f"| call | {' | '.join(f'{size} layers' for size in SIZES)} | exponent |",
        "|---|" + "---|" * (len(SIZES) + 1),
    ]
    calls = rows(record["turns"])
    times = [" | ".join(f"{row['seconds'][size]:.3g} s" for size in SIZES) for row in calls]
    return "\n".join(
        heads + [f"| {r['call']} | {t} | {r['exponent']:.2f} |" for r, t in zip(calls, times, strict=True)]
    )


def main() -> None:
    """Measure, record and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("growth.json"), help="record of all turns, kept as they come")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    record = json.loads(args.out.read_text()) if args.out.exists() else {"turns": []}
    record["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    turn()  # warm up
    while len(record["turns"]) < args.turns:
        record["turns"].append(turn())
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
