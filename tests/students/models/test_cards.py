"""Cards of public checkpoints: that each says what it must, and the way from a card to samples, without a network."""

import subprocess
import sys
import urllib.error
import urllib.request

import diffusers
import pytest
import torch
import yaml

import students
from students.datafiles import MissingFile
from students.errors import FewstepError, UnsupportedSteps, WeightsError
from students.models import cards
from students.models.cards import all_cards, check_fits, load_card, make_card, model_identity, weights_hash
from students.models.public import READERS, load_model
from students.nfe import count_nfe
from students.samplers.levels import LevelsStudent
from students.spec import STUDENTS, parse
from tests.students.models.checkpoints.test_diffusers_folder import make_unet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CARDS = {card.spec: card for card in all_cards()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """An empty data root, and no way out but file:// addresses."""
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "data"))
    reachable = urllib.request.urlopen

    def urlopen(url, **options):
        if url.startswith("file:"):
            return reachable(url, **options)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)


# What every card says


@pytest.mark.parametrize("spec", CARDS)
def test_a_card_is_complete_and_can_be_written_as_a_student(spec):
    card = load_card(spec)
    parsed = parse(spec)
    assert parsed.model == spec and parsed.name == spec
    assert all(url is None or url.startswith("https://") for url in card.files.values())
    assert card.page.startswith("https://") and card.licence and card.source
    for figure in card.published:
        assert figure.keys() == {"nfe", "fid"} and 0 < figure["fid"] < 100
        assert card.kind == "teacher" or figure["nfe"] in card.levels
    if card.kind == "teacher":
        assert card.solver in STUDENTS and parsed.target == STUDENTS[card.solver].target
    else:
        assert parsed.target == "students.samplers.consistency:consistency"
        assert all(levels[-1] in (0.0, card.sigma[0]) for levels in card.levels.values())
    assert card.summary in dict(cards.listing())[spec]


def test_the_families_and_names_that_others_rely_on():
    assert {"edm:uncond-vp", "sid:uncond", "ect:uncond", "consistency:imagenet64-cd-lpips"} <= CARDS.keys()
    assert CARDS["sid:uncond"].levels == {1: [2.5, 0.0]}
    assert CARDS["ect:uncond"].levels[2] == [80.0, 0.821, 0.0] and not CARDS["ect:uncond"].confirmed
    assert not STUDENTS.keys() & set(cards.families())


@pytest.mark.parametrize("steps, point, points", [("imagenet64-cd-l2", 22, 40), ("imagenet64-ct", 106, 201)])
def test_second_levels_are_points_of_edm_s_grid(steps, point, points):
    diffusers_s = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=points)
    diffusers_s.set_timesteps(timesteps=[point, 0])
    level = CARDS[f"consistency:{steps}"].levels[2][1]
    assert level == pytest.approx(diffusers_s.sigmas[1].item(), rel=1e-6)


# Files


def test_a_missing_file_says_what_to_download_and_where_to_put_it(tmp_path):
    url = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl"
    place = tmp_path / "data/models/edm/uncond-vp/edm-cifar10-32x32-uncond-vp.pkl"
    for ask in (lambda: students.load("edm:uncond-vp:heun"), lambda: weights_hash("edm:uncond-vp")):
        with pytest.raises(MissingFile, match="is missing: download") as caught:
            ask()
        assert url in str(caught.value) and str(place) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(MissingFile, match=r"see https://drive\.google\.com/.*get it and put it at"):
        load_model("ect:uncond")


def test_every_format_has_a_reader():
    assert READERS.keys() == set(cards.FORMATS)


