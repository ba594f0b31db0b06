"""Whatever spoils a fit or its checkpoints: what is on disk can be read, and a sentence says how to go on."""

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import BUDGET, X, Y, call, network, same, shuffled, tensors
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq import Budget, ProbqError, Quantized, Rates
from probq.training.checkpoints.entries import from_entry, to_entry
from probq.training.checkpoints.folder import CheckpointFolder, read
from probq.training.processes.alone import StepMeans
from probq.utils.manifest import KEY

READ = 6  # batches before the first step
SHORT: dict[str, Any] = {"epochs": 4, "validation": None}


class Failing:
    """Batches of which one raises, in a pass of a fit."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.batches = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.left -= 1
            if not self.left:
                raise OSError("the image cannot be read")
            yield batch


@pytest.fixture(scope="module")
def whole() -> Quantized:
    """The network of a fit that nothing stops."""
    q = network()
    call(q, None, Failing(0), **SHORT)
    return q


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A folder of checkpoints whose fit was stopped by its data."""
    with pytest.raises(OSError, match="the image") as caught:
        call(network(), tmp_path / "run", Failing(READ + 12), **SHORT)
    assert caught.value.__notes__ == [
        f"{tmp_path / 'run'} keeps this fit with its first 9 steps; the same call goes on from there"
    ]
    return tmp_path / "run"


def test_data_that_raises_in_an_epoch(half: Path, whole: Quantized) -> None:
    q = network()
    history = call(q, half, Failing(0), **SHORT)
    assert [step.step for step in history.steps] == list(range(12))
    assert same(tensors(q), tensors(whole))


