"""Adapters as PEFT and LyCORIS write and merge them, recorded in one archive, so that tests need neither library.

    python tests/helpers/adapter_references.py

makes the archive again, in an environment that has `peft` and `lycoris-lora` (made with PEFT 0.21.0, LyCORIS 4.1.3 and torch
2.14.1). In the archive:

    backbone.safetensors     the weights of `Backbone`; an "input" and the backbone's "output" of it
    peft_NAME/               adapter_model.safetensors and adapter_config.json, as `save_pretrained` writes them
    lycoris_NAME/            lycoris.safetensors, as `save_weights` writes it
    .../expected.safetensors the "output" with the adapter, and the merged tensors that it changed, by name
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

ARCHIVE = Path(__file__).parent / "adapter_references.zip"


class Backbone(nn.Module):
    """One layer of each kind that PEFT or LyCORIS adapts. Input: (N, 3, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, 0, 0] * 100).long() % 5
        features = self.grouped(torch.relu(self.conv(x))).mean((2, 3))
        return self.linear(features + self.embedding(tokens).mean(1))


def read(name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file of the archive."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return load(archive.read(name))


def read_config(name: str) -> dict[str, Any]:
    """A PEFT adapter's configuration."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return json.loads(archive.read(f"{name}/adapter_config.json"))


def backbone() -> tuple[nn.Module, Tensor, Tensor]:
    """The backbone in evaluation mode, an input and its output of it."""
    tensors = read("backbone.safetensors")
    x, y = tensors.pop("input"), tensors.pop("output")
    module = Backbone().eval()
    module.load_state_dict(tensors)
    return module, x, y


# ---------------------------------------------------------------------- making the archive


def _fill(named: Mapping[str, nn.Parameter]) -> None:
    """Values with a spread of 0.3 in place of the start, at which adapters change nothing; factors and norms stay near theirs."""
    for name, parameter in named.items():
        noise = torch.randn(parameter.shape) * 0.3
        near = any(part in name for part in ("ia3", "magnitude", "dora_scale"))
        parameter.data.copy_(parameter.data + noise if near else noise)


def _peft(folder: Path, name: str, config: Any, base: nn.Module, x: Tensor) -> None:
    from peft import get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(base, config).eval()
    _fill({n: p for n, p in model.named_parameters() if p.requires_grad})
    with torch.no_grad():
        output = model(x)
    model.save_pretrained(folder / name)
    (folder / name / "README.md").unlink(missing_ok=True)
    merged = {}
    if name != "peft_lora_grouped":  # PEFT cannot merge it: its A mixes the groups
        plain = model.merge_and_unload()
        merged = {n: p.detach() for n, p in plain.named_parameters()}
    _expect(folder / name, output, merged)


def _lycoris(folder: Path, name: str, base: nn.Module, x: Tensor, **options: Any) -> None:
    from lycoris import LycorisNetwork, create_lycoris

    torch.manual_seed(1)
    LycorisNetwork.apply_preset({"target_name": ["conv", "grouped", "linear"]})
    adapter = create_lycoris(base, 1.0, **options)
    assert len(adapter.loras) == 3, [lora.lora_name for lora in adapter.loras]
    adapter.apply_to()  # only then are its layers its modules
    _fill(dict(adapter.named_parameters()))
    adapter.eval()
    (folder / name).mkdir()
    adapter.save_weights(folder / name / "lycoris.safetensors", torch.float32, {})
    with torch.no_grad():
        output = base(x)
    adapter.restore()
    adapter.merge_to(1.0)
    merged = {n: p.detach().clone() for n, p in base.named_parameters()}
    _expect(folder / name, output, merged)


def _expect(folder: Path, output: Tensor, merged: Mapping[str, Tensor]) -> None:
    before = load_file(folder.parent / "backbone.safetensors")
    changed = {n: t.contiguous() for n, t in merged.items() if not torch.equal(t, before[n])}
    save_file({"output": output, **changed}, folder / "expected.safetensors")


def make(folder: Path) -> None:
    """Write all files into `folder` and pack them."""
    from peft import IA3Config, LoKrConfig, LoraConfig

    torch.manual_seed(0)
    first = Backbone().eval()
    x = torch.rand(2, 3, 6, 6)
    with torch.no_grad():
        save_file({**first.state_dict(), "input": x, "output": first(x)}, folder / "backbone.safetensors")

    plain, every = ["conv", "linear"], ["conv", "grouped", "linear"]
    ranks = {"r": 2, "lora_alpha": 3}
    configs = {
        "peft_lora": LoraConfig(target_modules=[*plain, "embedding"], **ranks),
        "peft_lora_grouped": LoraConfig(target_modules=["grouped"], **ranks),
        "peft_dora": LoraConfig(target_modules=[*plain, "embedding"], use_dora=True, **ranks),
        "peft_lokr": LoKrConfig(target_modules=every, r=1, alpha=3),
        "peft_ia3": IA3Config(target_modules=every, feedforward_modules=[]),
    }
    for name, config in configs.items():
        _peft(folder, name, config, _copy(first), x)
    _lycoris(folder, "lycoris_lora", _copy(first), x, linear_dim=2, linear_alpha=3, algo="lora")
    _lycoris(folder, "lycoris_dora", _copy(first), x, linear_dim=2, linear_alpha=3, algo="lora", dora_wd=True)
    _lycoris(folder, "lycoris_lokr", _copy(first), x, linear_dim=1, linear_alpha=3, algo="lokr")
    _lycoris(folder, "lycoris_ia3", _copy(first), x, algo="ia3")
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())


def _copy(module: nn.Module) -> nn.Module:
    twin = Backbone().eval()
    twin.load_state_dict(module.state_dict())
    return twin


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
    with zipfile.ZipFile(ARCHIVE) as written:
        print(*(f"{info.file_size:6} {info.filename}" for info in written.infolist()), sep="\n")