def test_the_architectures_of_openai_cards_are_known():
    from students.models.checkpoints.openai import NETWORKS

    networks = [card.network for card in cards.all_cards() if card.format == "openai"]
    assert networks and all(network in NETWORKS.values() for network in networks)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A family of one teacher and one consistency model, published under file:// addresses."""
    published, entries = tmp_path / "published", {}
    for name, scheduler, classes in (
        ("teacher", diffusers.DDPMScheduler(), None),
        ("consistent", diffusers.CMStochasticIterativeScheduler(), 3),
    ):
        make_unet(classes).save_pretrained(published / name / "unet")
        scheduler.save_pretrained(published / name / "scheduler")
        paths = [p.relative_to(published / name) for p in (published / name).rglob("*.*") if p.is_file()]
        entries[name] = {
            "summary": f"a tiny {name}",
            "kind": "teacher" if classes is None else "consistency",
            "format": "diffusers",
            "shape": [3, 8, 8],
            "classes": classes,
            "files": {str(path): (published / name / path).as_uri() for path in paths},
            "licence": "none",
            "page": "https://example.org",
            "source": "made here",
            "published": [],
        }
    entries["teacher"] |= {"grid": "uniform", "solver": "ddim"}
    entries["consistent"] |= {"sigma": [0.002, 80.0], "levels": {1: [80.0, 0.002], 2: [80.0, 1.5, 0.002]}}
    folder = tmp_path / "cards"
    folder.mkdir()
    write = lambda: (folder / "tiny.yaml").write_text(yaml.safe_dump({"cards": entries}))
    write()
    monkeypatch.setattr(cards, "FOLDER", folder)
    cards.load_family.cache_clear()
    yield entries, write
    cards.load_family.cache_clear()


def test_from_a_card_to_samples(tiny, tmp_path):
    student = students.load("tiny:teacher", task="not a task")
    assert (student.grid, student.name, student.family) == ("uniform", "tiny:teacher", "solver")
    assert (tmp_path / "data/models/tiny/teacher/unet/diffusion_pytorch_model.safetensors").is_file()
    images = student.sample(3, seeds=range(2))
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()
    other = students.load("tiny:teacher:dpm_solver_pp:order=3,grid=log_snr")
    assert other.solver_options == {"order": 3} and other.grid == "log_snr"
    assert students.load("tiny:teacher:heun").grid == "polynomial", "another solver takes its own authors' grid"
    assert students.load("tiny:teacher", grid="log_snr").grid == "log_snr"
    assert not torch.equal(other.sample(3, seeds=range(2)), images)
    assert students.load("tiny:teacher:diffusers:DDIMScheduler").sample(3, seeds=range(2)).isfinite().all()
    assert students.load("tiny:teacher", dtype="bfloat16").sample(2, seeds=[0]).dtype == torch.float32


def test_a_consistency_model_samples_at_its_own_levels(tiny):
    student = students.load("tiny:consistent")
    assert isinstance(student, LevelsStudent) and student.family == "distilled"
    assert student.supported_steps == (1, 2) and student.times(2).tolist() == [80.0, 1.5, 0.002]
    assert student.options == {"levels": {"1": [80.0, 0.002], "2": [80.0, 1.5, 0.002]}}
    for n_steps in (1, 2):
        with count_nfe(student) as nfe:
            images = student.sample(n_steps, seeds=range(3))
        assert nfe.per_image == n_steps and images.abs().max() <= 1
    with pytest.raises(UnsupportedSteps, match="it supports 1, 2"):
        student.sample(3)
    with pytest.raises(FewstepError, match="without guidance"):
        student.sample(1, guidance=2.0)
    denoiser = student.denoiser
    noise = students.student.SeedNoise(range(3), (3, 8, 8))
    conditions = noise.classes(3)
    torch.testing.assert_close(student.sample(1, seeds=range(3)), denoiser(80 * noise(), 80.0, conditions))
    assert students.load("tiny:consistent:grid=polynomial").sample(4, seeds=[0]).isfinite().all()


