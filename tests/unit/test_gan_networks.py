"""Layers and progressive networks at every resolution."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from gan.layers import (
    LEAKY_SLOPE,
    EqualizedConv2d,
    EqualizedLinear,
    EqualizedUpConv2d,
    downsample,
    leaky_relu,
    minibatch_std,
    pixel_norm,
    upsample,
)
from gan.networks import (
    Discriminator,
    Generator,
    ProgressiveFeatures,
    num_channels,
    num_parameters,
    num_stages,
    stage_resolution,
)

LATENT_DIM = 8
# At 1024 pixels a stage below leaves few enough channels for a fraction of a second per pass.
FMAPS = {"fmap_base": 64, "fmap_max": 8}


def build(
    resolution: int, channels: int = 1, group_size: int = 2
) -> tuple[Generator, Discriminator]:
    generator = Generator(resolution=resolution, channels=channels, latent_dim=LATENT_DIM, **FMAPS)
    features = ProgressiveFeatures(resolution=resolution, channels=channels, **FMAPS)
    return generator, Discriminator(features, group_size=group_size)


def trainable(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


def with_gradient(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stage", range(9))
def test_forward_and_backward_at_every_resolution(stage: int, channels: int) -> None:
    resolution = 4 * 2**stage
    generator, discriminator = build(resolution, channels)
    image = generator(torch.randn(2, LATENT_DIM), stage, 0.5 if stage else 1.0)
    assert image.shape == (2, channels, resolution, resolution)
    logit = discriminator(image, stage, 0.5 if stage else 1.0)
    assert logit.shape == (2,)
    logit.square().sum().backward()
    for network in (generator, discriminator):
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in gradients)
    used = {"dense", "first", f"to_image.{stage}", *(f"blocks.{level}" for level in range(stage))}
    moved = {n for n, p in generator.named_parameters() if p.grad is not None and p.grad.any()}
    for prefix in used:
        assert any(name.startswith(f"{prefix}.") for name in moved), f"{prefix} learns nothing"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stage", [1, 2, 4])
def test_fade_zero_equals_the_stage_below(stage: int, channels: int) -> None:
    generator, discriminator = build(64, channels)
    latent = torch.randn(4, LATENT_DIM)
    below = upsample(generator(latent, stage - 1))
    torch.testing.assert_close(generator(latent, stage, 0.0), below, rtol=0, atol=0)
    image = torch.rand(4, channels, 4 * 2**stage, 4 * 2**stage) * 2 - 1
    torch.testing.assert_close(
        discriminator(image, stage, 0.0),
        discriminator(downsample(image), stage - 1),
        rtol=0,
        atol=1e-6,
    )


def test_enlarging_inside_the_convolution_is_the_same() -> None:
    layer = EqualizedUpConv2d(5, 3, 3).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    expected = EqualizedConv2d.forward(layer, upsample(x))
    torch.testing.assert_close(layer(x), expected)


def test_fade_blends_linearly_and_ends_at_the_new_stage() -> None:
    generator, discriminator = build(16)
    latent, image = torch.randn(4, LATENT_DIM), torch.rand(4, 1, 16, 16) * 2 - 1
    old, new = upsample(generator(latent, 1)), generator(latent, 2)
    torch.testing.assert_close(generator(latent, 2, 0.25), 0.75 * old + 0.25 * new)
    assert (old - new).abs().max() > 0.1
    almost = 1.0 - 1e-6
    torch.testing.assert_close(
        discriminator(image, 2, almost), discriminator(image, 2), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("stage", "fading"), [(0, False), (1, True), (1, False), (3, True), (3, False)]
)
def test_activate_leaves_no_parameter_unused(stage: int, fading: bool) -> None:
    generator, discriminator = build(64)
    generator.activate(stage, fading=fading)
    discriminator.activate(stage, fading=fading)
    fade = 0.5 if fading else 1.0
    discriminator(generator(torch.randn(2, LATENT_DIM), stage, fade), stage, fade).sum().backward()
    for network in (generator, discriminator):
        assert with_gradient(network) == trainable(network)
        assert trainable(network) < {name for name, _ in network.named_parameters()}


def test_activate_moves_on_to_the_next_stage() -> None:
    generator, discriminator = build(16)
    for network in (generator, discriminator):
        network.activate(1, fading=False)
        early = trainable(network)
        network.activate(2, fading=True)
        assert early < trainable(network)


@pytest.mark.parametrize("stage", [0, 1, 4])
def test_features_come_from_fine_to_coarse(stage: int) -> None:
    _, discriminator = build(64)
    resolution = stage_resolution(stage)
    maps = discriminator.features(torch.rand(2, 1, resolution, resolution), stage)
    expected = [resolution >> k for k in range(1, stage + 1)] or [4]
    assert [m.shape[-1] for m in maps] == expected
    assert maps[-1].shape == (2, discriminator.features.out_channels, 4, 4)


def test_an_image_has_the_same_features_in_any_company() -> None:
    _, discriminator = build(16)
    images = torch.rand(4, 1, 16, 16)
    alone = discriminator.features(images[:1], 2)
    together = discriminator.features(images, 2)
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(one[0], many[0], rtol=0, atol=1e-6)


def test_latent_length_does_not_matter() -> None:
    generator, _ = build(8)
    latent = torch.randn(4, LATENT_DIM)
    torch.testing.assert_close(generator(latent, 1), generator(7.0 * latent, 1))


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2.0)])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (partial(EqualizedConv2d, 24, 256, 3), (16, 24, 16, 16)),
        (partial(EqualizedConv2d, 3, 256, 1), (16, 3, 16, 16)),
        (partial(EqualizedLinear, 200, 256), (512, 200)),
    ],
    ids=["conv3", "conv1", "linear"],
)
def test_equalized_layers_keep_the_variance_at_their_gain(
    layer: Callable[..., nn.Module], shape: tuple[int, ...], gain: float
) -> None:
    module = layer(gain=gain)
    out = module(torch.randn(shape))
    if out.dim() == 4:
        out = out[:, :, 1:-1, 1:-1]  # Zero padding takes variance away at the rim.
    assert float(out.detach().var()) == pytest.approx(gain**2, rel=0.1)
    assert float(module.weight.detach().std()) == pytest.approx(1.0, rel=0.1)


def test_default_gain_keeps_unit_scale_through_a_leaky_relu() -> None:
    x = leaky_relu(EqualizedLinear(400, 400)(torch.randn(1000, 400)))
    assert float(x.detach().square().mean()) == pytest.approx(1 + LEAKY_SLOPE**2, rel=0.05)


def test_pixel_norm_gives_unit_root_mean_square_over_channels() -> None:
    x = pixel_norm(5.0 * torch.randn(2, 6, 3, 3))
    torch.testing.assert_close(x.square().mean(dim=1), torch.ones(2, 3, 3))
    assert pixel_norm(torch.zeros(1, 4)).isfinite().all()


def test_resampling_keeps_means_and_is_undone() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert upsample(x).shape == (2, 3, 8, 8)
    torch.testing.assert_close(downsample(upsample(x)), x)


def _plain_minibatch_std(x: Tensor, group_size: int) -> list[float]:
    values = []
    for start in range(0, len(x), group_size):
        group = x[start : start + group_size].numpy().astype("float64")
        values += [float(group.std(axis=0).mean())] * group_size
    return values


@pytest.mark.parametrize("group_size", [2, 3, 6])
def test_minibatch_std_is_the_mean_deviation_of_each_group(group_size: int) -> None:
    x = torch.randn(6, 3, 4, 4) * torch.arange(1, 7).view(6, 1, 1, 1)
    out = minibatch_std(x, group_size)
    assert out.shape == (6, 4, 4, 4)
    torch.testing.assert_close(out[:, :3], x, rtol=0, atol=0)
    expected = torch.tensor(_plain_minibatch_std(x, group_size)).view(6, 1, 1).expand(6, 4, 4)
    torch.testing.assert_close(out[:, 3], expected, rtol=1e-5, atol=1e-6)


def test_minibatch_std_groups_do_not_touch() -> None:
    x = torch.randn(8, 2, 4, 4)
    changed = x.clone()
    changed[4:] *= 10
    torch.testing.assert_close(
        minibatch_std(x, 4)[:4], minibatch_std(changed, 4)[:4], rtol=0, atol=0
    )


@pytest.mark.parametrize("group_size", [1, 4])
def test_minibatch_std_is_finite_at_zero_variance(group_size: int) -> None:
    x = torch.ones(4, 2, 4, 4, requires_grad=True)
    out = minibatch_std(x, group_size)
    assert float(out[:, 2].detach().abs().max()) < 1e-3
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert gradient.isfinite().all()
    # R1 differentiates this gradient once more.
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.isfinite().all()


def test_minibatch_std_refuses_a_broken_group() -> None:
    with pytest.raises(ValueError, match=r"6 images .* groups of 4"):
        minibatch_std(torch.zeros(6, 2, 4, 4), 4)


@pytest.mark.parametrize("resolution", [0, 2, 6, 24, 2048])
def test_num_stages_refuses_other_sizes(resolution: int) -> None:
    with pytest.raises(ValueError, match=f"resolution={resolution} "):
        num_stages(resolution)


def test_stages_and_resolutions_are_inverse() -> None:
    assert [num_stages(stage_resolution(stage)) for stage in range(9)] == list(range(1, 10))
    assert stage_resolution(8) == 1024


def test_channel_schedule_halves_down_to_one() -> None:
    assert [num_channels(s, 512, 128) for s in range(11)] == [
        128, 128, 128, 64, 32, 16, 8, 4, 2, 1, 1,
    ]  # fmt: skip


def test_num_parameters_counts_scalars() -> None:
    assert num_parameters(EqualizedConv2d(2, 5, 3)) == 5 * 2 * 9 + 5
