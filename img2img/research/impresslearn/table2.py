"""What tasks take on disk, counted as ImpressLearn's table 2 counts it."""

from dataclasses import dataclass

KIB = 1024
DENSITY = 0.125
"""Of the masks whose ones the paper lists, with 16 bits for each: "Mask Size is the space on disk ... as 16-bit integers"."""
INDEX_BITS = 16
ALPHA_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table, as printed.

    Attributes:
        data: the dataset.
        tasks: how many tasks it can have at most; None for 784!, over which any basis costs nothing.
        network: the architecture.
        parameters: its weights, without biases.
        masks: the size of the basis, `|M|`, as the row counts it.
        layers: layers with coefficients.
        printed: the columns Mask (kB), Φ (kB) and C (x) of the paper.
    """

    data: str
    tasks: int | None
    network: str
    parameters: float
    masks: int
    layers: int
    printed: tuple[float, float, float]

    @property
    def mask(self) -> float:
        """KiB of one mask: the indices of 12.5 % of the weights. Indices of 16 bits tell no more than 65,536 weights apart,
        so a layer of more would need larger ones, or gaps in their place; the paper does not say.
        """
        return self.parameters * DENSITY * INDEX_BITS / 8 / KIB

    @property
    def alphas(self) -> int:
        """Coefficients of a task, `|α|`."""
        return self.masks * self.layers

    @property
    def task(self) -> float:
        """Φ, KiB of a task: its coefficients, and its share of the basis."""
        shared = 0.0 if self.tasks is None else self.masks * self.mask / self.tasks
        return shared + self.alphas * ALPHA_BYTES / KIB

    @property
    def savings(self) -> float:
        """C, how many times as much a task of SupSup takes."""
        return self.mask / self.task


_CIFAR, _IMAGENET = ("Split CIFAR-100", 20), ("ImageNet", 2100)

TABLE_2 = tuple(
    Row(data=data, tasks=tasks, network=network, parameters=parameters, masks=masks, layers=layers, printed=printed)
    for (data, tasks), network, parameters, masks, layers, printed in (
        (("Permuted MNIST", None), "LeNet 300-100", 266e3, 100, 3, (64.9, 1.17, 55.5)),
        (("Rotated MNIST", 359), "LeNet 300-100", 266e3, 5, 3, (64.9, 0.96, 67.4)),
        (_CIFAR, "ResNet-18", 6.2e6, 10, 21, (1513, 757.6, 1.99)),
        (_CIFAR, "Wide ResNet-18", 11.7e6, 10, 21, (2856, 1429, 1.99)),
        (_CIFAR, "Wide ResNet-34", 21.8e6, 10, 37, (5322, 2662, 1.99)),
        (_IMAGENET, "ResNet-50", 25.6e6, 75, 53, (6250, 238.7, 26.2)),
        (_IMAGENET, "ResNet-101", 44.5e6, 75, 104, (10864, 418.47, 25.9)),
        (_IMAGENET, "ResNet-152", 60.2e6, 75, 155, (14697, 570.31, 25.7)),
        # The paper lists 100 masks here, but its other columns count 75.
        (_IMAGENET, "pre-ResNet-200", 64.7e6, 75, 203, (15795, 623.6, 25.3)),
        (_IMAGENET, "VGG 16", 137.9e6, 75, 16, (33667, 1207, 27.89)),
        (_IMAGENET, "WRN-50-2-bottleneck", 68.9e6, 75, 53, (16821, 616.28, 27.2)),
    )
)
"""Table 2 of ImpressLearn. Parameters are as rounded there: of LeNet-300-100 it is 266,200."""
