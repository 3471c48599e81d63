"""Folders that diffusers itself has saved: the same samples from the same noise, and the answers to mistakes."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from students.diffusion.grids import make_grid
from students.errors import FewstepError, WeightsError
from students.models.checkpoints.diffusers_folder import ConsistencyFunction, DiscreteVP, load_diffusers_folder
from students.samplers.consistency import consistency
from students.solvers.diffusers_schedulers import trained_betas
from students.solvers.euler import ddim
from students.student import SolverStudent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def make_unet(classes=None) -> diffusers.UNet2DModel:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=classes,
    )


def save_folder(folder, scheduler=None, classes=None, pipeline=False, **options):
    """A folder as diffusers writes it: flat, or with the subfolders of a pipeline."""
    unet, scheduler = make_unet(classes), scheduler or diffusers.DDPMScheduler()
    unet.save_pretrained(folder / "unet" if pipeline else folder, **options)
    scheduler.save_pretrained(folder / "scheduler" if pipeline else folder)
    return unet


# Discrete times


@pytest.mark.parametrize("name", BETAS)
def test_discrete_times_are_those_of_the_betas(name):
    betas = diffusers.DDPMScheduler(beta_schedule=name).betas
    schedule = DiscreteVP.from_betas(betas)
    alpha2 = torch.cumprod(1 - betas.double(), dim=0)
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.alpha(times) ** 2, alpha2, rtol=1e-9, atol=0)
    assert (schedule.t_min, schedule.t_max) == (0.001, 1.0)
    assert schedule.alpha(0.0) == 1 and schedule.sigma(0.0) == 0
    torch.testing.assert_close(torch.tensor(trained_betas(schedule, 1000)), betas, rtol=1e-4, atol=1e-7)


def test_between_the_times_lam_can_be_inverted():
    schedule = DiscreteVP.from_betas(diffusers.DDPMScheduler().betas)
    t = torch.linspace(1e-4, 1, 777, dtype=torch.float64)
    assert (schedule.lam(t).diff() < 0).all()
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))
    assert schedule.time(schedule.lam(0.3)).ndim == 0


# The same samples as diffusers


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", BETAS)
def test_ddim_is_that_of_diffusers(tmp_path, betas, prediction):
    """Uniform times down to 0 are the scheduler's "trailing" timesteps with alpha = 1 at the end."""
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=betas, prediction_type=prediction, timestep_spacing="trailing", clip_sample=False
    )
    unet = save_folder(tmp_path, scheduler).double()
    denoiser = load_diffusers_folder(tmp_path)
    assert denoiser.shape == (3, 8, 8) and denoiser.classes is None
    denoiser.network.double()
    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), dim=0)
    scheduler.set_timesteps(5)
    theirs = noise
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(unet(theirs, timestep).sample, timestep, theirs).prev_sample
    times = make_grid("uniform", denoiser.schedule, 5, t_min=0.0)
    ours = ddim(denoiser, noise, times)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes, timesteps", [(None, [0]), (None, [22, 0]), (4, [30, 12, 0])])
def test_consistency_sampling_is_the_pipeline_s(tmp_path, monkeypatch, classes, timesteps):
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    unet = save_folder(tmp_path, scheduler, classes, pipeline=True)
    denoiser = load_diffusers_folder(tmp_path, classes)
    assert isinstance(denoiser, ConsistencyFunction) and denoiser.classes == classes

    draws = [torch.randn(3, 3, 8, 8) for _ in range(4)]
    condition = torch.tensor([0, 3, 1]) if classes else None
    module = "diffusers.schedulers.scheduling_consistency_models.randn_tensor"
    again = iter(draws[1:])
    monkeypatch.setattr(module, lambda *args, **kwargs: next(again))
    pipeline = diffusers.ConsistencyModelPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(3, condition, latents=draws[0], timesteps=timesteps, output_type="pt").images

    levels = [*scheduler.sigmas[:-1].tolist(), 0.002]
    denoise = lambda x, t: denoiser(x, t, condition)
    denoise.schedule, fresh = denoiser.schedule, iter(draws[1:])
    times = torch.tensor(levels, dtype=torch.float64)
    ours = consistency(denoise, 80 * draws[0], times, noise=lambda: next(fresh))
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=0, atol=1e-4)


def test_a_consistency_function_keeps_the_data_end(tmp_path):
    save_folder(tmp_path, diffusers.CMStochasticIterativeScheduler(clip_denoised=False))
    denoiser = load_diffusers_folder(tmp_path)
    x = 2 * torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(denoiser(x, torch.tensor(0.002)), x, rtol=0, atol=1e-6)
    apart = denoiser(x, torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(apart[1:], denoiser(x[1:], torch.tensor(3.0)), rtol=0, atol=1e-5)


def test_a_loaded_folder_is_a_teacher(tmp_path):
    save_folder(tmp_path, classes=5)
    denoiser = load_diffusers_folder(tmp_path, classes=4)  # the fifth is "no class"
    student = SolverStudent(denoiser, "dpm_solver_pp", grid="log_snr")
    images = student.sample(3, seeds=range(4), guidance=2.0)
    assert images.shape == (4, 3, 8, 8) and images.isfinite().all()
    torch.testing.assert_close(student.sample(3, seeds=[2], guidance=2.0), images[2:3], rtol=0, atol=1e-5)


def test_bfloat16_keeps_the_timestep(tmp_path):
    """Timestep 998 and 999 are one number in bfloat16; the network must still be told them apart."""
    save_folder(tmp_path)
    denoiser = load_diffusers_folder(tmp_path)
    seen = []
    denoiser.network.network.time_proj.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0][0].item())
    )
    denoiser.network.to(torch.bfloat16)
    for timestep in (998, 999):
        denoiser(torch.zeros(1, 3, 8, 8), torch.tensor((timestep + 1) / 1000, dtype=torch.float64))
    assert seen == [998.0, 999.0]


