"""Names of students and what they stand for: `parse(text) -> Spec`. Importing this module imports no torch.

A student is written as a *spec*:

    unipc                                   a name of STUDENTS
    progressive                             a name of METHODS: the task's student that was distilled so
    progressive:weights=FOLDER              one's own, trained by `python -m students train progressive`
    dpm_solver_pp:order=3,grid=uniform      with options
    heun:convention=edm                     under a published convention (students/conventions)
    diffusers:HeunDiscreteScheduler         a scheduler of diffusers
    package.module:attribute                one's own: a Student, a factory, or a solver function
    edm:uncond-vp                           a public checkpoint (students/models/cards), with its own solver
    edm:uncond-vp:dpm_solver_pp:order=3     with another, which may be any of the specs above
    sid:uncond                              a distilled one, which says itself how it samples
    file:PATH:heun                          a checkpoint of one's own: what `convert` takes or wrote, or a folder of
                                            diffusers; `file:PATH:consistency` if it is a consistency model

or as a name that an installed package registers under the entry-point group `fewstep.students`. What comes first wins:
a name of STUDENTS or METHODS, a family of cards or `file`, a registered name, a module. So a module of one's own that
is called like a family (`edm`) is not found as `edm:attribute`.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path

from students.errors import FewstepError, one_line, unknown
from students.options import parse_assignments

ENTRY_POINTS = "fewstep.students"
CHECKPOINT_SUFFIXES = (".pkl", ".pt", ".pth", ".ckpt", ".bin", ".safetensors")


@dataclass(frozen=True)
class PaperGrid:
    """The time grid that the authors of a solver take for small images: a name of students/diffusion/grids.py.

    source: where that is to be read, a paper or a file in a repository of the authors. Equal steps in t or sqrt(t) are
    those of a VP schedule; on a VE one, whose t is the noise level, the solver takes the task's grid.
    """

    name: str
    source: str


@dataclass(frozen=True)
class Entry:
    """What a name stands for. min_steps: the smallest step count the solver can run.

    grid: of a solver, unless its spec names another; None takes the task's.
    """

    target: str
    summary: str
    options: dict = field(default_factory=dict)
    min_steps: int = 1
    grid: PaperGrid | None = None


_DDPM = PaperGrid("uniform", "[2006.11239] Alg. 2: equal steps in t")
_SONG = PaperGrid("uniform", "[2011.13456]; score_sde_pytorch/sampling.py: equal steps in t")
_ENDS = PaperGrid("uniform", "steps of its own: of a grid both ends alone matter")
_DDIM = PaperGrid("quadratic", "[2010.02502] App. D.2, for CIFAR-10")
_SDS = PaperGrid("uniform", "[2209.14988] Sec. 3: t uniform, of the process")
_EDM = PaperGrid("polynomial", "[2206.00364] Eq. 5, rho = 7")
_DPM = PaperGrid("log_snr", "[2206.00927] Sec. 3.4; dpm-solver/README.md: recommended for low-resolution images")
_UNIPC = PaperGrid("log_snr", "UniPC/example/score_sde_pytorch/sample.sh, for CIFAR-10")
_DEIS = PaperGrid("quadratic", "[2204.13902]; deis/README.md: ts_phase t, ts_order 2")
_PNDM = PaperGrid("uniform", "[2202.09778]; PNDM/runner/runner.py: every k-th of the network's steps")
_IPNDM = PaperGrid("uniform", "[2204.13902], which names it; deis/th_deis/sampler.py: order 1 in t")
_IPNDM_V = PaperGrid("polynomial", "diff-sampler/diff-solvers-main/sample.py: rho = 7")

STUDENTS = {
    "ddpm": Entry("students.solvers.ancestral:ddpm", "ancestral sampling [2006.11239]", grid=_DDPM),
    "euler_maruyama": Entry(
        "students.solvers.sde:euler_maruyama", "reverse SDE, Euler-Maruyama [2011.13456]", grid=_SONG
    ),
    "predictor_corrector": Entry(
        "students.solvers.sde:predictor_corrector", "reverse SDE, Langevin [2011.13456]", grid=_SONG
    ),
    "adaptive_sde": Entry(
        "students.solvers.adaptive:adaptive_sde", "Gotta Go Fast; steps = NFE budget [2105.14080]", grid=_ENDS
    ),
    "ddim": Entry("students.solvers.euler:ddim", "DDIM, eta = 0 [2010.02502]", grid=_DDIM),
    "euler": Entry("students.solvers.euler:euler", "Euler on the probability-flow ODE [2206.00364]", grid=_EDM),
    "heun": Entry("students.solvers.euler:heun", "Heun, last step Euler [2206.00364]", grid=_EDM),
    "dpm2": Entry(
        "students.solvers.euler:dpm2", "midpoint at the geometric mean, last step Euler [2206.00364]", grid=_EDM
    ),
    "edm_stochastic": Entry("students.solvers.euler:edm_stochastic", "Heun with churn [2206.00364]", grid=_EDM),
    "dpm_solver_2": Entry(
        "students.solvers.dpm_solver:dpm_solver", "singlestep, order 2 [2206.00927]", {"order": 2}, grid=_DPM
    ),
    "dpm_solver_3": Entry(
        "students.solvers.dpm_solver:dpm_solver", "singlestep, order 3 [2206.00927]", {"order": 3}, grid=_DPM
    ),
    "dpm_solver": Entry(
        "students.solvers.dpm_solver:dpm_solver_fast", "DPM-Solver-fast; steps = NFE [2206.00927]", grid=_DPM
    ),
    "dpm_solver_pp": Entry("students.solvers.dpm_solver_pp:dpm_solver_pp", "DPM-Solver++ 2M [2211.01095]", grid=_DPM),
    "dpm_solver_pp_3m": Entry(
        "students.solvers.dpm_solver_pp:dpm_solver_pp", "3M [2211.01095]", {"order": 3}, grid=_DPM
    ),
    "dpm_solver_pp_2s": Entry(
        "students.solvers.dpm_solver_pp:dpm_solver_pp_2s", "singlestep 2S [2211.01095]", grid=_DPM
    ),
    "dpm_solver_pp_sde": Entry("students.solvers.dpm_solver_pp:dpm_solver_pp_sde", "SDE-2M [2211.01095]", grid=_DPM),
    "unipc": Entry("students.solvers.unipc:unipc", "UniPC, order 3, B2 [2302.04867]", grid=_UNIPC),
    "unipc_2": Entry("students.solvers.unipc:unipc", "UniPC, order 2, B2 [2302.04867]", {"order": 2}, grid=_UNIPC),
    "deis": Entry("students.solvers.deis:deis", "tAB-DEIS, order 3 [2204.13902]", grid=_DEIS),
    "pndm": Entry("students.solvers.pndm:pndm", "PNDM, Runge-Kutta warm-up [2202.09778]", min_steps=4, grid=_PNDM),
    "ipndm": Entry("students.solvers.pndm:ipndm", "iPNDM, lower-order warm-up [2202.09778]", grid=_IPNDM),
    "ipndm_v": Entry("students.solvers.pndm:ipndm_v", "iPNDM with variable-step coefficients", grid=_IPNDM_V),
    "rk45": Entry("students.solvers.adaptive:rk45", "Dormand-Prince; steps = NFE budget", grid=_ENDS),
    "sds": Entry(
        "students.solvers.score_distillation:sds", "the image optimised; steps = updates [2209.14988]", grid=_SDS
    ),
    "nfsd": Entry(
        "students.solvers.score_distillation:nfsd", "SDS without the noise; steps = updates [2310.17590]", grid=_SDS
    ),
}
_TRAJECTORY = "students.distillation.trajectory"
_ADVERSARIAL = "students.distillation.adversarial"
_MATCHING = "students.distillation.matching"

# Distillation methods (students/distillation); a trained one is a student.
METHODS = {
    name: Entry(target, summary)
    for name, target, summary in (
        ("knowledge", f"{_TRAJECTORY}.knowledge:Knowledge", "DDIM's noise-image pairs, one step [2101.02388]"),
        ("progressive", f"{_TRAJECTORY}.progressive:Progressive", "two steps into one, again [2202.00512]"),
        ("guidance", f"{_TRAJECTORY}.guidance:Guidance", "guidance scale as input, then halved [2210.03142]"),
        ("rectified_flow", f"{_TRAJECTORY}.rectified_flow:RectifiedFlow", "the 1-flow, from data [2209.03003]"),
        ("reflow", f"{_TRAJECTORY}.rectified_flow:Reflow", "the 2-flow, on the 1-flow's pairs [2209.03003]"),
        ("reflow_3", f"{_TRAJECTORY}.rectified_flow:Reflow3", "the 3-flow, on the 2-flow's pairs"),
        ("reflow_distilled", f"{_TRAJECTORY}.knowledge:ReflowDistilled", "the 2-flow in one step [2309.06380]"),
        ("consistency", f"{_TRAJECTORY}.consistency:ConsistencyDistillation", "CD, Heun teacher [2303.01469]"),
        (
            "consistency_training",
            f"{_TRAJECTORY}.consistency_training:ConsistencyTraining",
            "CT, from scratch [2303.01469]",
        ),
        ("ict", f"{_TRAJECTORY}.consistency_training:ImprovedConsistencyTraining", "iCT, from scratch [2310.14189]"),
        ("ecm", f"{_TRAJECTORY}.consistency_training:EasyConsistencyTuning", "a teacher tuned on data [2406.14548]"),
        ("scm", f"{_TRAJECTORY}.scm:ContinuousConsistency", "sCD, continuous time [2410.11081]"),
        ("sct", f"{_TRAJECTORY}.scm:ContinuousConsistencyTraining", "sCT: scm on data alone [2410.11081]"),
        ("tract", f"{_TRAJECTORY}.tract:Tract", "whole intervals, self-teacher, two stages [2303.04248]"),
        ("lcm", f"{_TRAJECTORY}.lcm:LatentConsistency", "consistency of the guided ODE [2310.04378]"),
        ("ctm", f"{_TRAJECTORY}.ctm:ConsistencyTrajectory", "from any time to any other [2310.02279]"),
        ("boot", f"{_TRAJECTORY}.boot:Boot", "data-free, signal-ODE [2306.05544]"),
        ("meanflow", f"{_TRAJECTORY}.meanflow:MeanFlow", "average velocity, from scratch [2505.13447]"),
        ("shortcut", f"{_TRAJECTORY}.shortcut:Shortcut", "two half steps in one, from scratch [2410.12557]"),
        ("imm", f"{_TRAJECTORY}.imm:InductiveMomentMatching", "kernel distance of two maps, from scratch [2503.07565]"),
        ("dsno", f"{_TRAJECTORY}.dsno:TrajectoryOperator", "the whole trajectory in one call [2211.13449]"),
        ("genie", f"{_TRAJECTORY}.genie:Genie", "DDIM's second-order term in a small head [2210.05475]"),
        ("ddgan", f"{_ADVERSARIAL}.ddgan:DenoisingGAN", "a conditional GAN for each large step [2112.07804]"),
        (
            "adversarial_score",
            f"{_ADVERSARIAL}.adversarial_score:AdversarialScore",
            "denoising that also fools a discriminator [2009.05475]",
        ),
        ("ufogen", f"{_ADVERSARIAL}.ufogen:UFOGen", "a GAN on noised samples, judged by the teacher [2311.09257]"),
        (
            "add",
            f"{_ADVERSARIAL}.add:AdversarialDiffusion",
            "score distillation, and a GAN on an encoder's features [2311.17042]",
        ),
        ("vsd", f"{_MATCHING}.vsd:VariationalScore", "ProlificDreamer's gradient, a generator [2305.16213]"),
        ("diff_instruct", f"{_MATCHING}.diff_instruct:DiffInstruct", "integral KL over all levels [2305.18455]"),
        ("dmd", f"{_MATCHING}.dmd:DistributionMatching", "score difference and regression [2311.18828]"),
        ("dmd2", f"{_MATCHING}.dmd2:ImprovedDistributionMatching", "two time-scales, a GAN, few steps [2405.14867]"),
        ("sid", f"{_MATCHING}.sid:ScoreIdentity", "score identities; sid:NAME are checkpoints [2404.04057]"),
        ("disback", f"{_MATCHING}.disback:DistributionBacktracking", "back along a degradation path [2408.15991]"),
    )
}
# How a model samples that is no denoiser of a diffusion: a name only after a model.
CONSISTENCY = "consistency"
SAMPLERS = {
    CONSISTENCY: Entry("students.samplers.consistency:consistency", "multistep consistency sampling [2303.01469]")
}

SOLVER, SCHEDULER, TRAINED, OBJECT = "solver", "scheduler", "trained", "object"


@dataclass(frozen=True)
class Spec:
    """A parsed spec.

    name: what tables show. kind: SOLVER (of STUDENTS, or the sampler of a model), SCHEDULER (of diffusers), TRAINED
    (the weights of a distillation method, `head`), OBJECT (anybody's). target: `package.module:attribute` of the
    object behind it. entry: its line in one of the tables above, if there is one.
    model: the checkpoint it samples from, `family:name` or `file:PATH`, instead of the task's teacher.
    """

    name: str
    kind: str
    head: str
    target: str
    options: dict
    entry: Entry | None = None
    model: str | None = None


def parse(text: str) -> Spec:
    """Read a spec; raises FewstepError for an unknown name (with the nearest one) or an option without a value."""
    from students.models.cards import FILE, families

    head, *rest = text.split(":")
    argument = ":".join(part for part in rest if "=" not in part)
    if head == FILE:
        return _parse_model(text, head, *_own_path(rest))
    # one rule for a name of both: with a checkpoint's name it is the checkpoint, else the method
    if head not in STUDENTS and head in families() and (argument or head not in METHODS):
        return _parse_model(text, head, *(rest or [""]))
    options = _options(rest, text)
    if head in (*STUDENTS, *METHODS) and "" in rest:
        raise FewstepError(f"nothing follows a colon in {text!r}: options are written {head}:key=value,key=value")
    if head in STUDENTS and not argument:
        entry = STUDENTS[head]
        return Spec(text, SOLVER, head, entry.target, entry.options | options, entry)
    if head in METHODS and not argument:
        return Spec(text, TRAINED, head, METHODS[head].target, options, METHODS[head])
    if head == "diffusers" and argument:
        target = "students.solvers.diffusers_adapter:DiffusersStudent"
        return Spec(text, SCHEDULER, head, target, {"scheduler": argument} | options)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == head and not argument:
            return Spec(text, OBJECT, head, point.value, options)
    if head.endswith(".py") or ("/" in head and Path(f"{head}.py").is_file()):
        module = Path(head).name.removesuffix(".py")
        raise FewstepError(f"{text!r} names a file: write {module}:{argument or 'NAME'} in the folder of {module}.py")
    if "/" in head or Path(head).suffix in CHECKPOINT_SUFFIXES:
        own = f"{FILE}:{text}" if argument else f"{FILE}:{text}:heun"
        raise FewstepError(f"{text!r} is a path, not a student: for a checkpoint of one's own write {own}")
    if argument and head in (*STUDENTS, *METHODS):
        raise FewstepError(f"cannot read {argument!r} in {text!r}: options are written {head}:key=value,key=value")
    if argument:
        return Spec(text, OBJECT, head, f"{head}:{argument}", options)
    forms = ["diffusers:<SchedulerClass>", "package.module:attribute", "<family>:<checkpoint>", "file:<path>:<solver>"]
    raise unknown("student", head, [*STUDENTS, *METHODS, *forms])


def _own_path(parts: list[str]) -> list[str]:
    """The parts after `file:`, the path as the first: the longest that is there, else what looks like one.

    A path goes at least to the last part before the solver that ends as a checkpoint does, even where a folder is
    called like its beginning.
    """
    solvers = (*STUDENTS, *METHODS, *SAMPLERS, "diffusers")
    before = next((n for n, part in enumerate(parts) if n and part in solvers), len(parts))
    named = [n for n, part in enumerate(parts[:before], 1) if Path(part).suffix in CHECKPOINT_SUFFIXES]
    possible = range(len(parts), max(named, default=1) - 1, -1)
    there = [n for n in possible if Path(":".join(parts[:n])).expanduser().exists()]
    length = [*there, *named, before][0]
    return [":".join(parts[:length]), *parts[length:]]


def _parse_model(text: str, family: str, name: str, *rest: str) -> Spec:
    """Read `family:name[:solver][:options]`."""
    from students.models.cards import FILE, load_card

    if family == FILE and not name:
        raise FewstepError(f"{text!r} names no checkpoint: write {FILE}:PATH:heun")
    model = f"{family}:{name}"
    card = None if family == FILE else load_card(model)
    own = None if card is None else card.solver or CONSISTENCY
    solver, options = (rest[0], rest[1:]) if rest and "=" not in rest[0] else (own, rest)
    if solver is None:
        missing = "" if Path(name).expanduser().exists() else f"there is no {name!r}, and "
        raise FewstepError(f"{missing}{text!r} names no solver: write {model}:heun, or {model}:{CONSISTENCY}")
    if card and card.levels and (solver != own or (options and card.kind == "generator")):
        raise FewstepError(f"{model} is a {card.kind}, which samples by itself: write {model}, without a solver")
    if solver in SAMPLERS:
        entry = SAMPLERS[solver]
        inner = Spec(text, SOLVER, solver, entry.target, _options(options, text), entry)
    else:
        inner = parse(":".join([solver, *options]))
    if inner.kind == TRAINED:
        raise FewstepError(f"{text!r}: {solver} has a network of its own; name it alone, or train it on that teacher")
    if inner.model:
        raise FewstepError(f"{text!r} names two models: a solver follows the first")
    own_options = card.options or {} if card and solver == own else {}
    return replace(inner, name=text, options=own_options | inner.options, model=model)


def _options(parts: Iterable[str], text: str) -> dict:
    """The options of a spec, of those of its parts that hold `key=value,key=value`; lists are in brackets."""
    assignments = (a for part in parts if "=" in part for a in re.split(r",(?![^\[]*\])", part))
    return parse_assignments(assignments, repr(text), texts=("weights",))


def import_object(target: str):
    """The object named by `package.module:attribute`. The current folder is searched too.

    Raises FewstepError if the module or the attribute is not there, or importing the module fails.
    """
    module_name, _, attribute = target.partition(":")
    if "/" in module_name or module_name.startswith(".") or module_name.endswith(".py"):
        name = Path(module_name).name.removesuffix(".py")
        raise FewstepError(f"{target!r} names no module: write {name}:{attribute} in the folder of {name}.py")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            from students.models.cards import families

            close = difflib.get_close_matches(module_name, {*STUDENTS, *METHODS, *families()} - {module_name}, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise FewstepError(
                f"cannot import {module_name!r} of {target!r}: no module {error.name!r} in the current folder "
                f"or among the installed packages{hint}"
            ) from error
        raise FewstepError(f"cannot import {module_name!r} of {target!r}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:  # whatever its code raises
        raise FewstepError(f"cannot import {module_name!r} of {target!r}: {one_line(error)}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise FewstepError(f"module {module_name!r} has no attribute {attribute!r}") from error
