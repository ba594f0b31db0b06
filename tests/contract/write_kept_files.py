"""Wrote `files/`. Run it to add what a later version can hold: what is there already is kept, byte for byte.

`python tests/contract/write_kept_files.py`
"""

import json
import warnings
from pathlib import Path
from typing import Any

import kept_facts as facts
import kept_networks

import probq
from probq.export import c, certify, memory, onnx, verify

FILES = Path(__file__).with_name("files")
MODELS = ("default", "dyadic", "channel_gates", "weight_gates", "activation_tables", "tied_weights_normal", "text")


def main() -> None:
    """Write every file that is not there."""
    warnings.simplefilter("ignore")
    for name, kept in kept_networks.KEPT.items():
        path = FILES / "posteriors" / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            q, x = kept_networks.made(kept)
            q.save(path)
            _note(path, x, {"posterior": facts.of_posterior(q, x), "written with": facts.here()})
            if name in MODELS:
                _model(name, q, x)
    if not (FILES / "ensemble").exists():
        q, x = kept_networks.made(kept_networks.KEPT["tied_weights_normal"])
        members = probq.ensemble(q.at(q.mode()), 2, seed=3)
        members.save(FILES / "ensemble")
        said = {"outputs": members(x.numpy()).tolist(), "real": members.outputs(x.numpy()).tolist()}
        _note(FILES / "ensemble", x, {**said, "noise": members.noise, "metadata": members.metadata})
    if not (FILES / "artefacts").exists():
        (FILES / "artefacts").mkdir()
        q, x = kept_networks.made(kept_networks.KEPT["several_budgets"])
        _artefacts(probq.lower(q), x.numpy())


def _model(name: str, q: Any, x: Any) -> None:
    path = FILES / "models" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    model = probq.lower(q)
    model.save(path)
    _note(path, x, {"model": facts.of_model(model, x.numpy()), "integers": model.quantize_input(x.numpy()).tolist()})


def _artefacts(model: Any, x: Any) -> None:
    """Of one model, those of every target without a library of its own, and ONNX; each with its certificate."""
    folder = FILES / "artefacts"
    model.save(folder / "model.safetensors")
    (folder / "inputs.json").write_text(json.dumps(x.tolist()) + "\n", encoding="utf-8")
    for write, name in ((c.write, "model.h"), (onnx.write, "model.onnx"), (memory.write, "memory")):
        write(model, folder / name)
        certify(model, folder / name, verify(model, folder / name, x))


def _note(path: Path, x: Any, content: dict[str, Any]) -> None:
    text = json.dumps({"input": x.tolist(), **content}, separators=(",", ":"))
    path.with_name(path.name + ".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
