import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from eridiff.diffusion import timesteps
from eridiff.diffusion.objectives import Ddpm, FlowMatching, alphas_cumprod
from eridiff.diffusion.randomness import generator
from eridiff.diffusion.timesteps import ConstantShift, ResolutionShift

CPU = torch.device("cpu")
STEPS = torch.tensor([0, 1, 250, 500, 998, 999])
TIMES = timesteps.from_step(STEPS)
SDXL_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = FlowMatching(ConstantShift(3.0))


def latents(seed):
    return torch.randn(len(STEPS), 4, 8, 8, generator=generator(seed))


CLEAN, NOISE, PREDICTION = latents(0), latents(1), latents(2)


def ddpm_scheduler(**changes):
    return DDPMScheduler(**SDXL_SCHEDULE, num_train_timesteps=1000, **changes)


class TestDdpm:
    def test_schedule_is_the_samplers_to_the_bit(self):
        assert torch.equal(alphas_cumprod(False, CPU), EulerDiscreteScheduler(**SDXL_SCHEDULE).alphas_cumprod)

    def test_zero_terminal_schedule(self):
        signal = alphas_cumprod(True, CPU)
        reference = ddpm_scheduler(rescale_betas_zero_snr=True).alphas_cumprod
        torch.testing.assert_close(signal, reference, rtol=1e-4, atol=1e-7)
        assert signal[-1] == 0

    def test_noised(self):
        reference = ddpm_scheduler().add_noise(CLEAN, NOISE, STEPS)
        torch.testing.assert_close(Ddpm().noised(CLEAN, NOISE, TIMES), reference, rtol=0, atol=1e-6)

    def test_target_is_the_noise(self):
        assert torch.equal(Ddpm().target(CLEAN, NOISE, TIMES), NOISE)

    @pytest.mark.parametrize("zero_terminal_snr", [False, True])
    def test_target_is_the_velocity(self, zero_terminal_snr):
        objective = Ddpm("v_prediction", zero_terminal_snr=zero_terminal_snr)
        reference = ddpm_scheduler(rescale_betas_zero_snr=zero_terminal_snr).get_velocity(CLEAN, NOISE, STEPS)
        torch.testing.assert_close(objective.target(CLEAN, NOISE, TIMES), reference, rtol=0, atol=1e-5)

    def test_plain_loss_is_each_samples_mean_square(self):
        losses = Ddpm().losses(PREDICTION, CLEAN, NOISE, TIMES)
        reference = [torch.nn.functional.mse_loss(*pair) for pair in zip(PREDICTION, NOISE, strict=True)]
        torch.testing.assert_close(losses.plain, torch.stack(reference))
        assert torch.equal(losses.weighted, losses.plain)

    def test_min_snr_weights_as_diffusers_script_does(self):
        snr = compute_snr(ddpm_scheduler(), STEPS)
        capped = snr.clamp(max=5.0)
        epsilon, velocity = Ddpm(min_snr_gamma=5.0), Ddpm("v_prediction", min_snr_gamma=5.0)
        torch.testing.assert_close(epsilon.weight(TIMES), capped / snr)
        torch.testing.assert_close(velocity.weight(TIMES), capped / (snr + 1))

    def test_debiased_weights(self):
        snr = compute_snr(ddpm_scheduler(), STEPS)
        torch.testing.assert_close(Ddpm(debiased=True).weight(TIMES), snr.rsqrt())
        torch.testing.assert_close(Ddpm("v_prediction", debiased=True).weight(TIMES), 1 / (snr + 1))

    @pytest.mark.parametrize("options", [{"min_snr_gamma": 5.0}, {"debiased": True}])
    def test_weights_stay_finite_without_any_signal(self, options):
        weights = Ddpm("v_prediction", zero_terminal_snr=True, **options).weight(TIMES)
        assert torch.isfinite(weights).all()

    def test_weighted_loss_is_the_weight_times_the_plain_one(self):
        objective = Ddpm(min_snr_gamma=5.0)
        losses = objective.losses(PREDICTION, CLEAN, NOISE, TIMES)
        torch.testing.assert_close(losses.weighted, losses.plain * objective.weight(TIMES))
        assert losses.weighted[0] < losses.plain[0]

    def test_noise_offset_moves_whole_channels(self):
        plain = Ddpm().draw_noise((4, 8, 8), generator(0))
        offset = Ddpm(noise_offset=0.1).draw_noise((4, 8, 8), generator(0)) - plain
        assert torch.allclose(offset, offset[:, :1, :1].expand_as(offset), atol=1e-6)
        assert offset[:, 0, 0].unique().numel() == 4


