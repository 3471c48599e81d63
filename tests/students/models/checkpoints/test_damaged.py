"""Files that are cut, altered or full of something else: a denoiser or one line that names the file, no traceback."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from students.errors import FewstepError
from students.models.checkpoints.convert import convert
from students.models.public import load_model
from students.models.weights import record_path
from tests.students.models.checkpoints import edm2_pickles, test_diffusers_folder
from tests.students.models.checkpoints.edm_pickles import DDPMPP, edm_pickle, make_weights

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = make_weights("SongUNet", DDPMPP, 3)
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]
examples = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
nothing = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(nothing, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))
alterations = st.lists(
    st.tuples(st.sampled_from(["cut", "flip", "insert", "zero"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def read(path: Path) -> None:
    """Raise unless the path is read as a teacher, or refused in one line."""
    try:
        load_model(f"file:{path}")
    except FewstepError as error:
        assert "\n" not in str(error) and len(str(error)) < 700, str(error)
        assert path.stem in str(error), str(error)


def altered(content: bytes, changes) -> bytes:
    for kind, where, byte in changes:
        at = int(where * len(content))
        middle = {"cut": b"", "flip": bytes([byte]), "insert": bytes([byte] * 8), "zero": bytes(16)}[kind]
        after = {"cut": len(content), "flip": at + 1, "insert": at, "zero": at + 16}[kind]
        content = content[:at] + middle + content[after:]
    return content


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A file of each format."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "edm.pkl").write_bytes(edm_pickle("SongUNet", DDPMPP, WEIGHTS, 3))
    weights = edm2_pickles.make_weights(edm2_pickles.EDM2, 0)
    (folder / "edm2.pkl").write_bytes(edm2_pickles.edm2_pickle(edm2_pickles.EDM2, weights))
    torch.save({"ema": dict(WEIGHTS), "step": 3}, folder / "zip.pt")
    torch.save(dict(WEIGHTS), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(dict(WEIGHTS), folder / "net.safetensors")
    convert(folder / "edm.pkl", folder / "converted.safetensors")
    return {path.name: path for path in folder.iterdir() if path.suffix != ".json"}


@pytest.mark.parametrize(
    "name", ["edm.pkl", "edm2.pkl", "zip.pt", "legacy.pt", "net.safetensors", "converted.safetensors"]
)
@examples
@given(changes=alterations)
def test_altered_bytes(tmp_path, files, name, changes):
    path = tmp_path / name
    path.write_bytes(altered(files[name].read_bytes(), changes))
    if record_path(files[name]).is_file():
        shutil.copy(record_path(files[name]), tmp_path)
    read(path)


@examples
@given(data=st.data())
def test_state_dicts_of_anything(tmp_path, data):
    state: dict = dict(WEIGHTS)
    for name in data.draw(st.lists(st.sampled_from(sorted(WEIGHTS)), max_size=3)):
        shape = data.draw(st.lists(st.integers(0, 3), max_size=5))
        value = torch.zeros(shape, dtype=data.draw(st.sampled_from([torch.float32, *DTYPES])))
        state[name] = data.draw(st.sampled_from([value, WEIGHTS[name].to(DTYPES[0]), WEIGHTS[name][..., None], None]))
        if data.draw(st.booleans()):
            state[data.draw(st.text(max_size=8))] = state.pop(name)
    for key in data.draw(st.lists(st.sampled_from(["ema", "model", "state_dict", 0, "x.y"]), max_size=3)):
        state = {key: state, "further": data.draw(anything)}
    torch.save(state, tmp_path / "net.pt")
    read(tmp_path / "net.pt")


@examples
@given(data=st.data())
def test_altered_records(tmp_path, files, data):
    """Of a converted checkpoint, and the configurations of a folder of diffusers."""
    path = tmp_path / "converted.safetensors"
    shutil.copy(files[path.name], path)
    record = json.loads(record_path(files[path.name]).read_text())
    record_path(path).write_text(json.dumps(changed(record, data)))
    read(path)
    folder = tmp_path / "diffusers"
    if not folder.is_dir():
        test_diffusers_folder.save_folder(folder)
        (folder / "whole").mkdir()
        for name in ("config.json", "scheduler_config.json"):
            shutil.copy(folder / name, folder / "whole")
    for name in ("config.json", "scheduler_config.json"):
        (folder / name).write_text(json.dumps(changed(json.loads((folder / "whole" / name).read_text()), data)))
    read(folder)


def changed(record: dict, data) -> dict:
    """The record with some of its values, at any depth, replaced or left out."""
    record = copy.deepcopy(record)
    for _ in range(data.draw(st.integers(0, 2))):
        inside, key = record, data.draw(st.sampled_from(sorted(record)))
        while isinstance(inside[key], dict) and inside[key] and data.draw(st.booleans()):
            inside, key = inside[key], data.draw(st.sampled_from(sorted(inside[key])))
        inside[key] = data.draw(anything)
        if data.draw(st.booleans()):
            del inside[key]
    return record


def test_unaltered_files_are_read(files):
    for path in files.values():
        load_model(f"file:{path}")
