"""These small networks are of kinds that are deployed: each is quantized, lowered and exported without one refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.network.tracing.module_kinds import NORMS
from probq.testing.deployed_blocks import (
    Attentive,
    ChannelNorm,
    Classified,
    DenseBlock,
    Encoder,
    Gated,
    Hourglass,
    Placed,
    PreActivation,
    Reparametrized,
    Scaled,
    Selective,
    SqueezeExcitation,
    conv_norm,
    head,
)
from probq.testing.deployed_images import (
    AttentionGate,
    Mixer,
    Points,
    efficient,
    modern,
    shuffled,
    spatial_gate,
    video,
    windows,
)
from probq.testing.deployed_sequences import (
    Causal,
    Conformer,
    Dilated,
    LastOutput,
    Reader,
    Rotary,
    Spelled,
    Switched,
    Translator,
)

NORMALISATIONS = (*NORMS, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm2d, ChannelNorm)


class Bottleneck(nn.Module):
    """This inverted residual of MobileNetV2 expands 1x1, is depthwise 3x3, and projects 1x1 without a non-linearity.

    Source: M. Sandler et al., 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks".
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide = 2 * before
        self.body = nn.Sequential(
            *conv_norm(before, wide, 1), nn.ReLU6(inplace=True),
            *conv_norm(wide, wide, 3, stride, groups=wide), nn.ReLU6(inplace=True),
            *conv_norm(wide, after, 1),
        )  # fmt: skip
        self.shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return x + self.body(x) if self.shortcut else self.body(x)


