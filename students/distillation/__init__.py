"""Distillation: one file a method, which says what it trains, what an update minimises, and how the result samples.

students/distillation/method.py says what a method is; METHODS of students/registry.py lists them.
`python -m students train METHOD --task TASK` trains one, and `students.load(METHOD, task=TASK)` samples from what was
trained: the weights of a stage are `<folder>/METHOD.safetensors` or `METHOD-STAGE.safetensors`, each with its record.
Importing this module imports no torch.
"""

from pathlib import Path

from students.errors import WeightsError


def stage_file(folder: Path, method: str, stage: str) -> Path:
    """Where the weights of a stage lie."""
    return Path(folder) / f"{method}{stage and '-'}{stage}.safetensors"


def weights_files(folder: Path, method: str, task: str) -> dict[str, Path]:
    """The weights of a trained method by stage; raises WeightsError where there are none."""
    folder = Path(str(folder)).expanduser()
    single = stage_file(folder, method, "")
    if single.is_file():
        return {"": single}
    found = {path.stem.removeprefix(f"{method}-"): path for path in sorted(folder.glob(f"{method}-*.safetensors"))}
    if not found:
        raise WeightsError(
            f"no weights of {method} in {folder}: train it (python -m students train {method} --task {task}), "
            f"or say where they are ({method}:weights=FOLDER)"
        )
    return found
