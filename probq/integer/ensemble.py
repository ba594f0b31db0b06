"""An ensemble is several integer models that answer together. It needs numpy only; nothing in its folder is pickled."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probq.evaluation.metrics import uncertainty
from probq.evaluation.metrics.uncertainty import Uncertainty
from probq.integer.model import IntegerModel
from probq.integer.node import metadata_copy
from probq.integer.ports.outputs import by_name, put_together
from probq.utils.atomic_write import temporary_name
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path, reason, target_path

FORMAT, VERSION = "probq.ensemble", 1
MANIFEST = "ensemble.json"
FIELDS = ("format", "version", "members", "noise", "metadata", "sha256")


class Ensemble:
    """An ensemble has integer models drawn from one posterior, and averages their predictions.

    Args:
        models: the members; they take the same inputs.
        noise: variance of the targets around the output where they are real numbers, in their unit squared; None where
            the outputs are logits of classes.
        metadata: free JSON-able information, as budget, costs and versions.

    Raises:
        ProbqError: there is no member, they take inputs of different shapes, or the noise is no variance.
    """

    def __init__(
        self, models: Sequence[IntegerModel], noise: float | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.models = tuple(models)
        if not self.models or not all(isinstance(model, IntegerModel) for model in self.models):
            raise ProbqError("an ensemble takes at least one IntegerModel, and nothing else")
        shapes = [_shapes_of(model) for model in self.models]
        if any(shape != shapes[0] for shape in shapes):
            raise ProbqError(f"the members take inputs of different shapes: {shapes}; they must be of one network")
        if noise is not None and (type(noise) not in (int, float) or not 0 <= noise < 2**1024):
            raise ProbqError(f"noise is a variance, 0 or more, or None for classes; not {noise!r:.80}")
        self.noise = None if noise is None else float(noise)
        self.metadata = metadata_copy(metadata)

    def __len__(self) -> int:
        return len(self.models)

    def __call__(self, x: Any) -> Any:
        """Return the members' outputs in integers, each in units of its `output_scale`, int64 `[members, batch, ...]`.

        Where the network returns several tensors, so does the ensemble, built alike.

        Raises:
            ProbqError: as `IntegerModel`; or the members' outputs have different shapes.
        """
        return self._stacked([model(x) for model in self.models])

    def outputs(self, x: Any) -> Any:
        """Return the members' outputs as real numbers, float64 `[members, batch, ...]`."""
        return self._stacked([model.real_output(model(x)) for model in self.models])

    def _stacked(self, values: list[Any]) -> Any:
        """Return what the members gave, stacked."""
        found = [list(by_name(model.output, one).values()) for model, one in zip(self.models, values, strict=True)]
        if any([a.shape for a in each] != [a.shape for a in found[0]] for each in found):
            raise ProbqError("the members' outputs have different shapes; they must be of one network")
        names = [output.node for output in self.models[0].outputs]
        stacked = {name: np.stack(each) for name, each in zip(names, zip(*found, strict=True), strict=True)}
        return put_together(self.models[0].output, stacked)

    def _only(self, x: Any) -> np.ndarray:
        """Return the outputs of members that give one tensor."""
        outputs = self.outputs(x)
        if not isinstance(outputs, np.ndarray):
            names = ", ".join(output.name for output in self.models[0].outputs)
            raise ProbqError(
                f"the members have several outputs, {names}; take the one of outputs(x) that is meant, and "
                "probq.uncertainty.classification or regression of it"
            )
        return outputs

    def classes(self, x: Any, axis: int | None = None) -> Uncertainty:
        """Return the averaged probabilities `[batch, ..., classes]`, and the parts of their uncertainty in nats.

        `epistemic` is the mutual information between class and member (BALD); see `probq.uncertainty.classification`.

        Args:
            x: inputs, as a member takes them.
            axis: of a member's output that runs over classes; by default that of the likelihood the members were drawn
                with (`metadata["class axis"]`), or the last one.

        Raises:
            ProbqError: the targets are real numbers, or the outputs have no such axis.
        """
        if self.noise is not None:
            raise ProbqError("this ensemble predicts real numbers, not classes; call numbers(x)")
        outputs, axis = self._only(x), self.metadata.get("class axis", -1) if axis is None else axis
        own = outputs.ndim - 1  # axes of a member's output
        if type(axis) is not int or not -own < axis < own or axis == 0:
            raise ProbqError(f"axis is that of the classes in outputs of {own} axes, such as 1 or -1, not {axis!r:.80}")
        return uncertainty.classification(uncertainty.softmax(np.moveaxis(outputs, axis + (axis > 0), -1)))

    def numbers(self, x: Any) -> Uncertainty:
        """Return averaged outputs `[batch, ...]` and the parts of the targets' variance; see `uncertainty.regression`.

        Raises:
            ProbqError: the outputs are logits of classes.
        """
        if self.noise is None:
            raise ProbqError("this ensemble predicts classes, not numbers (its noise is None); call classes(x)")
        return uncertainty.regression(self._only(x), self.noise)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write a new folder: a safetensors file for each member, and `ensemble.json` with their SHA-256.

        The folder appears whole or not at all.

        Raises:
            ProbqError: the folder holds something already, or cannot be written.
        """
        folder = target_path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ProbqError(f"{folder} exists and is not empty; name a new folder")
        temporary = temporary_name(folder)
        try:
            temporary.mkdir()
            members = []
            for k, model in enumerate(self.models):
                model.save(temporary / f"member-{k:03}.safetensors")
                members.append({"file": f"member-{k:03}.safetensors", "sha256": _of_file(temporary, k)})
            content = {"format": FORMAT, "version": VERSION, "members": members, "noise": self.noise}
            content["metadata"] = self.metadata
            text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
            (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
            temporary.replace(folder)
        except OSError as error:
            raise ProbqError(f"cannot write {folder}: {reason(error)}; name a new folder in one that exists") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "Ensemble":
        """Read what `save` wrote; manifest and members are checked against their SHA-256 before they are used.

        Raises:
            ProbqError: there is no such folder, or something in it is missing, damaged, edited or of another kind.
        """
        folder = checked_path(folder)
        manifest = _manifest(folder)
        models = []
        for k, entry in enumerate(manifest["members"]):
            if entry != {"file": f"member-{k:03}.safetensors", "sha256": _of_file(folder, k)}:
                raise ProbqError(f"member {k} of {folder} is not the file that its manifest records; save it again")
            models.append(IntegerModel.load(folder / entry["file"]))
        return cls(models, manifest["noise"], manifest["metadata"])

    def __repr__(self) -> str:
        bits = sum(node.bits for model in self.models for node in model.nodes)
        return f"Ensemble({len(self)} models, {bits:,} parameter bits in all)"


def _shapes_of(model: IntegerModel) -> Any:
    """Return the shape of a model's input, of each one by its name where there are several."""
    shapes = {node.name: node.attributes["shape"] for node in model.inputs}
    return shapes if len(shapes) > 1 else next(iter(shapes.values()))


def _of_file(folder: Path, k: int) -> str:
    try:
        return hashlib.sha256((folder / f"member-{k:03}.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise ProbqError(f"member {k} cannot be read: {error}; save the ensemble again") from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProbqError(f"{folder} holds no {MANIFEST}; give a folder that Ensemble.save wrote") from error
    except (ValueError, RecursionError) as error:
        raise ProbqError(f"the manifest of {folder} is not JSON ({error!s:.80}); save the ensemble again") from error
    kind = manifest.get("format") if isinstance(manifest, dict) else None
    if kind != FORMAT:
        raise ProbqError(f"{folder} has format {kind!r:.80}, not {FORMAT!r}; give a folder that Ensemble.save wrote")
    if manifest.get("version") != VERSION:
        raise ProbqError(f"its version is {manifest.get('version')!r:.80}, this probq reads {VERSION}; update probq")
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    whole = set(manifest) == set(FIELDS) and isinstance(content["members"], list)
    if not whole or _digest(content) != manifest["sha256"]:
        raise ProbqError(f"the manifest of {folder} was edited or damaged; save the ensemble again")
    return content
