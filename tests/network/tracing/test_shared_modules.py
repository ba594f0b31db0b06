"""Modules and tensors with several names: several steps of `fit`, and everything that follows."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq.network.program.substitution import substitute


class TiedBias(nn.Module):
    def __init__(self, tied: str = "bias") -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        setattr(self.b, tied, getattr(self.a, tied))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """One head for two resolutions, in a list that names it twice."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(3, 4, 3, padding=1)
        self.stem, self.heads, self.last = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ModuleList([shared, shared]),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        fine, coarse = F.relu(self.heads[0](x)), F.relu(self.heads[1](F.max_pool2d(x, 2)))
        return self.last(fine.mean((2, 3)) + coarse.mean((2, 3)))  # type: ignore[no-any-return]


class Scales(Pyramid):
    """A head that is one convolution, with a batch normalisation of each resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = zip(self.norms, (x, F.max_pool2d(x, 2)), strict=True)
        return self.last(sum(F.relu(norm(self.heads[0](one))).mean((2, 3)) for norm, one in y))  # type: ignore[no-any-return]


def twice(shared: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), shared, nn.ReLU(), nn.Linear(4, 4), shared, nn.ReLU(), nn.Linear(4, 3))


def sequence() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 3))


NETS = {
    "layer": (sequence, [4]),
    "head in a list": (Pyramid, [1, 8, 8]),
    "norms of each resolution": (Scales, [1, 8, 8]),
    "tied bias": (TiedBias, [4]),
    "tied weight": (lambda: TiedBias("weight"), [4]),
    "layer with its own activation": (lambda: twice(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())), [4]),
    "batch normalisation": (lambda: twice(nn.BatchNorm1d(4)), [4]),
    "PReLU": (lambda: twice(nn.PReLU()), [4]),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("make", "shape"), NETS.values(), ids=NETS)
def test_shared_modules_train_decide_and_lower(make, shape, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net, x = make(), torch.rand(12, *shape)
    q = probq.quantize(net, x)
    before = {name: tensor.clone() for name, tensor in q.net.state_dict().items()}
    probq.fit(q, [(x, torch.arange(12) % 3)] * 2, epochs=3, progress=False)
    after = q.net.state_dict()
    assert list(after) == list(net.state_dict())
    assert all(p.dtype == torch.float32 and p.is_leaf for p in q.net.parameters())
    assert len(list(q.net.parameters())) == len(list(net.parameters()))  # what was one is one
    assert any(not torch.equal(after[name], before[name]) for name in after if name.endswith("weight"))
    output = q(x)
    q.save(tmp_path / "q.safetensors")
    assert torch.equal(probq.load(tmp_path / "q.safetensors", net)(x), output)
    model = probq.lower(q)
    np.testing.assert_array_equal((model(x.numpy()) * model.output_scale).astype(np.float32), output.numpy())


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_substitution_reaches_every_name_and_leaves_no_trace(dtype: torch.dtype | None) -> None:
    """Weights are replaced wherever they are; two names with replacements of their own each keep theirs."""
    torch.manual_seed(1)
    net = TiedBias("bias")
    net.b.weight = net.a.weight
    kept, pointers = copy.deepcopy(net.state_dict()), [p.data_ptr() for p in net.parameters()]
    w, b1, b2, x = torch.randn(4, 4), torch.randn(4), torch.randn(4), torch.rand(5, 4)
    for _ in range(2):
        out = substitute(net, {"a.weight": w, "a.bias": b1, "b.bias": b2}, {}, {}, x, dtype=dtype)
        head = F.linear(F.relu(F.linear(F.relu(F.linear(x, w, b1)), w, b2)), net.head.weight, net.head.bias)
        torch.testing.assert_close(out, head.to(out.dtype))
        assert out.dtype == (dtype or torch.float32)
    assert [p.data_ptr() for p in net.parameters()] == pointers
    assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())
