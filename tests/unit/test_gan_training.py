"""The pieces around one training step: losses, R1, averaging, schedule."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from gan.ema import update_ema
from gan.layers import downsample, upsample
from gan.networks import Discriminator, Generator, ProgressiveFeatures
from gan.objective import discriminator_loss, generator_loss, r1_penalty
from gan.schedule import Phase, phase_at, phases
from gan.step import Execution, NonFiniteError, Objective, StepInput, training_step


def test_losses_are_the_logs_of_the_value_function() -> None:
    real, fake, abnormal = (torch.randn(5, dtype=torch.float64) for _ in range(3))
    d = torch.sigmoid
    value = (
        d(real).log().mean()
        + 0.7 * (1 - d(fake)).log().mean()
        + 0.3 * (1 - d(abnormal)).log().mean()
    )
    loss = discriminator_loss(real, fake, abnormal, gamma=0.7, alpha=0.3)
    torch.testing.assert_close(loss, -value)
    torch.testing.assert_close(generator_loss(fake), -d(fake).log().mean())
    plain = discriminator_loss(real, fake, None, gamma=1.0, alpha=0.0)
    torch.testing.assert_close(plain, -(d(real).log().mean() + (1 - d(fake)).log().mean()))


def test_losses_stay_finite_at_extreme_logits() -> None:
    far = torch.tensor([-200.0, 200.0])
    loss = discriminator_loss(far, far, far, gamma=1.0, alpha=1.0) + generator_loss(far)
    assert loss.isfinite()


def test_r1_is_the_mean_squared_gradient() -> None:
    weight = torch.randn(3, 2, 2)
    image = torch.randn(4, 3, 2, 2, requires_grad=True)
    logit = (image * weight).sum(dim=(1, 2, 3)) * torch.arange(1.0, 5.0)
    expected = weight.square().sum() * torch.arange(1.0, 5.0).square().mean()
    torch.testing.assert_close(r1_penalty(logit, image), expected)


def _networks() -> tuple[Generator, Discriminator]:
    sizes = {"resolution": 8, "channels": 1, "fmap_base": 8, "fmap_max": 4}
    generator = Generator(latent_dim=4, **sizes)
    return generator, Discriminator(ProgressiveFeatures(**sizes), group_size=2)


def _inputs(index: int, abnormal: Tensor | None = None) -> StepInput:
    real = torch.rand(4, 1, 8, 8)
    latent = torch.randn(4, 4)
    return StepInput(real=real, abnormal=abnormal, latent=latent, stage=1, fade=0.5, index=index)


def _sgd(network: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=lr)


def test_r1_is_lazy_and_scaled_by_its_interval() -> None:
    generator, discriminator = _networks()
    generator.requires_grad_(False).to_image[0].requires_grad_(True)
    inputs = [_inputs(index) for index in range(5)]
    objective = Objective(gamma=1.0, alpha=0.0, r1_weight=2.0, r1_interval=4)
    due = []
    for inp in inputs:
        optimizers = _sgd(generator), _sgd(discriminator)
        due.append("r1" in training_step(generator, discriminator, *optimizers, inp, objective))
    assert due == [True, False, False, False, True]


def _discriminator_gradient(r1_weight: float, r1_interval: int) -> Tensor:
    torch.manual_seed(1)
    generator, discriminator = _networks()
    inputs = _inputs(0)
    objective = Objective(gamma=1.0, alpha=0.0, r1_weight=r1_weight, r1_interval=r1_interval)
    optimizers = _sgd(generator), _sgd(discriminator, lr=0.0)
    training_step(generator, discriminator, *optimizers, inputs, objective)
    gradient = discriminator.features.blocks[0].first.weight.grad
    assert gradient is not None
    return gradient


def test_r1_share_of_the_gradient_grows_with_weight_and_interval() -> None:
    without = _discriminator_gradient(0.0, 1)
    once = _discriminator_gradient(2.0, 1) - without
    assert once.abs().max() > 1e-3
    torch.testing.assert_close(_discriminator_gradient(2.0, 4) - without, 4 * once)
    torch.testing.assert_close(_discriminator_gradient(6.0, 1) - without, 3 * once)


def test_a_step_pushes_logits_the_right_way() -> None:
    torch.manual_seed(2)
    generator, discriminator = _networks()
    inputs = _inputs(1, abnormal=torch.rand(4, 1, 8, 8) - 1)
    objective = Objective(gamma=0.7, alpha=0.3, r1_weight=0.0, r1_interval=1)
    generator.requires_grad_(False).to_image[1].requires_grad_(True)
    optimizers = _sgd(generator, lr=0.0), _sgd(discriminator, lr=0.3)
    losses = []
    for _ in range(60):
        stats = training_step(generator, discriminator, *optimizers, inputs, objective)
        losses.append(float(stats["loss_d"]))
    assert losses[-1] < losses[0]
    assert stats["logit_real"] > stats["logit_fake"]
    assert stats["logit_real"] > stats["logit_abnormal"]


def test_the_generator_step_leaves_the_discriminator_alone() -> None:
    generator, discriminator = _networks()
    for network in (generator, discriminator):
        network.activate(1, fading=True)
    objective = Objective(gamma=1.0, alpha=0.0, r1_weight=1.0, r1_interval=1)
    before = copy.deepcopy(discriminator.state_dict())
    optimizers = _sgd(generator, lr=1.0), _sgd(discriminator, lr=0.0)
    gradients: list[Tensor] = []
    optimizers[1].register_step_post_hook(
        lambda *_: gradients.extend(p.grad.clone() for p in discriminator.parameters())
    )
    start = copy.deepcopy(generator.state_dict())
    training_step(generator, discriminator, *optimizers, _inputs(0), objective)
    for name, tensor in discriminator.state_dict().items():
        assert torch.equal(tensor, before[name])
    for parameter, gradient in zip(discriminator.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradient)
    assert any(not torch.equal(t, start[name]) for name, t in generator.state_dict().items())


def test_the_generator_meets_the_updated_discriminator() -> None:
    torch.manual_seed(3)
    generator, discriminator = _networks()
    inputs = _inputs(0)
    objective = Objective(gamma=1.0, alpha=0.0, r1_weight=0.0, r1_interval=1)
    optimizers = _sgd(generator, lr=0.0), _sgd(discriminator, lr=0.5)
    stats = training_step(generator, discriminator, *optimizers, inputs, objective)
    with torch.no_grad():
        fake = generator(inputs.latent, 1, 0.5)
        expected = generator_loss(discriminator(fake, 1, 0.5))
    torch.testing.assert_close(stats["loss_g"], expected)


def _stepped(execution: Execution) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Statistics and all parameters after one step with R1 and abnormal images."""
    torch.manual_seed(4)
    generator, discriminator = _networks()
    for network in (generator, discriminator):
        network.activate(1, fading=True)
    inputs = _inputs(0, abnormal=torch.rand(8, 1, 8, 8) - 1)
    objective = Objective(gamma=0.7, alpha=0.3, r1_weight=2.0, r1_interval=4)
    optimizers = _sgd(generator), _sgd(discriminator)
    stats = training_step(
        generator, discriminator, *optimizers, inputs, objective, execution=execution
    )
    return stats, [*generator.parameters(), *discriminator.parameters()]