def test_the_last_two_are_kept_and_hold_no_pickle(half: Path) -> None:
    files = CheckpointFolder(half).files()
    assert len(files) == 2
    assert sorted(half.iterdir()) == sorted(files)
    manifest, kept = read(files[0])
    assert manifest["state"]["dict"][0][0] == "course"
    assert all(isinstance(tensor, torch.Tensor) for tensor in kept.values())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_and_the_same_cell_run_again(
    tmp_path: Path, whole: Quantized, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    q, left = network(), [True] * 4 + [False]
    epoch = probq.training.epoch_end.EpochEnd.__call__

    def stopping(*args: Any) -> None:
        epoch(*args)
        if left and not left.pop():
            raise stop

    with monkeypatch.context() as patch:
        patch.setattr("probq.training.epoch_end.EpochEnd.__call__", stopping)
        with pytest.raises(stop):
            call(q, tmp_path / "run", Failing(0), every=2, **SHORT)
    call(q, tmp_path / "run", Failing(0), every=2, **SHORT)
    assert same(tensors(q), tensors(whole))
    assert q.mode() == whole.mode()


def test_a_full_disk_stops_no_fit(tmp_path: Path, whole: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    q, sizes = network(), []
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        sizes.append(len(data))
        if len(sizes) in (3, 4):
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(
        UserWarning, match=r"no checkpoint after \d steps: .*No space left .*; make room .* stays, with 3"
    ):
        call(q, tmp_path / "run", Failing(0), **SHORT)
    assert same(tensors(q), tensors(whole))
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_a_disk_that_stays_full_keeps_what_was_written(
    tmp_path: Path, whole: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def full(number: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(OSError, match="image"):
            call(network(), tmp_path / "run", Failing(READ + 6), **SHORT)
        patch.setattr("probq.utils.atomic_write.os.fsync", full)
        with pytest.raises(ProbqError, match=r"cannot write .*; make room on the disk"):
            call(network(), tmp_path / "run", Failing(0), **SHORT)
    q = network()
    call(q, tmp_path / "run", Failing(0), **SHORT)
    assert same(tensors(q), tensors(whole))


def test_a_folder_that_cannot_be_written_is_told_before_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProbqError, match=r"which cannot be made a folder .* or a file with a suffix"):
        call(network(), tmp_path / "file", **SHORT)

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", forbidden)
    with pytest.raises(ProbqError, match=r"cannot write .*Read-only file system; name a file in a folder that may be"):
        call(network(), tmp_path / "run", **SHORT)


OTHERS: dict[str, tuple[Callable[[], Quantized], dict[str, Any], str]] = {
    "epochs": (network, {"epochs": 5}, "epochs is 4 there and 5 here"),
    "seed": (network, {"seed": 1}, "seed is 0 there and 1 here"),
    "budget": (network, {"budget": Budget(percent=2)}, "budget is Budget.*1.5.* there and Budget.*2.* here"),
    "rates": (network, {"rates": Rates()}, "rates is Rates.*0.01.* there and Rates.*0.001.* here"),
    "rule": (network, {"rule": probq.rules.PID()}, "rule is DualAscent.* there and PID"),
    "optimizer": (
        network,
        {"optimizer": lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.99))},
        "optimizer is partial.* there and .*lambda",
    ),
    "ladder": (
        lambda: network((1, 2, 4)),
        {},
        r"the ladder of 0.weight is \(1, 2, 4, 8\) bits there and \(1, 2, 4\) bits here",
    ),
    "wider": (lambda: network(width=7), {}, r"is .*shape: \(6, 4\).* there and .*shape: \(7, 4\).* here"),
    "weights": (lambda: network(seed=1), {}, r"starting value of net.0.weight is float32 \[6, 4\] .*; save and load"),
    "validation": (network, {"validation": [(X, Y)]}, "validation batches is absent there and 1 here"),
    "teacher": (network, {"teacher": torch.nn.Linear(4, 3)}, "teacher is None there and Linear"),
    "decided": (lambda: network().at(network().mode(BUDGET)), {}, "whether widths are fixed is False there and True"),
}


@pytest.mark.parametrize(("make", "options", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_another_fit_is_refused(half: Path, make: Any, options: dict[str, Any], message: str) -> None:
    before = sorted(file.read_bytes() for file in half.iterdir())
    q = make()
    state = tensors(q)
    with pytest.raises(
        ProbqError, match=f"holds checkpoints of another fit: .*{message}.*give another folder"
    ) as caught:
        call(q, half, Failing(0), **{**SHORT, **options})
    assert "or remove this one" in str(caught.value)
    assert same(tensors(q), state)
    assert sorted(file.read_bytes() for file in half.iterdir()) == before


def test_data_of_another_length_is_refused(half: Path) -> None:
    batches = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 64, 16)]
    with pytest.raises(ProbqError, match="the number of batches is 3 there and 4 here"):
        call(network(), half, batches, **SHORT)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    manifest = json.loads(header["__metadata__"][KEY])
    change(manifest)
    header["__metadata__"][KEY] = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def test_a_newer_version_is_refused(half: Path) -> None:
    rewritten(CheckpointFolder(half).files()[0], lambda manifest: manifest.update(version=2))
    with pytest.raises(ProbqError, match=r"its version is 2, this probq reads 1; update probq, or give another folder"):
        call(network(), half, Failing(0), **SHORT)


def test_a_checkpoint_is_no_posterior(half: Path) -> None:
    with pytest.raises(ProbqError, match=r"it is a checkpoint of a fit; make the same call of probq.fit again"):
        probq.load(CheckpointFolder(half).files()[0], network().net)


def test_other_versions_of_torch_are_told(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probq.training.checkpoints.keeper.probq_version", lambda: "0.0.0")
    with pytest.warns(UserWarning, match="was written by probq .*; with other versions the fit goes on, but not bit"):
        call(network(), half, Failing(0), **SHORT)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no manifest"])
def test_a_damaged_checkpoint_leaves_the_one_before(half: Path, whole: Quantized, damage: str) -> None:
    newest = CheckpointFolder(half).files()[0]
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    if damage == "flipped":
        data[-1] ^= 1
    newest.write_bytes(b"" if damage == "empty" else bytes(data))
    if damage == "no manifest":
        rewritten(newest, lambda manifest: manifest.update(format="other"))
    q = network()
    with pytest.warns(UserWarning, match=rf"{newest.name} .*; the fit goes on from the checkpoint before it"):
        call(q, half, Failing(0), **SHORT)
    assert same(tensors(q), tensors(whole))


def test_nothing_but_damaged_checkpoints(half: Path) -> None:
    for file in CheckpointFolder(half).files():
        file.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="goes on from the checkpoint before it"),
        pytest.raises(ProbqError, match=r"no checkpoint in .* can be read: .*; remove this folder to begin anew"),
    ):
        call(network(), half, Failing(0), **SHORT)


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path, whole: Quantized) -> None:
    class Removing(Failing):
        def __iter__(self) -> Iterator[Any]:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            return super().__iter__()

    q = network()
    call(q, tmp_path / "run", Removing(0), **SHORT)
    assert same(tensors(q), tensors(whole))
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_fewer_batches_when_read_again(half: Path) -> None:
    class Shrinking(Failing):
        def __iter__(self) -> Iterator[Any]:
            return iter(self.batches[: self.left])

    with pytest.raises(ProbqError, match="gave 1 batches when it was read again, and 3 were read before"):
        call(network(), half, Shrinking(1), **SHORT)


