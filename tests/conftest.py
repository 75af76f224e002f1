"""What every test shares."""

import os

import pytest
import torch

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


# The networks of the tests are tiny: threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