# What a folder may look like


def test_weights_in_bin_and_the_older_names_of_attention(tmp_path):
    unet = save_folder(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    weights.unlink()
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    loaded = load_diffusers_folder(tmp_path).network.network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in unet.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("name", ["safetensors", "fp16.safetensors", "bin", "fp16.bin"])
def test_prefixes_and_variants(tmp_path, prefix, name):
    unet = save_folder(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    state = {prefix + key: value.clone() for key, value in unet.state_dict().items()}
    save = save_file if name.endswith("safetensors") else torch.save
    save(state, tmp_path / f"diffusion_pytorch_model.{name}")
    loaded = load_diffusers_folder(tmp_path).network.network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in unet.state_dict().items())


def test_shards_with_an_index_of_a_variant(tmp_path):
    unet = save_folder(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_diffusers_folder(tmp_path).network.network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in unet.state_dict().items())
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(WeightsError, match="which is not there"):
        load_diffusers_folder(tmp_path)


def test_the_averaged_network_of_a_training_run_is_taken_and_said(tmp_path, capsys):
    unet = save_folder(tmp_path / "unet_ema")
    save_folder(tmp_path / "unet")
    (tmp_path / "unet" / "scheduler_config.json").rename(tmp_path / "scheduler_config.json")
    with torch.no_grad():
        unet.conv_in.bias += 1
    unet.save_pretrained(tmp_path / "unet_ema")
    loaded = load_diffusers_folder(tmp_path).network.network
    assert torch.equal(loaded.conv_in.bias, unet.conv_in.bias)
    assert "the averaged one, unet_ema, is taken" in capsys.readouterr().err


def test_the_scheduler_above_a_checkpoint_of_training_is_taken_and_said(tmp_path, capsys):
    save_folder(tmp_path / "run" / "checkpoint-500", pipeline=True)
    (tmp_path / "run" / "checkpoint-500" / "scheduler").rename(tmp_path / "run" / "scheduler")
    denoiser = load_diffusers_folder(tmp_path / "run" / "checkpoint-500")
    assert len(denoiser.schedule.alphas_cumprod) == 1000
    assert f"that of {tmp_path / 'run' / 'scheduler'} is taken" in capsys.readouterr().err


def test_a_pickle_that_needs_code_is_refused(tmp_path):
    save_folder(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    ran = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return ran.touch, ()

    torch.save({"conv_in.weight": Malicious()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="without running code"):
        load_diffusers_folder(tmp_path)
    assert not ran.exists()


# Mistakes


def spoil(folder, mistake: str):
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    scheduler = folder / "scheduler_config.json"

    def edit(path, **changes):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    if mistake == "no config":
        config.unlink()
    elif mistake == "no scheduler":
        scheduler.unlink()
    elif mistake == "no weights":
        weights.unlink()
    elif mistake == "cut short":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif mistake == "broken json":
        config.write_text("{")
    elif mistake == "lacks a parameter":
        state = load_file(weights)
        del state["conv_out.bias"]
        save_file(state, weights, metadata={"format": "pt"})
    elif mistake == "other width":
        edit(config, block_out_channels=[8, 32])
    elif mistake == "other network":
        edit(config, _class_name="UNet2DConditionModel")
    elif mistake == "no betas":
        scheduler.write_text('{"_class_name": "KarrasVeScheduler"}')
    elif mistake == "strange betas":
        edit(scheduler, beta_schedule="stairs")
    elif mistake == "strange prediction":
        edit(scheduler, prediction_type="epsilom")
    elif mistake == "zero signal":
        edit(scheduler, rescale_betas_zero_snr=True)
    elif mistake == "image skips":
        edit(config, down_block_types=["SkipDownBlock2D", "AttnSkipDownBlock2D"])
    elif mistake == "learned variance":
        edit(config, out_channels=6)


@pytest.mark.parametrize(
    "mistake, message",
    [
        ("no config", "no config.json in"),
        ("no scheduler", "holds no scheduler_config.json"),
        ("no weights", "cannot read the weights.*no file named"),
        ("cut short", "is damaged or cut short"),
        ("broken json", "is no JSON"),
        ("lacks a parameter", "lack 'conv_out.bias'"),
        ("other width", "have '.*' of shape"),
        ("other network", "UNet2DConditionModel: only UNet2DModel"),
        ("no betas", "KarrasVeScheduler has no betas"),
        ("strange betas", "unknown beta schedule 'stairs'"),
        ("strange prediction", "did you mean 'epsilon'"),
        ("zero signal", "zero signal are not supported"),
        ("image skips", "skips of images"),
        ("learned variance", "as many channels as it takes"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, mistake, message):
    save_folder(tmp_path)
    spoil(tmp_path, mistake)
    with pytest.raises(FewstepError, match=message) as caught:
        load_diffusers_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("has, asked", [(None, 10), (10, 3), (10, 12)])
def test_another_number_of_classes(tmp_path, has, asked):
    save_folder(tmp_path, classes=has)
    with pytest.raises(FewstepError, match=f"has {has or 'no'} classes, not {asked}"):
        load_diffusers_folder(tmp_path, asked)


def test_a_network_without_no_class_needs_a_condition(tmp_path):
    save_folder(tmp_path, classes=4)
    denoiser = load_diffusers_folder(tmp_path)
    with pytest.raises(FewstepError, match="give a condition"):
        denoiser(torch.zeros(1, 3, 8, 8), torch.tensor(0.5))
    with pytest.raises(FewstepError, match="give a condition"):
        denoiser.with_features(torch.zeros(1, 3, 8, 8), torch.tensor(0.5))