def test_workers_that_stay_are_refused(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(X, Y), 16, num_workers=1, persistent_workers=True)
    with pytest.raises(ProbqError, match="give the DataLoader persistent_workers=False"):
        call(network(), tmp_path / "run", data, **SHORT)


def test_every_needs_a_folder_and_a_number(tmp_path: Path) -> None:
    for path in (None, tmp_path / "q.safetensors"):
        with pytest.raises(ProbqError, match="every is for a folder of checkpoints"):
            probq.fit(network(), shuffled(), checkpoint=path, every=1)
    with pytest.raises(ProbqError, match="every"):
        probq.fit(network(), shuffled(), checkpoint=tmp_path / "run", every=0)


@pytest.mark.parametrize(("name", "folder"), [("run", True), ("rate-0.01", True), ("q.safetensors", False)])
def test_what_a_path_names(tmp_path: Path, name: str, folder: bool) -> None:
    call(network(), tmp_path / name, every=None, epochs=1, validation=None)
    assert (tmp_path / name).is_dir() == folder


def test_what_a_file_cannot_hold_is_told_in_the_first_step(tmp_path: Path) -> None:
    class Remembering(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.state["seen"] = {1, 2}  # type: ignore[index]
            return super().step(closure)

    with pytest.raises(ProbqError, match=r"a checkpoint cannot hold .*seen, a set: keep numbers"):
        call(network(), tmp_path / "run", every=100, optimizer=Remembering, **SHORT)


@pytest.mark.parametrize(
    "state",
    [{"a": [1, None, True, "x", 2.5]}, {1: (2.5, float("inf"))}, [(), {}, [[]], ((1,),)], {"deep": {"er": [{}, (3,)]}}],
)
def test_states_are_the_same_when_read_again(state: Any) -> None:
    assert from_entry(json.loads(json.dumps(to_entry(state, "s", {}))), {}) == state


def test_tensors_keep_their_order_in_memory() -> None:
    kept: dict[str, torch.Tensor] = {}
    value = torch.arange(48.0).reshape(2, 3, 2, 4).to(memory_format=torch.channels_last)
    again = from_entry(to_entry(value, "s", kept), kept)
    assert torch.equal(again, value)
    assert again.stride() == value.stride()
    assert kept["s"].is_contiguous()


def test_a_finished_fit_returns_at_once(tmp_path: Path, whole: Quantized) -> None:
    history = call(network(), tmp_path / "run", Failing(0), **SHORT)
    q = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = call(q, tmp_path / "run", Failing(10), **SHORT)
    assert again.steps == history.steps
    assert again.settings.keys() == history.settings.keys()
    assert same(tensors(q), tensors(whole))
    assert [q.training, q.folded, q.rounding] == [whole.training, whole.folded, whole.rounding]


def test_a_loss_that_is_not_finite_leaves_the_state_of_the_checkpoint(half: Path) -> None:
    q, (_, parts) = network(), read(CheckpointFolder(half).files()[0])
    state = {name.removeprefix("state.course.network.tensors."): tensor for name, tensor in parts.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probq.training.svi.loop.Loop._means", lambda *_: StepMeans(math.nan, 0.0, 0.0, 0.0, 16))
        with pytest.raises(ProbqError, match="at step 9; the network keeps its state of step 9"):
            call(q, half, Failing(0), **SHORT)
    assert all(torch.equal(tensor, state[name]) for name, tensor in q.named_parameters())


def test_a_second_fit_keeps_out_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is called while the first one is at work, and again when it has ended."""
    monkeypatch.setattr("probq.training.checkpoints.folder.PATIENCE", 0.0)
    said = []

    class Calling(Failing):
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            if self.passes == 5:  # behind those that set scales and likelihood
                with pytest.raises(ProbqError, match=r"another fit is writing to .*run; wait until it ends") as told:
                    call(network(), tmp_path / "run", Failing(0), **SHORT)
                said.append(str(told.value))
            yield from self.batches

    q, other = network(), network()
    call(q, tmp_path / "run", Calling(0), **SHORT)
    assert len(said) == 1
    call(other, tmp_path / "run", Failing(0), **SHORT)
    assert same(tensors(q), tensors(other))
