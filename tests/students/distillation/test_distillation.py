"""Every distillation method, trained for real on the Gaussian mixture whose exact answers are known."""

import json
import os
import shutil

import pytest
import torch
from filelock import FileLock

import students
from bench.measure.vectors import mode_coverage, sliced_wasserstein
from students.__main__ import main
from students.data import load_data
from students.diffusion.denoiser import under
from students.diffusion.schedules import SCHEDULES, VE
from students.distillation.trajectory.consistency import ConsistencyDistillation
from students.distillation.trajectory.consistency_training import ImprovedConsistencyTraining
from students.errors import FewstepError, Stopped, Unsupported, WeightsError
from students.models import weights
from students.models.load import load_start, load_teacher
from students.models.teachers import teacher_weights
from students.nfe import count_nfe
from students.samplers.load import load_trained
from students.spec import METHODS, STUDENTS, TRAINED, parse
from students.training import loop, quality
from students.training.distill import method_class, train_method
from students.training.settings import evaluations_of_step, own_budget

SEEDS = range(10**6, 10**6 + 2000)  # which no training draws
CONDITIONAL = ("guidance", "lcm")
BUDGETS = {"rectified_flow": 0.1, "reflow": 0.6, "reflow_3": 0.6, "reflow_distilled": 0.6}
BUDGETS |= {"consistency_training": 1.9, "ctm": 1.9}  # others 0.95, for the sake of time
BUDGETS |= {"dmd": 3.0, "sct": 0.3, "ufogen": 3.0, "add": 2.0, "ddgan": 1.5, "adversarial_score": 1.5}
FLOWS = ("rectified_flow",)  # still an ODE with curved paths
SOLVERS = ("genie",)  # a solver that was trained
ONE_STEP = [name for name in METHODS if name not in (*FLOWS, *SOLVERS)]


def task_of(name: str) -> str:
    return "gaussians-cond" if name in CONDITIONAL else "gaussians"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A function that trains a method once for all workers, what it starts from before; returns the weights' folder."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "distilled"
    root.mkdir(exist_ok=True)

    def folder_of(name):
        folder, done = root / task_of(name), root / f"{name}.done"
        if (after := method_class(name).after) is not None:
            folder_of(after)
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                budget = BUDGETS.get(name, 0.95)
                train_method(name, task_of(name), out=folder, state=root / "state" / name, budget=budget)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="module")
def ddim_distance():
    return distance(students.load("ddim", task="gaussians"), 1)


