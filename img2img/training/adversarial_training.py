"""The other side of an adversarial training: the discriminator, its optimiser, and what both say to the training loop."""

from typing import Any

import torch
from torch import Tensor

from img2img.tasks.adversary import Adversary
from img2img.tasks.base import Example
from img2img.training.config import TrainOptions
from img2img.training.distributed import Fabric, Processes
from img2img.training.log import Callback, TrainingLog
from img2img.training.optimiser import schedule


class AdversarialTraining(Callback):
    """Trains a discriminator beside a task's network, a step each, and gives the term that it adds to the task's loss.

    As a callback it puts the discriminator and its optimiser into the checkpoint, and nowhere else is either stored. Several
    processes have the same one: each trains it on its part of the batch, and the gradients are added up.

    Adam as in pix2pix, with β1 = 0.5. Its rate follows the task's schedule: one that went on at full rate while the network's
    falls to zero would win at the end.

    Args:
        adversary: fresh.
        options: of the training, for its schedule.
        fabric: device and precision.
        processes: those that train together.
    """

    def __init__(self, adversary: Adversary, options: TrainOptions, fabric: Fabric, processes: Processes) -> None:
        self._adversary = adversary.to(fabric.device)
        self._options, self._fabric, self._processes = options, fabric, processes
        processes.broadcast(adversary)
        self._optimiser = torch.optim.Adam(adversary.parameters(), adversary.lr, betas=(0.5, 0.999), fused=True)
        self._stepper: Any = fabric.setup_optimizers(self._optimiser)
        self._loss = torch.zeros(())

    def step(self, raw: Tensor, example: Example, step: int) -> Tensor:
        """Train the discriminator on a batch, then judge the network's images by it.

        Args:
            raw: the network's raw output.
            example: the batch.
            step: the number of the step, from 0.

        Returns:
            What is added to the task's loss, a scalar, a mean over the images of this process.
        """
        adversary = self._adversary
        adversary.requires_grad_(True)
        # Two contexts: autocast keeps the weights that it has cast until it ends, and the step changes them.
        with self._fabric.autocast():
            loss = adversary.discriminator_loss(raw, example)
        for group in self._optimiser.param_groups:
            group["lr"] = adversary.lr * schedule(step, self._options)
        self._stepper.zero_grad()
        self._fabric.backward(loss / self._processes.world_size)
        self._processes.add_gradients(adversary.parameters())
        self._stepper.step()
        self._loss = loss.detach()
        adversary.requires_grad_(False)  # only the network learns from what follows
        with self._fabric.autocast():
            return adversary.generator_loss(raw, example)

    def after_validation(self, step: int, log: TrainingLog) -> None:
        """The discriminator's loss on the last batch: 0.25 with LSGAN, 0.69 with vanilla, where it can tell nothing."""
        log.add_scalar("adversary/discriminator loss", float(self._loss), step)

    def state(self) -> dict[str, Any]:
        """The discriminator and its optimiser."""
        return {"adversary": self._adversary.state_dict(), "optimiser": self._optimiser.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._adversary.load_state_dict(state["adversary"])
        self._optimiser.load_state_dict(state["optimiser"])