def test_a_batch_in_parts_gives_the_same_step() -> None:
    whole, parts = _stepped(Execution()), _stepped(Execution(num_parts=2))
    assert whole[0].keys() == parts[0].keys()
    for name, value in whole[0].items():
        torch.testing.assert_close(parts[0][name], value, msg=name, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-6)


def test_lower_precision_stays_near_and_leaves_r1_whole() -> None:
    whole, lower = _stepped(Execution()), _stepped(Execution(dtype=torch.bfloat16))
    assert all(parameter.dtype == torch.float32 for parameter in lower[1])
    # The convolutions of G did lose digits, those of D in a step with R1 did not.
    assert not torch.equal(lower[0]["logit_fake"], whole[0]["logit_fake"])
    assert torch.equal(lower[0]["logit_real"], whole[0]["logit_real"])
    assert torch.equal(lower[0]["r1"], whole[0]["r1"])
    for name, value in whole[0].items():
        torch.testing.assert_close(lower[0][name], value, msg=name, rtol=0.1, atol=0.02)


def test_norms_are_those_of_the_whole_gradient() -> None:
    generator, discriminator = _networks()
    optimizers = _sgd(generator, lr=0.0), _sgd(discriminator, lr=0.0)
    objective = Objective(gamma=1.0, alpha=0.0, r1_weight=0.0, r1_interval=1)
    stats = training_step(generator, discriminator, *optimizers, _inputs(0), objective)
    for name, network in (("grad_norm_g", generator), ("grad_norm_d", discriminator)):
        squares = [p.grad.square().sum() for p in network.parameters() if p.grad is not None]
        torch.testing.assert_close(stats[name], torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize(("broken", "told"), [("real", "of D"), ("latent", "of D")])
def test_a_broken_gradient_changes_nothing(broken: str, told: str) -> None:
    generator, discriminator = _networks()
    before = copy.deepcopy([*generator.parameters(), *discriminator.parameters()])
    inputs = _inputs(1)
    getattr(inputs, broken)[0] = math.nan
    objective = Objective(gamma=1.0, alpha=0.0, r1_weight=1.0, r1_interval=2)
    optimizers = _sgd(generator), _sgd(discriminator)
    with pytest.raises(NonFiniteError, match=told):
        training_step(generator, discriminator, *optimizers, inputs, objective)
    after = [*generator.parameters(), *discriminator.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_broken_gradient_of_g_leaves_g_as_it_was() -> None:
    generator, discriminator = _networks()
    before = copy.deepcopy([*generator.parameters()])
    generator.dense.weight.register_hook(lambda gradient: gradient * math.nan)
    objective = Objective(gamma=1.0, alpha=0.0, r1_weight=0.0, r1_interval=1)
    optimizers = _sgd(generator), _sgd(discriminator)
    with pytest.raises(NonFiniteError, match="of G"):
        training_step(generator, discriminator, *optimizers, _inputs(0), objective)
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), before, strict=True))