class TestFlowMatching:
    def test_noised_is_the_schedulers(self):
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
        steps = scheduler.timesteps[[0, 200, 400, 600, 800, 999]]
        reference = scheduler.scale_noise(CLEAN, steps, NOISE)
        torch.testing.assert_close(FLOW.noised(CLEAN, NOISE, steps / 1000), reference)

    def test_velocity_leads_from_image_to_noise(self):
        t = torch.full((len(STEPS),), 0.3)
        noisy, velocity = FLOW.noised(CLEAN, NOISE, t), FLOW.target(CLEAN, NOISE, t)
        torch.testing.assert_close(noisy - 0.3 * velocity, CLEAN, rtol=0, atol=1e-6)
        torch.testing.assert_close(noisy + 0.7 * velocity, NOISE, rtol=0, atol=1e-6)

    def test_plain_loss(self):
        losses = FLOW.losses(PREDICTION, CLEAN, NOISE, TIMES)
        torch.testing.assert_close(losses.plain, (PREDICTION - (NOISE - CLEAN)).square().mean(dim=(1, 2, 3)))
        assert torch.equal(losses.weighted, losses.plain)

    def test_preconditioned_loss_is_diffusers_script_s(self):
        objective = FlowMatching(ConstantShift(3.0), preconditioned=True)
        sigmas = TIMES.view(-1, 1, 1, 1)
        prediction = PREDICTION * (-sigmas) + objective.noised(CLEAN, NOISE, TIMES)
        weighting = compute_loss_weighting_for_sd3("logit_normal", sigmas)
        reference = (weighting * (prediction - CLEAN) ** 2).mean(dim=(1, 2, 3))
        losses = objective.losses(PREDICTION, CLEAN, NOISE, TIMES)
        torch.testing.assert_close(losses.weighted, reference, rtol=1e-4, atol=1e-9)
        assert torch.equal(losses.plain, FLOW.losses(PREDICTION, CLEAN, NOISE, TIMES).plain)

    def test_times_are_shifted_for_the_size(self):
        drawn = timesteps.logit_normal(generator(3), mean=0.0, std=1.0)
        objective = FlowMatching(ResolutionShift())
        for size, num_tokens in (((32, 32), 256), ((128, 128), 4096)):
            expected = timesteps.shifted(drawn, ResolutionShift().factor(num_tokens))
            assert objective.draw_time(generator(3), latent_size=size) == expected


@pytest.mark.parametrize("objective", [Ddpm(), FLOW])
class TestBoth:
    def test_draws_depend_on_the_generator_alone(self, objective):
        first = objective.draw_time(generator(5), latent_size=(8, 8))
        assert first == objective.draw_time(generator(5), latent_size=(8, 8))
        assert first.shape == ()
        assert first.dtype == torch.float32
        noise = objective.draw_noise((4, 8, 8), generator(5))
        assert torch.equal(noise, objective.draw_noise((4, 8, 8), generator(5)))

    def test_loss_is_float32_whatever_the_prediction_is(self, objective):
        losses = objective.losses(PREDICTION.bfloat16(), CLEAN, NOISE, TIMES)
        assert losses.weighted.dtype == losses.plain.dtype == torch.float32
        exact = objective.losses(PREDICTION.bfloat16().float(), CLEAN, NOISE, TIMES)
        assert torch.equal(losses.plain, exact.plain)

    def test_a_sample_s_loss_does_not_see_its_neighbours(self, objective):
        whole = objective.losses(PREDICTION, CLEAN, NOISE, TIMES)
        alone = objective.losses(PREDICTION[2:3], CLEAN[2:3], NOISE[2:3], TIMES[2:3])
        torch.testing.assert_close(alone.weighted, whole.weighted[2:3])

    def test_perfect_prediction_has_no_loss(self, objective):
        target = objective.target(CLEAN, NOISE, TIMES)
        assert not objective.losses(target, CLEAN, NOISE, TIMES).plain.any()