class Block(nn.Module):
    """This is the basic block of a ResNet.

    Its shortcut is the identity, a projection, or (`padded`) a slice with zero channels.

    Source: K. He et al., 2016, "Deep Residual Learning for Image Recognition".
    """

    def __init__(self, before: int, after: int, stride: int, padded: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_norm(before, after, 3, stride), nn.ReLU(inplace=True), *conv_norm(after, after))
        projected = not padded and (stride > 1 or before != after)
        self.shortcut = nn.Sequential(*conv_norm(before, after, 1, stride)) if projected else nn.Identity()
        self.stride, self.more = (stride, after - before) if padded else (1, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        short = self.shortcut(x)[:, :, :: self.stride, :: self.stride]
        return F.relu(self.body(x) + F.pad(short, (0, 0, 0, 0, 0, self.more)))


class Neck(nn.Module):
    """Channels are split and joined, a coarse map is upsampled beside a fine one, and one side only is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.SiLU(True))
        self.branch = nn.Sequential(*conv_norm(4, 4), nn.Hardswish(inplace=True))
        self.down, self.up = nn.Sequential(*conv_norm(12, 6, 3, 2), nn.LeakyReLU(0.1)), nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(18, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of scores."""
        left, right = self.stem(x).chunk(2, 1)
        fine = torch.cat([left, right, right + self.branch(right)], 1)
        return self.head(torch.cat([self.up(self.down(fine)), fine], 1))


class Patches(nn.Module):
    """Patches are embedded by a linear layer, pass through two encoder layers of torch's, and are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.out(self.encoder(self.embed(x)).mean(1))


def _mobilenet() -> nn.Sequential:
    blocks = [Bottleneck(6, 6, 1), Bottleneck(6, 8, 2), Bottleneck(8, 8, 1)]
    return nn.Sequential(*conv_norm(3, 6, 3, 2), nn.ReLU6(inplace=True), *blocks, *head(8))


def _resnet(padded: bool) -> nn.Sequential:
    stem = [*conv_norm(3, 6), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, Block(6, 6, 1), Block(6, 10, 2, padded), *head(10))


def _signal() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, stride=2, padding=2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(6, 8, 3, padding="same"), nn.BatchNorm1d(8), nn.GELU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def _upsampled() -> nn.Sequential:
    return nn.Sequential(
        *conv_norm(1, 6, 3, 2), nn.ReLU(), *conv_norm(6, 4, 3, 2), nn.Identity(),
        nn.Upsample(scale_factor=2, mode="nearest"), *conv_norm(4, 6), nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(6, 1, 3, padding=1), nn.Sigmoid(),
    )  # fmt: skip


def _transposed() -> nn.Sequential:
    return nn.Sequential(
        *conv_norm(1, 6, 3, 2), nn.ELU(inplace=True), nn.Conv2d(6, 4, 3, 2, 1), nn.Tanh(),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 1, 2, 2), nn.Hardsigmoid(),
    )  # fmt: skip


def _functions() -> nn.Sequential:
    functions = [
        nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Hardsigmoid(), nn.Hardswish(), nn.Softplus(),
        nn.ELU(), nn.LeakyReLU(),
    ]  # fmt: skip
    layers = [module for function in functions for module in (nn.Linear(6, 6), function)]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def _preactivation() -> nn.Sequential:
    blocks = [PreActivation(6, 6, 1), PreActivation(6, 8, 2), PreActivation(8, 8, 1)]
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), *blocks, nn.BatchNorm2d(8), nn.ReLU(), *head(8))


def _densenet() -> nn.Sequential:
    blocks = [DenseBlock(6, 3), DenseBlock(9, 3), nn.AvgPool2d(2), DenseBlock(12, 4), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*conv_norm(3, 6, 3, 2), nn.ReLU(inplace=True), *blocks, *head(16))


def _repvgg() -> nn.Sequential:
    return nn.Sequential(*conv_norm(3, 6, 3, 2), nn.ReLU(), Reparametrized(6), Reparametrized(6), *head(6))


def _layer_scale() -> nn.Sequential:
    return nn.Sequential(Placed(6, 6), Scaled(6), nn.Conv2d(6, 8, 2, 2), Scaled(8), *head(8))


def _layer_norms() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 12), nn.RMSNorm(12), nn.Linear(12, 8),
        nn.LayerNorm(8, elementwise_affine=False), nn.ReLU(), nn.Linear(8, 4), nn.LogSoftmax(-1),
    )  # fmt: skip


def _group_norms() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(4, 8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1),
        nn.InstanceNorm2d(8, affine=True), nn.SiLU(), nn.Conv2d(8, 6, 3), nn.InstanceNorm2d(6), nn.ReLU(), *head(6),
        nn.Softmax(1),
    )  # fmt: skip


def _squeezed() -> nn.Sequential:
    blocks = [SqueezeExcitation(6, 3), *conv_norm(6, 8, 3, 2), nn.SiLU(), SqueezeExcitation(8, 2)]
    return nn.Sequential(*conv_norm(3, 6, 3, 2), nn.ReLU(), *blocks, *head(8))


def _gated() -> nn.Sequential:
    blocks = [nn.Conv1d(2, 6, 3, padding=1), Gated(6, 1), Gated(6, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4))


def _attentive() -> nn.Sequential:
    blocks = [Attentive(8, 2), nn.Linear(8, 8), nn.ReLU(), Attentive(8, 1)]
    return nn.Sequential(nn.Linear(4, 8), *blocks, nn.Flatten(), nn.Linear(40, 3))


def _causal() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), Causal(8, 2, 5), nn.LayerNorm(8), nn.Linear(8, 3))


DEPLOYED: tuple[tuple[str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("mobilenet v2", _mobilenet, (3, 12, 12)),
    ("resnet", lambda: _resnet(padded=False), (3, 12, 12)),
    ("resnet, padded shortcut", lambda: _resnet(padded=True), (3, 12, 12)),
    ("one-dimensional", _signal, (2, 24)),
    ("autoencoder, upsampled", _upsampled, (1, 12, 12)),
    ("autoencoder, transposed", _transposed, (1, 12, 12)),
    ("split and joined", Neck, (3, 12, 12)),
    ("functions", _functions, (6,)),
    ("pre-activation resnet", _preactivation, (3, 12, 12)),
    ("densenet", _densenet, (3, 12, 12)),
    ("repvgg", _repvgg, (3, 12, 12)),
    ("layer scale", _layer_scale, (3, 12, 12)),
    ("layer norms", _layer_norms, (6,)),
    ("group norms", _group_norms, (3, 12, 12)),
    ("channel attention", lambda: Selective(6), (3, 12, 12)),
    ("squeeze and excitation", _squeezed, (3, 12, 12)),
    ("gates", _gated, (2, 16)),
    ("attention", _attentive, (5, 4)),
    ("transformer", lambda: nn.Sequential(nn.Linear(4, 8), Encoder(8, 2), nn.Flatten(), nn.Linear(40, 3)), (5, 4)),
    ("transformer of torch", Patches, (5, 4)),
    ("hourglass", lambda: Hourglass(6), (1, 12, 12)),
    ("class token", lambda: Classified(8, 4), (3, 12, 12)),
    ("causal attention", _causal, (5, 4)),
    ("encoder and decoder of torch", lambda: Translator(3), (4, 4)),
    ("lstm", lambda: LastOutput(nn.LSTM(3, 4, batch_first=True), 4), (6, 3)),
    ("gru", lambda: LastOutput(nn.GRU(3, 4, batch_first=True), 4), (6, 3)),
    ("lstm, both ways", lambda: LastOutput(nn.LSTM(2, 3, 2, batch_first=True, bidirectional=True), 6, True), (4, 2)),
    ("attention u-net", lambda: AttentionGate(4), (1, 8, 8)),
    ("mlp-mixer", lambda: Mixer(6, 4), (3, 8, 8)),
    ("gmlp", spatial_gate, (5, 3)),
    ("convnext", modern, (3, 8, 8)),
    ("efficientnet", efficient, (3, 8, 8)),
    ("shufflenet", shuffled, (3, 8, 8)),
    ("shifted windows", windows, (4, 4, 3)),
    ("pointnet", Points, (3, 8)),
    ("video", video, (2, 4, 6, 6)),
    ("temporal convolutions", lambda: Dilated(4), (2, 10)),
    ("conformer", lambda: Conformer(6), (5, 6)),
    ("llama", lambda: Rotary(4), (4, 8)),
    ("convolutional and recurrent", Reader, (1, 8, 8)),
    ("normalisations spelled out", lambda: Spelled(6), (4, 6)),
    ("experts, one chosen", lambda: Switched(5), (6,)),
)


def deployed() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield networks of kinds that are deployed, each with a name and 16 signed inputs, the same ones at every call.

    Their weights are random, those of their normalisations as after training: no channel like another.

    Example:
        >>> [name for name, net, example in deployed()][:3]
        ['mobilenet v2', 'resnet', 'resnet, padded shortcut']
    """
    for number, (name, make, shape) in enumerate(DEPLOYED):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            net = make().eval()
            for module in net.modules():
                if isinstance(module, NORMALISATIONS):
                    _tilt(module)
            example = torch.randn(16, *shape)
        yield name, net, example


@torch.no_grad()
def _tilt(norm: nn.Module) -> None:
    """Move gains, shifts and statistics, if it has them, away from their start; some gains are negative."""
    tensors = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    unused = torch.empty(0)
    tensors.get("running_mean", unused).normal_(0, 0.3)
    tensors.get("running_var", unused).uniform_(0.2, 2)
    tensors.get("weight", unused).normal_(0.8, 0.5)
    tensors.get("bias", unused).normal_(0, 0.3)
