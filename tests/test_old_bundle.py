"""A bundle that was written before the code was rebuilt still loads, with the same weights, outputs and files."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import img2img

FOLDER = Path(__file__).parent / "old_bundle"
with zipfile.ZipFile(FOLDER / "bundle.zip") as archive:
    TASKS = sorted(Path(name).stem for name in archive.namelist() if name.startswith("tasks/"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's folder, unpacked."""
    folder = tmp_path_factory.mktemp("old_bundle")
    with zipfile.ZipFile(FOLDER / "bundle.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def network(bundle: Path) -> img2img.MaskedNetwork:
    loaded: img2img.MaskedNetwork = img2img.load(str(bundle), device="cpu").network
    return loaded


@pytest.fixture(scope="module")
def expected() -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the file of expected values."""
    with safe_open(FOLDER / "expected.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (it is no mapping)


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    # Not the package's own function: it is part of what is tested.
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_all_tasks_are_there(network: img2img.MaskedNetwork) -> None:
    assert len(TASKS) == 16
    assert sorted(network.tasks()) == TASKS
    assert {network.state(task).norm_mode for task in TASKS} == {"own", "statistics", "frozen"}


@pytest.mark.parametrize("task", TASKS)
def test_the_weights_are_the_same_bit_for_bit(
    network: img2img.MaskedNetwork, expected: tuple[dict[str, Tensor], dict[str, str]], task: str
) -> None:
    assert _sha256(network.merge(task).state_dict()) == expected[1][task]


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_the_outputs_are_the_same(
    network: img2img.MaskedNetwork, expected: tuple[dict[str, Tensor], dict[str, str]], task: str
) -> None:
    tensors, _ = expected
    x, output = tensors["input"], tensors[f"output/{task}"]
    found = network(x, task=task)
    assert output.std() > 1e-3
    # Another kind of CPU may round convolutions differently. Where the bare backbone's features are equal, it does not.
    if torch.equal(network.copy_backbone().eval()(x), tensors["features"]):
        assert torch.equal(found, output)
    torch.testing.assert_close(found, output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_saved_again_gives_the_same_bytes(network: img2img.MaskedNetwork, bundle: Path, tmp_path: Path, task: str) -> None:
    relative_to = "piggyback" if task == "relative" else None
    path = network.save_task(task, tmp_path / "task.safetensors", relative_to=relative_to)
    assert path.read_bytes() == (bundle / "tasks" / f"{task}.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["random", "tasks"])
def test_a_basis_saved_again_gives_the_same_bytes(
    network: img2img.MaskedNetwork, bundle: Path, tmp_path: Path, name: str
) -> None:
    basis = network.bases()[name]
    path = basis.save(tmp_path / "basis.safetensors")
    assert path.read_bytes() == (bundle / "bases" / f"{basis.sha256}.safetensors").read_bytes()