class _Watched(nn.Module):
    """A discriminator that keeps what it is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.shown: list[Tensor] = []

    def forward(self, image: Tensor, stage: int, fade: float) -> Tensor:
        self.shown.append(image.detach())
        return self.network(image, stage, fade)


@pytest.mark.parametrize("r1_weight", [0.0, 1.0])
def test_while_a_stage_fades_in_no_image_has_more_detail_than_those_of_g(r1_weight: float) -> None:
    generator, discriminator = _networks()
    watched = _Watched(discriminator)
    inputs = _inputs(0, abnormal=torch.rand(4, 1, 8, 8))
    objective = Objective(gamma=0.7, alpha=0.3, r1_weight=r1_weight, r1_interval=1)
    training_step(generator, watched, _sgd(generator), _sgd(discriminator), inputs, objective)
    # D's update comes first; G's shows generated images alone.
    real, _, abnormal = torch.cat(watched.shown)[:12].split(4)
    for found, whole in ((real, inputs.real), (abnormal, inputs.abnormal)):
        coarse = upsample(downsample(whole))
        torch.testing.assert_close(found, coarse + 0.5 * (whole - coarse))


def test_the_sign_of_a_balanced_discriminator_is_zero_for_any_gamma() -> None:
    # Where p_g equals p_d the best logit is -log(gamma): D knows nothing by heart.
    generator, discriminator = _networks()
    for parameter in discriminator.logit.parameters():
        nn.init.zeros_(parameter)
    objective = Objective(gamma=0.5, alpha=0.0, r1_weight=0.0, r1_interval=1)
    for logit, sign in ((0.6, -1), (0.8, 1)):
        nn.init.constant_(discriminator.logit.bias, logit)
        optimizers = _sgd(generator), _sgd(discriminator, lr=0.0)
        stats = training_step(generator, discriminator, *optimizers, _inputs(0), objective)
        assert stats["sign_real"] == sign


@pytest.mark.parametrize("num_steps", [1, 4])
def test_ema_halves_the_distance_over_its_half_life(num_steps: int) -> None:
    average, current = nn.Linear(3, 2), nn.Linear(3, 2)
    start = copy.deepcopy(average)
    for _ in range(num_steps):
        update_ema(average, current, images=2000 // num_steps, half_life_kimg=2.0)
    expected = (start.weight + current.weight) / 2
    torch.testing.assert_close(average.weight, expected)
    assert not torch.equal(start.weight, average.weight)


def test_ema_decay_is_a_power_of_one_half() -> None:
    average, current = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.ones_(average.weight)
    nn.init.zeros_(current.weight)
    update_ema(average, current, images=32, half_life_kimg=10.0)
    assert float(average.weight.detach()) == pytest.approx(math.exp(-32 / 10_000 * math.log(2)))


SCHEDULE = phases([(2.0, 1.0), (2.0, 1.0), (2.0, 5.0)])


def test_schedule_has_no_gaps_and_names_every_stage() -> None:
    assert SCHEDULE[0].start == 0
    for before, after in pairwise(SCHEDULE):
        assert before.end == after.start
    assert [(p.stage, p.fading) for p in SCHEDULE] == [
        (0, False), (1, True), (1, False), (2, True), (2, False),
    ]  # fmt: skip
    assert [p.end - p.start for p in SCHEDULE] == [1000, 2000, 1000, 2000, 5000]
    assert [p.resolution for p in SCHEDULE] == [4, 8, 8, 16, 16]


def test_phase_at_every_image_is_the_one_that_holds_it() -> None:
    for images_seen in range(0, SCHEDULE[-1].end, 125):
        phase = phase_at(SCHEDULE, images_seen)
        assert phase is not None
        assert phase.start <= images_seen < phase.end
    assert phase_at(SCHEDULE, SCHEDULE[-1].end) is None


def test_fade_runs_from_zero_to_one() -> None:
    fading = SCHEDULE[1]
    assert fading.fade(fading.start) == 0.0
    assert fading.fade(fading.start + 500) == 0.25
    # At exactly 1 the blended-out layers would have no gradient, which data-parallel runs refuse.
    assert 0.999 < fading.fade(fading.end - 1) < 1.0
    assert SCHEDULE[2].fade(SCHEDULE[2].start) == 1.0


@pytest.mark.parametrize(("fade_kimg", "steady_kimg"), [(0.0, 1.0), (1.0, 0.0)])
def test_phases_of_no_length_are_left_out(fade_kimg: float, steady_kimg: float) -> None:
    schedule = phases([(fade_kimg, steady_kimg), (fade_kimg, 1.0)])
    assert all(phase.end > phase.start for phase in schedule)
    assert schedule[-1] == Phase(1, False, schedule[-1].end - 1000, schedule[-1].end)
