"""What a fit asks of Fabric: one device changes nothing, another precision is used, and what cannot be is said."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_checkpoints import X, call, network, same, tensors
from torch import nn

import probq
from probq import ProbqError
from probq.training.check_options import check_device


class DDPStrategy:
    """A strategy is known by its name, so that both packages of Lightning's are."""

    def __init__(self, precision: str) -> None:
        self.precision = SimpleNamespace(precision=precision)


def fabric(
    precision: str = "32-true",
    count: int = 1,
    strategy: Any = DDPStrategy,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Any:
    """What a fit asks of a `Fabric`."""
    return SimpleNamespace(
        world_size=count,
        global_rank=0,
        device=torch.device("cpu"),
        strategy=strategy(precision),
        autocast=autocast,
        setup_dataloaders=None,
    )


def test_one_device_changes_no_bit() -> None:
    alone, own = network(), network()
    options: dict[str, Any] = {"validation": None, "epochs": 2}
    call(alone, None, **options)
    history = call(own, None, fabric=fabric(), **options)
    assert same(tensors(alone), tensors(own))
    assert "fabric" not in history.settings


def test_another_precision_is_that_of_the_network_alone() -> None:
    kinds = []

    def look(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        kinds.append(output.dtype)

    q = network()
    q.net[0].register_forward_hook(look)
    history = call(q, None, fabric=fabric("bf16-mixed", autocast=lambda: torch.autocast("cpu", torch.bfloat16)))
    assert {torch.bfloat16, torch.float32} <= set(kinds)  # of steps, and of what is measured
    assert all(p.dtype == torch.float32 for p in q.parameters())
    exact = network()
    assert history.steps[0].loss == pytest.approx(call(exact, None).steps[0].loss, rel=0.02)
    assert probq.lower(q)(X).shape == (80, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ddp", 'pip install "probq\\[distributed\\]"'),
        (fabric(strategy=lambda _: SimpleNamespace()), "'ddp' and single devices, not SimpleNamespace"),
        (fabric("16-mixed"), "'32-true' and 'bf16-mixed', not '16-mixed'"),
        (fabric(count=2), "call fabric.launch\\(\\) first"),
    ],
)
def test_what_cannot_be_is_said(given: Any, said: str) -> None:
    with pytest.raises(ProbqError, match=said):
        call(network(), None, fabric=given)


def test_a_device_without_float64_is_refused() -> None:
    with pytest.raises(ProbqError, match="float64, which Apple's MPS does not have"):
        check_device(torch.device("mps"))
