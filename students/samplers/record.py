"""The records of trained students: which weights there are, what samples them, and what that cost.

The weights of a stage are `<folder>/METHOD.safetensors` or `METHOD-STAGE.safetensors`, each with its JSON record. The
keys that sampling needs are SAMPLING; the rest says how the weights came about. Importing this module imports no torch.
"""

import json
import re
from pathlib import Path

from students.errors import WeightsError, reading
from students.models.teachers import weights_folder
from students.models.weights import record_path, verified_hash
from students.networks import NETWORKS
from students.samplers import Sampler
from students.spec import Spec

SAMPLING = ("sampler", "model", "prior")
RECORDED = ("teacher", "options", "seed", "before", "evaluations", "seconds", "quality_curve")


def stage_file(folder: Path, method: str, stage: str) -> Path:
    """Where the weights of a stage lie."""
    return Path(folder) / f"{method}{stage and '-'}{stage}.safetensors"


def weights_files(folder, method: str, task: str) -> dict[str, Path]:
    """The weights of a trained method by stage, most steps first; raises WeightsError where there are none.

    folder: None for the weights that ship.
    """
    own = folder is not None
    folder = Path(str(folder)).expanduser() if own else weights_folder(task)
    single = stage_file(folder, method, "")
    if single.is_file():
        return {"": single}
    found = {path.stem.removeprefix(f"{method}-"): path for path in folder.glob(f"{method}-*.safetensors")}
    if not found:
        out = f" --out {folder}" if own else ""
        raise WeightsError(
            f"no weights of {method} in {folder}: train it (python -m students train {method} --task {task}{out}), "
            f"or say where they are ({method}:weights=FOLDER)"
        )
    if stray := [stage for stage in found if not re.fullmatch("[1-9][0-9]*", stage)]:
        raise WeightsError(f"{found[stray[0]]} is no stage of {method}: stages are named by their steps, {method}-4")
    return {stage: found[stage] for stage in sorted(found, key=int, reverse=True)}


def read_records(files: dict[str, Path], method: str, task: str) -> dict[str, dict]:
    """The records of the stages; raises WeightsError unless they are whole, of this method and task, and alike."""
    records = {}
    for stage, path in files.items():
        try:
            record = json.loads(record_path(path).read_text())
        except (OSError, ValueError) as error:
            raise WeightsError(f"{record_path(path)} cannot be read: train {method} again") from error
        if not isinstance(record, dict):
            raise WeightsError(f"{record_path(path)} is no record of weights: train {method} again")
        made = record.get("method"), record.get("task")
        if made != (method, task):
            raise WeightsError(
                f"{path} is {made[0]} of {made[1]}, not {method} of {task}: train it, or name its folder"
            )
        if lacking := [key for key in (*RECORDED, *SAMPLING) if key not in record]:
            raise WeightsError(
                f"the record of {path} lacks {lacking[0]!r}: it is not whole, or of an earlier version; "
                f"train {method} again"
            )
        if record.get("stage", stage) != stage:
            raise WeightsError(f"{path} is stage {record['stage']!r} of {method}, not {stage!r}: give it its name back")
        records[stage] = record
    first = next(iter(records.values()))
    for key in ("teacher", "options", "seed"):
        if any(record[key] != first[key] for record in records.values()):
            folder = next(iter(files.values())).parent
            raise WeightsError(f"the stages of {method} in {folder} differ in {key}: train it again")
    return records


def stage_sampler(record: dict) -> Sampler:
    return Sampler(record["sampler"]["name"], record["sampler"]["options"])


def trained_identity(spec: Spec, task: str) -> tuple[dict, list[str]]:
    """What the samples of a trained student depend on, and the modules whose code samples.

    That is the hash of each stage's weights, what its record says of model and sampler, and the options of the spec;
    nothing of how it was trained. task: the name of the teacher it was distilled from. Raises WeightsError.
    """
    options = dict(spec.options)
    files = weights_files(options.pop("weights", None), spec.head, task)
    records = read_records(files, spec.head, task)
    stages, modules = {}, set()
    for stage, record in records.items():
        stages[stage] = {"weights": verified_hash(files[stage])} | {key: record[key] for key in SAMPLING}
        with reading(record_path(files[stage]), "record of a student"):
            network = record["model"].get("network", record["model"])["kind"]
            modules |= {stage_sampler(record).target.partition(":")[0], NETWORKS[network].partition(":")[0]}
    return {"stages": stages, "options": options}, sorted(modules)


def training_cost(records: list[dict]) -> dict:
    """What the stages of a method and what went before cost.

    evaluations: of networks, teacher's and all players'. relative: to those of the teacher's own training, None where
    that is not known. seconds. curve: pairs of evaluations spent and the energy distance then, all stages joined.
    feature_spaces: the names of those that any stage was trained against. straightness: of the student's flow, for
    methods that report it. repeats: what other training seeds came to, where that was measured (bench/trials.py).
    """
    before, teacher = records[0]["before"], records[0]["teacher"]["evaluations"]
    evaluations, curve = before["evaluations"], []
    for record in records:
        spent = dict(record["evaluations"])
        evaluations += spent.pop("pairs", 0)
        curve += [(evaluations + then, value) for _, then, value in record["quality_curve"]]
        evaluations += sum(spent.values())
    cost = {
        "evaluations": evaluations,
        "relative": evaluations / teacher if teacher else None,
        "seconds": round(before["seconds"] + sum(record["seconds"] for record in records), 1),
        "curve": curve,
        "feature_spaces": sorted({name for record in records for name in record.get("feature_spaces", [])}),
    }
    return cost | {key: records[-1][key] for key in ("straightness", "repeats") if key in records[-1]}