def distance(student, n_steps: int) -> float:
    return sliced_wasserstein(student.sample(n_steps, seeds=SEEDS), load_data("gaussians").train.samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_trains_samples_and_says_what_it_cost(name, trained):
    folder = trained(name)
    student = load_trained(name, task_of(name), folder)
    assert student.family == "distilled" and student.shape == (2,)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}*.json"))]
    records = [record for record in records if record["method"] == name]
    plan = method_class(name)(*load_start(task_of(name)))
    if not plan.passing:
        spent = sum(sum(record["evaluations"].values()) - record["evaluations"].get("pairs", 0) for record in records)
        images = sum(record["images_seen"] for record in records)
        a_step = evaluations_of_step(plan, records[0]["settings"])
        assert spent == pytest.approx(images * a_step, rel=0.02)  # what a budget is planned with
    assert student.training["relative"] <= max(2, 1.001 * own_budget(plan, vectors=True))
    assert len(student.training["curve"]) == 10 * (len(plan.stages) - len(plan.passing))
    steps = [n for n in (1, 2, 4, 8) if n in student.supported_steps]
    with count_nfe(student) as nfe:
        samples = [student.sample(n, seeds=range(3)) for n in steps]
    assert nfe.per_image == pytest.approx((4 if name == "dsno" else 1) * sum(steps) / len(steps))
    again = student.sample(steps[0], seeds=[2])
    torch.testing.assert_close(again[0], samples[0][2], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_beats_one_of_ddim_by_far(name, trained, ddim_distance):
    student = load_trained(name, task_of(name), trained(name))
    steps = min(student.supported_steps)
    assert steps == 1 and distance(student, 1) < ddim_distance / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knowledge", "reflow_distilled", "guidance", "lcm", "progressive", "dsno"])
def test_one_step_finds_every_mode(name, trained):
    """Those that are fitted to whole trajectories; what the others leave out shows in the report on this task."""
    samples = load_trained(name, task_of(name), trained(name)).sample(1, seeds=SEEDS)
    assert mode_coverage(load_data("gaussians").mixture, samples) >= 7 / 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knowledge", "consistency", "progressive", "ctm", "boot", "tract", "scm"])
def test_one_step_is_the_exact_flow_map_up_to_an_error_that_training_lowers(name, trained, tmp_path):
    exact = students.load("heun", task="gaussians").sample(200, seeds=SEEDS[:500])
    error = flow_map_error(load_trained(name, "gaussians", trained(name)), exact)
    budget = BUDGETS.get(name, 0.95) * (0.95 if name == "knowledge" else 0.1)
    train_method(name, "gaussians", out=tmp_path / "out", state=tmp_path / "state", budget=budget)
    assert error < flow_map_error(load_trained(name, "gaussians", tmp_path / "out"), exact)
    assert error < 0.3  # the ring's radius is 1, a DDIM step's error 0.7


def flow_map_error(student, exact) -> float:
    return (student.sample(1, seeds=SEEDS[:500]) - exact).norm(dim=1).mean().item()


@pytest.mark.slow
def test_reflow_straightens(trained):
    curves = [
        json.loads((trained(name) / f"{name}.json").read_text())["straightness"]
        for name in ("rectified_flow", "reflow")
    ]
    assert curves[1] < curves[0] / 20


@pytest.mark.slow
def test_progressive_degrades_gently(trained):
    student = load_trained("progressive", "gaussians", trained("progressive"))
    distances = [distance(student, n) for n in (8, 4, 2, 1)]
    assert distances[-1] < 3 * distances[0]


@pytest.mark.slow
def test_a_trained_method_is_a_student_by_name(trained):
    folder = trained("consistency")
    student = students.load(f"consistency:weights={folder}", task="gaussians")
    images = load_trained("consistency", "gaussians", folder).sample(2)
    assert torch.equal(student.sample(2), images)
    with pytest.raises(Unsupported, match="without guidance"):
        student.check(1, guidance=2.0)
    guided = load_trained("lcm", "gaussians-cond", trained("lcm"))
    assert not torch.equal(guided.sample(1, guidance=1.0), guided.sample(1, guidance=3.0))
    with pytest.raises(Unsupported, match="guidance from 1 to 4"):
        guided.sample(1, guidance=9.0)
    with pytest.raises(FewstepError, match="takes no option 'levels'"):
        students.load(f"consistency:weights={folder}", task="gaussians", levels=9)


def test_names_of_methods_are_free_of_those_of_solvers():
    assert not set(METHODS) & set(STUDENTS)


@pytest.mark.parametrize(("name", "card"), [("consistency", "imagenet64-ct"), ("sid", "uncond")])
def test_a_name_of_a_method_and_of_checkpoints_is_the_method_unless_a_checkpoint_is_named(name, card):
    assert parse(f"{name}:{card}").model == f"{name}:{card}" and parse(f"{name}:{card}").kind != TRAINED
    own = parse(f"{name}:weights=my/folder")
    assert (own.kind, own.model, own.options) == (TRAINED, None, {"weights": "my/folder"})
    assert parse(name).kind == TRAINED and parse(name).model is None
    with pytest.raises(FewstepError, match=f"{card}'"):
        parse(f"{name}:{card}x")


def test_a_checkpoint_takes_no_solver_with_a_network_of_its_own():
    with pytest.raises(FewstepError, match="network of its own"):
        parse("edm:uncond-vp:progressive")


TINY = {"settings": {"steps": 4, "batch_size": 8}}


@pytest.mark.parametrize("name", ["consistency", "knowledge", "progressive", "ict"])
def test_a_run_that_was_stopped_ends_with_the_weights_of_an_uninterrupted_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "SAMPLES", 50)
    settings = {"settings": {"steps": 20, "batch_size": 8} | ({"pairs": 600} if name == "knowledge" else {})}
    whole = train_method(name, "gaussians", out=tmp_path / "a", state=tmp_path / "a-state", **settings)
    with pytest.raises(Stopped, match=r"stopped at step 1 of .*goes on from"):
        train_method(name, "gaussians", out=tmp_path / "b", state=tmp_path / "b-state", time_limit=0.0, **settings)
    assert not list((tmp_path / "b").glob("*.safetensors"))
    resumed = train_method(name, "gaussians", out=tmp_path / "b", state=tmp_path / "b-state", **settings)
    for path, other in zip(whole, resumed, strict=True):
        assert path.read_bytes() == other.read_bytes()
    assert not (tmp_path / "b-state").exists() or name == "knowledge"


