"""What the study of quantization without training measures: a float network, a draw of examples, and test images."""

from __future__ import annotations

import functools
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import trained_networks
from against_uniform import EPOCHS_FLOAT
from against_uniform import NETWORKS as SMALL
from protocol import accuracy, in_parts, train
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import probq
from probq.cli import demo
from probq.decisions.within_budget import with_widths
from probq.training.ptq.input_scales import set_input_scales
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError

EXAMPLES, TEST = 512, 2000
COMPARED = 64  # test images on which the integer model is compared with the decided network
LADDERS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    dict.fromkeys((*SMALL, "LeNet-5"), (1, 2, 3, 4, 5, 6, 8)) | {"ResNet-8": (1, 2, 3, 4, 8)}
)
EXAMPLES_OF_PAIRS: Mapping[str, int] = MappingProxyType({"ResNet-8": 128})  # for `clado`; all elsewhere
Data = tuple[Tensor, Tensor]


class Subject:
    """A float network, the examples of one draw, test images, and the network quantized with a ladder.

    Args:
        network: its name. The small ones are trained here, on the digits that the draw splits; the others are read.
        draw: seed of the draw.
        folder: of the data.
        kept: folder of the float networks and of energies.
    """

    def __init__(self, network: str, draw: int, folder: Path | None, kept: Path) -> None:
        self.network, self.draw, self.kept = network, draw, kept
        torch.manual_seed(draw)
        if network in SMALL:
            digits = demo.digits(draw)
            self.net: nn.Module = SMALL[network]()
            train(self.net, DataLoader(digits.train, batch_size=demo.BATCH, shuffle=True), EPOCHS_FLOAT)
            chosen = torch.randperm(len(digits.train))[:EXAMPLES]
            x, y = (tensor[chosen] for tensor in digits.train.tensors)
            self.test = digits.test.tensors
        else:
            assert folder is not None, "--data names the folder of MNIST and CIFAR-10"
            self.net = trained_networks.trained(network, folder, kept)
            torch.manual_seed(draw)
            chosen = torch.randperm(trained_networks.TRAINING[network])[:EXAMPLES]
            x, y = trained_networks.images(network, folder, True, chosen=chosen)
            self.test = trained_networks.images(network, folder, False, TEST)
        self.batches = list(zip(x.split(64), y.split(64), strict=True))
        self.norms = any(isinstance(module, nn.BatchNorm2d) for module in self.net.modules())
        self.known: dict[Any, dict[str, Any]] = {}

    @functools.cached_property
    def q(self) -> probq.Quantized:
        """The network with all widths of the ladder, its scales set."""
        rungs = LADDERS[self.network]
        ladders = {"weight": probq.codebooks.ladder(*rungs), "input": probq.codebooks.ladder(*rungs, signed=False)}
        q = probq.quantize(self.net, self.batches[0][0], probq.Plan(**ladders))
        set_input_scales(q, Batches(self.batches, q.device))
        return q.eval()

    def uniform(self, weights: int, inputs: int) -> dict[str, int]:
        """Uniform widths of weights and of inputs; the network's own input stays as it is."""
        free = {name for name, site in self.q.named_sites() if len(site.ladder) > 1}
        wanted = {n: weights if n in self.q.weight_names else inputs for n in self.q.mode().widths}
        return {n: wanted[n] if self.q.sites.get(n, n) in free else int(b) for n, b in self.q.mode().widths.items()}

    def cost(self, widths: Mapping[str, int], cost: str) -> float:
        """What widths cost, by the name of a cost."""
        return with_widths(self.q, dict(widths), None).cost(getattr(probq.cost, cost))

    def energy(self, criterion: str) -> tuple[probq.Energy, float]:
        """What a criterion measures, and the seconds that it took, from its file or measured now."""
        path = self.kept / f"energy-{self.network}-{self.draw}-{criterion}.safetensors"
        if not path.exists():
            few = EXAMPLES_OF_PAIRS.get(self.network, EXAMPLES) if criterion == "clado" else None
            examples = {"examples": few} if few else {}
            resume = {"resume": path.with_suffix(".part")} if criterion == "clado" else {}
            q, start = self.q, time.perf_counter()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*energies of")
                torch.manual_seed(self.draw)
                found = getattr(probq.criteria, criterion)(q, self.batches, progress=False, **examples, **resume)
            path.with_suffix(".json").write_text(json.dumps(time.perf_counter() - start))
            found.save(path)
        return probq.Energy.load(path), float(json.loads(path.with_suffix(".json").read_text()))

    def float_accuracy(self) -> float:
        """Test accuracy of the float network."""
        return accuracy(in_parts(self.net, self.test[0]), self.test[1])

    def scores(self, widths: Mapping[str, Any], rounding: str) -> dict[str, Any]:
        """Test accuracy of the integer model at given widths, and outputs that differ from the network's."""
        key = (rounding, tuple(sorted((name, int(bits)) for name, bits in widths.items())))
        if key not in self.known:
            start = time.perf_counter()
            chosen, q = self.rounded(widths, rounding)
            seconds = time.perf_counter() - start
            outputs, differing = self.outputs(q)
            self.known[key] = {
                "test": accuracy(outputs, self.test[1]),
                "loss": self.loss(q),
                "percent": q.mode().percent(),
                "storage": q.mode().percent(probq.cost.storage),
                "differing": differing,
                "chosen": chosen,
                "seconds": round(seconds, 2),
                "widths": [int(b) for _, b in key[1]],
            }
        return self.known[key]

    def outputs(self, q: probq.Quantized) -> tuple[Tensor, int | None]:
        """Outputs of the integer model for all test images, and how many of the first ones' differ from those of `q`.

        Where `probq.lower` refuses, they are the outputs of `q`, and the count is None.
        """
        x = self.test[0]
        own = in_parts(q, x[:COMPARED])
        try:
            model = probq.lower(q)
        except ProbqError as error:
            tqdm.write(f"{self.network}: {error}")
            return in_parts(q, x), None
        outputs = in_parts(lambda part: model(part.numpy()), x).double() * model.output_scale
        return outputs, int((outputs[:COMPARED].float() != own.float()).sum())

    def rounded(self, widths: Mapping[str, Any], rounding: str) -> tuple[str, probq.Quantized]:
        """A decided network and what was done to it: what has the least loss on the examples, of

        "nearest": nearest rounding, and normalisation moved to the decided widths;
        "anew": the same, with statistics of normalisation from the examples alone;
        "bias", "gpfq": these alone;
        "best": all of them, and `gpfq` with `bias`;
        "learned": nearest rounding, `reconstruct`, and `reconstruct` with `bias`. `probq.post_training` takes the
            better one of the last two.
        """
        decided, several = self.q.at(with_widths(self.q, dict(widths), None)), {}
        if rounding in ("nearest", "anew", "best", "learned"):
            several["nearest"] = decided
            if self.norms:
                several["norms"] = probq.ptq.norms(decided, self.batches, anew=rounding == "anew")
        if rounding in ("bias", "best"):
            several["bias"] = probq.ptq.bias(decided, self.batches)
        if rounding in ("gpfq", "best"):
            several["gpfq"] = rounded = probq.ptq.gpfq(decided, self.batches)
        if rounding == "best":
            several["gpfq and bias"] = probq.ptq.bias(rounded, self.batches)
        if rounding == "learned":
            several["learned"] = learned = probq.ptq.reconstruct(decided, self.batches, progress=False)
            several["learned and bias"] = probq.ptq.bias(learned, self.batches)
        return min(several.items(), key=lambda pair: self.loss(pair[1]))

    @torch.no_grad()
    def loss(self, q: Any) -> float:
        """The loss on the draw's examples."""
        sums = [nn.functional.cross_entropy(q(x), y, reduction="sum") for x, y in self.batches]
        return float(sum(sums)) / EXAMPLES
