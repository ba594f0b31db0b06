"""What a posterior and an integer model say, as JSON: written when a file is kept, and again when it is tested."""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

import probq
from probq import Assignment, IntegerModel, Quantized


def of_posterior(q: Quantized, x: Tensor) -> dict[str, Any]:
    """Decisions, draws, outputs and probabilities."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the posterior was never fitted|.* other widths than", UserWarning)
        mode, draws = q.mode(), q.sample(2, seed=5)
        predicted = q.predict(x, draws=2, seed=6)
    frame = probq.table(q)
    return {
        "mode": of_assignment(mode),
        "most probable": {n: _listed(bits) for n, bits in q.mode(measured=False).widths.items()},
        "draws": [of_assignment(a) for a in draws],
        "output": q(x).detach().tolist(),
        "predicted": predicted.detach().tolist(),
        "integers": of_model(probq.lower(q, mode), x.numpy()),
        "probabilities": {
            "log_prob": [a.log_prob for a in (mode, *draws)],
            "gap": mode.gap,
            "widths": {name: _listed(z.probs().detach()) for name, z in q.named_quantizers()},
            "expected cost": frame.attrs["expected cost percent"],
            "within budget": frame.attrs.get("P(cost<=limit)"),
        },
    }


def of_assignment(a: Assignment) -> dict[str, Any]:
    """Widths, codes and costs."""
    return {
        "widths": {name: _listed(bits) for name, bits in a.widths.items()},
        "codes": {name: _listed(codes) for name, codes in a.codes.items()},
        "bops": a.cost(),
        "percent": a.percent(),
        "limit": list(a.limit) if isinstance(a.limit, tuple) else a.limit,
        "loss": a.loss,
    }


def of_model(model: IntegerModel, x: np.ndarray) -> dict[str, Any]:
    """Its hash without the versions that made it, its outputs, and what every node may reach."""
    return {
        "sha256": IntegerModel(model.nodes, model.output, model.output_scale).sha256(),
        "output": model(x).tolist(),
        "output_scale": model.output_scale,
        "ranges": {name: [r.low, r.high] for name, r in model.ranges.items()},
    }


def sha256(data: bytes) -> str:
    """Hash in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def differences(found: Any, kept: Any, exact: bool, place: str = "") -> list[str]:
    """Places where two structures differ. All is to be equal but `probabilities`, to 1e-6, or 1e-14 where `exact`."""
    if isinstance(kept, dict) and isinstance(found, dict) and kept.keys() == found.keys():
        return [d for k in kept for d in differences(found[k], kept[k], exact, f"{place}/{k}")]
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        return [
            d for k, pair in enumerate(zip(found, kept, strict=True)) for d in differences(*pair, exact, f"{place}/{k}")
        ]
    numbers = isinstance(kept, float) and isinstance(found, float)
    relative = 1e-14 if exact else 1e-6  # the first for sums in another order
    close = (
        numbers and "/probabilities/" in place and math.isclose(found, kept, rel_tol=relative, abs_tol=relative / 1e3)
    )
    return [] if found == kept or close else [f"{place}: {found!r:.60}, and {kept!r:.60} is kept"]


def here() -> dict[str, str]:
    """What decides on the last bit of a logarithm."""
    return {"torch": str(torch.__version__), "numpy": np.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
