"""Small networks, one for each kind of layer that has to be maskable, and a method of every kind."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from img2img import masks


class Attention(nn.Module):
    """Self-attention with a class token and a position embedding, which must stay frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 6, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.gamma = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.norm(x + self.gamma * self.attention(x, x, x, need_weights=False)[0])


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.mix = nn.Linear(8, 8)
        self.output = nn.Linear(8, 10, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(torch.tanh(self.mix(self.embedding(tokens))))


class Tokens(nn.Module):
    """Attention made of linear layers, whose inputs of three dimensions are transposed views, and so not contiguous.

    PyTorch chooses a linear layer's kernel there by whether its weight requires grad, even without grad.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.output = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.mixer(x.transpose(1, 2)).chunk(3, -1)
        return self.output(nn.functional.scaled_dot_product_attention(queries, keys, self.norm(values)).transpose(0, 1))


class TwoInputs(nn.Module):
    """A bilinear layer of an input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(6, 6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.bilinear(x, x)


def _images(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(4, channels, size, size)


def conv2d() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, dilation=2)
    return nn.Sequential(*layers), _images()


def grouped() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(4, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1)
    return nn.Sequential(*layers), _images(4)


def transposed2d() -> tuple[nn.Module, Tensor]:
    layers = (
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(6, 6, 3, groups=2, bias=False),
    )
    return nn.Sequential(*layers), _images()


def one_dimension() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.ConvTranspose1d(8, 4, 3)
    return nn.Sequential(*layers), torch.randn(4, 3, 9)


def three_dimensions() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.ConvTranspose3d(4, 2, 2)
    return nn.Sequential(*layers), torch.randn(2, 2, 4, 4, 4)


def linear() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5, bias=False)), torch.randn(4, 6)


def attention() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.randn(4, 5, 8)


def tokens() -> tuple[nn.Module, Tensor]:
    return Tokens(), torch.randn(3, 8, 5)


def tied() -> tuple[nn.Module, Tensor]:
    return Tied(), torch.randint(10, (4, 5))


def bilinear() -> tuple[nn.Module, Tensor]:
    return TwoInputs(), torch.randn(4, 6)


_LAYERS = (conv2d, grouped, transposed2d, one_dimension, three_dimensions, linear, attention, tokens, tied, bilinear)
LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {f.__name__: f for f in _LAYERS}

# A low margin, so that a few training steps flip bits. One line a method and variant; the contract test runs over all.
METHODS: dict[str, Callable[[], masks.MaskMethod]] = {
    "identity": masks.Identity,
    "piggyback": lambda: masks.Piggyback(init=6e-3),
    "piggyback-uniform": lambda: masks.Piggyback(start="uniform"),
    "piggyback-kernel": lambda: masks.Piggyback(init=6e-3, granularity="kernel", gradient_scaling="individual"),
    "piggyback-ternary": lambda: masks.Piggyback(start="uniform", ternary=True),
    "affine": masks.Affine,
    "affine-simple": lambda: masks.Affine.simple(surrogate="sigmoid"),
    "affine-channels": lambda: masks.Affine(channel_wise=True),
    "ksm": masks.KSM,
    "ksm-element-hard": lambda: masks.KSM(granularity="element", soft=False),
    "ksm-through-scale": lambda: masks.KSM(normal="minmax", start="uniform", through_scale=True),
    "supsup": lambda: masks.SupSup(density=0.3),
    "supsup-global": lambda: masks.SupSup(density=0.3, allocation="global"),
    "supsup-erdos-renyi": lambda: masks.SupSup(density=0.3, allocation="erdos_renyi"),
    "sparse-signs": masks.SparseSigns,
    "sparse-signs-share": lambda: masks.SparseSigns(share=0.3, scale_per="layer", penalty_weight=0.1),
    "dense-signs": masks.DenseSigns,
    "dense-signs-layer": lambda: masks.DenseSigns(scale_per="layer"),
    # A weight of every network.
    "mixed": lambda: masks.Mixed(method=masks.Piggyback(init=6e-3), trainable_copies=["*[0jxr].weight"]),
    "lora": lambda: masks.LoRA(rank=2, alpha=2),
    "dora": lambda: masks.DoRA(rank=2, alpha=2),
    "lokr": lambda: masks.LoKr(rank=1, alpha=1),
    "ia3": masks.IA3,
    "dan": masks.DAN,
    "residual-adapter": masks.ResidualAdapter,
    "residual-adapter-series": lambda: masks.ResidualAdapter(form="series"),
    "impresslearn": lambda: masks.ImpressLearn(basis="random"),
    "impresslearn-hybrid": lambda: masks.ImpressLearn(basis="random", penalty_weight=0.005, hybrid=True, hybrid_density=0.3),
}


def layer(weight: Tensor, **what: Any) -> masks.Layer:
    """The description of a layer of that weight."""
    return masks.Layer(weight.detach(), **what)


def network(backbone: nn.Module) -> masks.MaskedNetwork:
    """A network without a head, with the basis that some methods need."""
    net = masks.MaskedNetwork(backbone)
    net.add_basis("random", masks.Basis.random(net.layers(), count=3, density=0.4, seed=0))
    return net


class WithHead(nn.Module):
    """Two convolutions, batch normalisation and a head: what most tests need."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def head(out: int = 2) -> nn.Module:
    return nn.Conv2d(8, out, 1)


def train(net: masks.MaskedNetwork, task: str, x: Tensor, steps: int = 4) -> None:
    """A few steps that move everything trainable."""
    net.train()
    parameters = [p for p in net.state(task).parameters() if p.requires_grad]
    if not parameters:
        return
    optimiser = torch.optim.Adam(parameters, 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        out = net(x, task=task)
        (out.float() - 1).square().mean().backward()
        optimiser.step()


@torch.no_grad()
def evaluate(net: masks.MaskedNetwork, task: str, x: Tensor) -> Tensor:
    net.eval()
    return net(x, task=task).clone()