def test_weights_that_cannot_be_written_leave_every_stage_to_go_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "SAMPLES", 50)
    settings = {"settings": {"steps": 20, "batch_size": 8}}
    write, written = weights.write_atomically, []

    def full(path, content):
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write(path, content)

    monkeypatch.setattr(weights, "write_atomically", full)
    with pytest.raises(FewstepError, match=r"cannot write .*No space left"):
        train_method("progressive", "gaussians", out=tmp_path / "a", state=tmp_path / "s", **settings)
    assert {path.name for path in (tmp_path / "s").glob("[!.]*")} == {"8", "4", "2", "1"}
    monkeypatch.undo()
    paths = train_method("progressive", "gaussians", out=tmp_path / "a", state=tmp_path / "s", **settings)
    assert all(path.is_file() for path in paths) and not (tmp_path / "s").exists()


def test_resuming_on_other_pairs_is_refused(tmp_path):
    def run(pairs, **limit):
        settings = {"steps": 4, "batch_size": 8, "pairs": pairs}
        train_method("knowledge", "gaussians", out=tmp_path, state=tmp_path / "s", settings=settings, **limit)

    run(20)
    with pytest.raises(Stopped, match="stopped at step 1"):
        run(20, time_limit=0.0)
    with pytest.raises(FewstepError, match=r"another configuration.*pairs"):
        run(30)


