"""A phase under Lightning's Trainer is that of `fit`; the rest of this package's tests need no Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import BUDGET, X, Y, network, tensors
from two_processes import fixed

import probq
from probq import ProbqError

pytorch = pytest.importorskip("lightning.pytorch")
pytestmark = [
    # what Lightning says of loaders without workers, of its own use of torch, and of fits without held-out data
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no"),
]
WHOLE = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]


def trainer(epochs: int, folder: Path, **options: Any) -> Any:
    shown = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
    return pytorch.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, enable_checkpointing=False, **shown, **options
    )


def loader(pairs: list[Any]) -> Any:
    """The pairs in the same order, as a loader."""
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)


def test_a_tuning_is_that_of_fit(tmp_path: Path) -> None:
    q, own = (each.at(each.mode()) for each in (fixed(), fixed()))
    trainer(2, tmp_path).fit(probq.lightning.Quantization(q), loader(WHOLE))
    history = probq.fit(own, WHOLE, None, 2, seed=0, progress=False)
    assert {step.phase for step in history.steps} == {"tune"}
    for name, tensor in tensors(own).items():
        torch.testing.assert_close(tensors(q)[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_search_keeps_its_budget_and_is_tuned_with_its_normalisation(tmp_path: Path) -> None:
    q, options = network(), {"rates": probq.Rates(weights=1e-2), "temperature": 0.01}
    searching = trainer(12, tmp_path)
    searching.fit(probq.lightning.Quantization(q, BUDGET, **options), loader(WHOLE))
    assert float(searching.callback_metrics["percent"]) <= BUDGET.percent * 1.2
    tuned = q.at(q.mode(BUDGET))
    tuning = trainer(2, tmp_path)
    tuning.fit(probq.lightning.Quantization(tuned, **options), loader(WHOLE), loader([(X[48:], Y[48:])]))
    assert tuned.folded
    found = probq.evaluation.diagnostics.held_out.validate(tuned, [(X[48:], Y[48:])])
    assert float(tuning.callback_metrics["val_loss"]) == pytest.approx(found["loss"], rel=1e-5)
    assert probq.lower(tuned)(X).shape == (80, 3)


def test_options_of_the_trainer_are_left_to_it() -> None:
    with pytest.raises(ProbqError, match="Quantization leaves clip to the Trainer"):
        probq.lightning.Quantization(network(), BUDGET, clip=1.0)
    with pytest.raises(ProbqError, match="Quantization has no option 'rate'"):
        probq.lightning.Quantization(network(), BUDGET, rate=1.0)