def test_files_of_one_s_own(tiny, tmp_path):
    load_model("tiny:teacher")
    folder = tmp_path / "data/models/tiny/teacher"
    own = students.load(f"file:{folder}:ddim:grid=uniform").sample(2)
    assert torch.equal(own, students.load("tiny:teacher").sample(2))
    assert weights_hash(f"file:{folder}") == weights_hash("tiny:teacher")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no weights")
    for path, message in (
        ("nowhere", "no checkpoint at"),
        (tmp_path / "empty", "holds no checkpoint"),
        (tmp_path / "notes.txt", "of another kind"),
    ):
        with pytest.raises(FewstepError, match=message):
            load_model(f"file:{path}")


def test_weights_are_part_of_the_identity(tiny, tmp_path):
    assert weights_hash(None) is None
    before = model_identity("tiny:teacher")
    weights = tmp_path / "data/models/tiny/teacher/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    after = model_identity("tiny:teacher")
    assert before["weights"] != after["weights"]
    assert before | {"weights": None} == after | {"weights": None}
    moved = weights.parents[1].rename(tmp_path / "elsewhere")
    assert model_identity(f"file:{moved}") == {"weights": after["weights"]}
    assert model_identity("tiny:consistent")["levels"]["2"] == [80.0, 1.5, 0.002]


def test_a_published_hash_is_checked(tiny):
    entries, write = tiny
    entries["teacher"]["sha256"] = {"unet/config.json": "0" * 64}
    write()
    cards.load_family.cache_clear()
    with pytest.raises(MissingFile, match=r"is not tiny:teacher.*sha256"):
        load_model("tiny:teacher")


@pytest.mark.parametrize("change", [{"shape": [1, 8, 8]}, {"classes": 10}])
def test_a_checkpoint_that_is_not_what_its_card_says(tiny, change):
    entries, write = tiny
    entries["teacher"] |= change
    write()
    cards.load_family.cache_clear()
    with pytest.raises((WeightsError, FewstepError), match="not"):
        load_model("tiny:teacher")


def test_a_card_must_fit_the_task():
    check_fits("edm:uncond-vp", (3, 32, 32), None)
    check_fits("file:anything", (3, 32, 32), None)
    with pytest.raises(FewstepError, match=r"makes samples \(3, 64, 64\), the task asks for \(3, 32, 32\)"):
        check_fits("sid:ffhq64", (3, 32, 32), None)
    with pytest.raises(FewstepError, match="has 10 classes, the task no classes"):
        check_fits("edm:cond-vp", (3, 32, 32), None)


# Mistakes in a card


@pytest.mark.parametrize(
    "change, message",
    [
        ({"licens": "MIT"}, "unknown key 'licens': did you mean 'licence'"),
        ({"page": None, "summary": ...}, "key 'summary' is missing"),
        ({"kind": "techer"}, "did you mean 'teacher'"),
        ({"format": "edm_pikle"}, "did you mean 'edm_pickle'"),
        ({"solver": None}, "a teacher needs 'grid' and 'solver'"),
        ({"kind": "generator"}, "a generator needs 'levels'"),
        ({"kind": "consistency", "levels": {2: [80.0, 0.0]}}, "2 steps need 3 decreasing levels"),
        ({"kind": "consistency", "levels": {1: [0.0, 80.0]}}, "1 steps need 2 decreasing levels"),
    ],
)
def test_mistakes_in_a_card_are_named(tmp_path, change, message):
    card = CARDS["edm:uncond-vp"]
    keys = ("summary", "kind", "format", "files", "licence", "page", "source", "grid", "solver", "classes")
    entry = {key: getattr(card, key) for key in keys} | {"shape": [3, 32, 32], "published": []} | change
    entry = {key: value for key, value in entry.items() if value is not ...}
    with pytest.raises(FewstepError, match=message):
        make_card("mine", "a", entry, tmp_path / "mine.yaml")


def test_cards_and_their_specs_cost_no_torch():
    code = (
        "from students.spec import parse; from students.models.cards import listing, check_fits; listing();"
        "parse('edm:uncond-vp:heun'); check_fits('sid:uncond', (3, 32, 32), None);"
        "import sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