def test_resuming_with_other_options_is_refused(tmp_path):
    with pytest.raises(Stopped, match="stopped"):
        train_method("consistency", "gaussians", out=tmp_path, state=tmp_path / "s", time_limit=0.0, **TINY)
    with pytest.raises(FewstepError, match=r"another configuration.*levels"):
        train_method("consistency", "gaussians", out=tmp_path, state=tmp_path / "s", options={"levels": 9}, **TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["progresive", "--task", "gaussians"], "unknown method 'progresive': did you mean 'progressive'"),
        (["progressive", "--task", "gauss"], "unknown task 'gauss'"),
        (["lcm", "--task", "gaussians"], "unconditional teacher has not"),
        (["guidance", "--task", "gaussians"], "unconditional teacher has not"),
        (["consistency", "--task", "gaussians", "--set", "lr=fast"], "--set: lr must be a number above 0"),
        (["consistency", "--task", "gaussians", "--set", "rl=1"], "--set takes no option 'rl': did you mean 'lr'"),
        (["consistency", "--task", "gaussians", "--set", "lr"], "cannot read 'lr' in --set: options are"),
        (["consistency", "--task", "gaussians", "--options", "level=9"], "no option 'level': did you mean 'levels'"),
        (["consistency", "--task", "gaussians", "--options", "distance=l3"], "distance must be one of l1, l2"),
        (["consistency", "--task", "gaussians", "--options", "distance=lpips"], "LPIPS compares colour images"),
        (["progressive", "--task", "gaussians", "--options", "weight=snr2"], "snr+1, got 'snr2': did you mean 'snr'?"),
        (["reflow", "--task", "gaussians"], "reflow starts from rectified_flow: no weights"),
        (["consistency", "--task", "gaussians", "--teacher", "tests.conftest:make_conditional"], "asks for"),
        (["consistency", "--task", "digits", "--teacher", "tests.conftest:make_mixture"], "asks for"),
        (["teacher", "--task", "digits", "--budget", "1"], "leave --budget out"),
        (["consistency", "--task", "gaussians", "--options", "levels=1"], "levels must be a whole number from 2"),
        (["consistency", "--task", "gaussians", "--options", "distance=3"], "distance must be one of"),
        (["meanflow", "--task", "gaussians", "--options", "flow_share=2"], "flow_share must be a number from 0 to 1"),
        (["tract", "--task", "gaussians", "--options", "first=30"], "first must be a multiple of 4"),
        (["consistency", "--task", "gaussians", "--set", "batch_size=0"], "batch_size must be a whole number from 1"),
        (["consistency", "--task", "gaussians", "--set", "steps=0"], "steps must be a whole number from 1"),
        (["knowledge", "--task", "gaussians", "--set", "pairs=-5"], "pairs must be a whole number from 1"),
        (["consistency", "--task", "gaussians", "--set", "ema_decay=2"], "ema_decay must be a number from 0 to 1"),
        (["consistency", "--task", "gaussians", "--budget", "nan"], "--budget must be a number above 0"),
        (["consistency", "--task", "gaussians", "--time-limit", "nan"], "--time-limit must be"),
        (["consistency", "--task", "gaussians", "--teacher", "nowhere.safetensors"], "no weights at nowhere"),
        (["consistency", "--task", "gaussians", "--teacher", str(teacher_weights("digits"))], "do not fit"),
        (["consistency", "--task", "gaussians", "--pairs", "somewhere"], "leave --pairs out"),
        (["consistency", "--task", "gaussians", "--budget", "1", "--set", "steps=2"], "--budget and --set steps both"),
        (["teacher", "--task", "digits"], "--out of a teacher must be a file that ends in .safetensors"),
        (["knowledge", "--task", "gaussians", "--budget", "0.01"], "pairs take 512000 evaluations"),
        (["dmd", "--task", "gaussians", "--budget", "0.01"], "pairs take 256000 evaluations"),
        (["dmd", "--task", "gaussians", "--options", "weight=sigma"], "eq8, sigma/alpha, sigma^3/alpha, got 'sigma'"),
        (
            ["dmd", "--task", "gaussians", "--options", "matching=false", "regression=false"],
            "without matching and without regression there is nothing to learn",
        ),
        (["sid", "--task", "gaussians", "--options", "alpha=3"], "alpha must be a number from 0 to 2"),
        (["disback", "--task", "gaussians", "--options", "method=knowledge"], "one of diff_instruct, vsd, dmd, sid"),
        (["disback", "--task", "gaussians", "--options", "checkpoints=0"], "checkpoints must be a whole number from 1"),
        (["disback", "--task", "gaussians", "--options", "back=0"], "back must be a number from 0.001 to 1"),
        (["vsd", "--task", "gaussians", "--options", "alpha=1"], "vsd takes no option 'alpha'"),
        (["vsd", "--task", "gaussians", "--set", "every=0"], "every must be a whole number from 1"),
    ],
)
def test_bad_input_is_one_line_before_any_training(arguments, message, tmp_path, capsys):
    paths = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    assert main(["train", *arguments, *paths]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.count("\n") == 0 and error.startswith("error: ")


@pytest.mark.slow
def test_weights_of_another_method_or_cut_short_are_refused(trained, tmp_path):
    folder = trained("consistency")
    for suffix in (".safetensors", ".json"):
        shutil.copy(folder / f"consistency{suffix}", tmp_path / f"ctm{suffix}")
        shutil.copy(folder / f"consistency{suffix}", tmp_path / f"consistency{suffix}")
    with pytest.raises(WeightsError, match="is consistency of gaussians, not ctm"):
        load_trained("ctm", "gaussians", tmp_path)
    path = tmp_path / "consistency.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="cut short"):
        load_trained("consistency", "gaussians", tmp_path)
    with pytest.raises(WeightsError, match="python -m students train tract --task gaussians"):
        load_trained("tract", "gaussians", tmp_path)


def test_a_loss_that_is_no_longer_finite_stops_with_the_step_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    plain = ConsistencyDistillation.loss
    monkeypatch.setattr(loop, "LOG_EVERY", 5)
    monkeypatch.setattr(
        ConsistencyDistillation,
        "loss",
        lambda self, batch, step, generator: plain(self, batch, step, generator) * (float("nan") if step == 12 else 1),
    )
    settings = {"steps": 40, "batch_size": 8}
    monkeypatch.setattr(loop.train, "__kwdefaults__", loop.train.__kwdefaults__ | {"save_every": 0.0})
    with pytest.raises(FewstepError, match=r"nan at step 12.*keeps the last good checkpoint"):
        train_method("consistency", "gaussians", out=tmp_path, state=tmp_path / "s", settings=settings)
    assert (tmp_path / "s" / "single" / "step-00000010").is_dir()


@pytest.mark.parametrize("kind", ["ve", "flow", "vp_cosine"])
def test_a_denoiser_is_the_same_under_every_schedule(kind):
    for denoiser in (load_data("gaussians").mixture, load_teacher("gaussians-mlp").denoiser):
        view = under(denoiser, SCHEDULES[kind])
        x0, eps = torch.randn(2, 16, 2).unbind(0)
        for lam in (-4.0, 0.0, 3.0):
            states = []
            for one in (denoiser, view):
                t = one.schedule.time(lam)
                states.append(one((one.schedule.alpha(t) * x0 + one.schedule.sigma(t) * eps).float(), t))
            torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)
    teacher = load_teacher("gaussians-mlp").denoiser
    teacher.prediction = "eps"
    with pytest.raises(FewstepError, match="knows one schedule only"):
        under(teacher, VE)


def test_dropout_is_a_setting_of_what_is_trained_and_not_of_its_targets(tmp_path, monkeypatch):
    seen = []
    plain = ImprovedConsistencyTraining.target_of
    monkeypatch.setattr(
        ImprovedConsistencyTraining,
        "target_of",
        lambda self, *given: seen.append(self.model.training) or plain(self, *given),
    )
    settings = {"steps": 2, "batch_size": 8, "dropout": 0.2}
    train_method("ict", "digits", out=tmp_path, state=tmp_path / "s", settings=settings)
    record = json.loads((tmp_path / "ict.json").read_text())
    assert record["settings"]["dropout"] == record["model"]["network"]["dropout"] == 0.2
    assert seen == [False, False]
