"""Weights as training code saves them: under prefixes, in dictionaries, several times over, in several formats."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import students
from students.errors import WeightsError
from students.models.checkpoints.contents import FAMILIES, find_weights
from students.models.checkpoints.convert import convert, load_checkpoint, load_converted
from tests.students.models.checkpoints import edm_pickles as made
from tests.students.models.checkpoints.edm_pickles import DDPMPP, Global, edm_pickle, make_weights

WEIGHTS = make_weights("SongUNet", DDPMPP, 0)
PREFIXES = ("module", "_orig_mod", "net", "ema", "model", "unet", "student")


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def same(state, expected):
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


# What is found


@pytest.mark.parametrize("family", FAMILIES)
@given(parts=st.lists(st.sampled_from(PREFIXES), max_size=5), split=st.integers(0, 5), counters=st.booleans())
def test_prefixes_and_dictionaries_in_any_order(family, parts, split, counters):
    state = {name: torch.ones(2, 3) for name in (*FAMILIES[family], "inner.part.bias")}
    content = under("".join(f"{part}." for part in parts[split:]), state)
    for part in reversed(parts[:split]):
        content = {part: content}
    if counters:
        content = content | {"step": 10, "num_updates": torch.tensor(3), "optimizer": {"state": {0: torch.ones(3)}}}
        content |= {"args": None, "model_ema.decay": torch.tensor(0.5)}
    assert find_weights(content, "net.pt", *FAMILIES)[0] == family
    assert same(find_weights(content, "net.pt", *FAMILIES)[1], state)


@pytest.mark.parametrize("inside", ["_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_of_parts(inside):
    wrapped = {name.replace("enc.", f"enc.{inside}."): tensor for name, tensor in WEIGHTS.items()}
    assert same(find_weights(under("module.", wrapped), "net.pt", "edm")[1], WEIGHTS)


@pytest.mark.parametrize("average", ["ema", "model_ema", "ema_0.9999", "EMA", "swa", "averaged_model"])
def test_the_averaged_weights_are_taken_and_said(capsys, average):
    other = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    for content in ({"model": other, average: WEIGHTS}, under("model.", other) | under(f"{average}.", WEIGHTS)):
        assert same(find_weights(content, "net.pt", "edm")[1], WEIGHTS)
        note = capsys.readouterr().err
        assert note.startswith("note: ") and f"{average!r} are taken" in note and note.count("\n") == 1
    find_weights({average: WEIGHTS}, "net.pt", "edm")
    assert capsys.readouterr().err == ""


def test_weights_of_an_average_within_an_average():
    other = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    content = {"ema": under("ema_model.", WEIGHTS) | under("online_model.", other)}
    assert same(find_weights(content, "net.pt", "edm")[1], WEIGHTS)


# What is refused


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "holds no weights by name"),
        ([1, 2], "holds no weights by name"),
        ({"state": {0: {"exp_avg": torch.ones(3)}}}, "of another kind, the state of an optimiser"),
        ({"unet.emb_noise.weight": torch.ones(3)}, "of another kind, an EDM2 network"),
        ({"x_embedder.proj.weight": torch.ones(3)}, "of another kind, a DiT"),
        ({"fc.weight": torch.ones(3)}, "no state dict of a known network: it holds 'fc.weight'"),
        ({"a": WEIGHTS, "b": WEIGHTS}, "several networks .'a', 'b'."),
        ({"model": WEIGHTS, "ema_1": WEIGHTS, "ema_2": WEIGHTS}, "several networks .'ema_1', 'ema_2'."),
        (WEIGHTS | {"map_layer0.bias": torch.tensor([float("nan")])}, "'map_layer0.bias' that are not finite"),
    ],
)
def test_what_else_is_there_is_named(content, message):
    with pytest.raises(WeightsError, match=f"net.pt .*{message}") as error:
        find_weights(content, "net.pt", "edm", "openai")
    assert "\n" not in str(error.value)


# Formats


def save(state, path, form):
    if form == "index":
        names = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(state)}
        for file in set(names.values()):
            save_file({name: state[name].contiguous() for name in state if names[name] == file}, path.parent / file)
        path = path.with_suffix(".safetensors.index.json")
        path.write_text(json.dumps({"weight_map": names}))
    elif form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "index"])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".PTH", ""])
def test_every_format_is_read_and_converted(tmp_path, form, suffix):
    path = save(under("module.model.", WEIGHTS), tmp_path / f"net{suffix}", form)
    expected = {f"network.{name}": tensor for name, tensor in WEIGHTS.items()}
    assert same(load_checkpoint(path).state_dict(), expected)
    assert same(load_converted(convert(path, tmp_path / "out.safetensors")).state_dict(), expected)
    assert students.load(f"file:{path}:heun").sample(1, seeds=[0]).isfinite().all()


def test_filters_that_were_not_saved(tmp_path):
    torch.save({name: tensor for name, tensor in WEIGHTS.items() if "filter" not in name}, tmp_path / "net.pt")
    assert same(load_checkpoint(tmp_path / "net.pt").network.state_dict(), WEIGHTS)


def test_the_state_of_edm_s_training(tmp_path):
    with made.modules_with([made.PERSISTENT, made.NUMPY_SCALAR]):
        arguments = DDPMPP | {"in_channels": 3, "out_channels": 3, "label_dim": 0}
        model = made.tree(WEIGHTS, "", "", _init_args=(), _init_kwargs=arguments)
        model.arguments[0]["class_name"] = "SongUNet"
        net = made.persistent("EDMPrecond", made.module_state(modules={"model": model}, sigma_data=0.4), "")
        torch.save({"net": net, "optimizer_state": {"state": {}}}, tmp_path / "training-state.pt")
        hidden = Global("os.system", f"touch {tmp_path / 'executed'}")
        torch.save({"net": net, "hidden": hidden}, tmp_path / "attack.pt")
    denoiser = load_checkpoint(tmp_path / "training-state.pt")
    assert same(denoiser.network.state_dict(), WEIGHTS) and denoiser.sigma_data == 0.4
    with pytest.raises(students.FewstepError, match="could run code"):
        load_checkpoint(tmp_path / "attack.pt")
    assert not (tmp_path / "executed").exists()


def test_a_class_around_another_network_is_named(tmp_path):
    with made.modules_with([made.PERSISTENT]):
        transformer = made.persistent("DiT", made.module_state(parameters={"gain": torch.ones(1)}), "")
        net = made.persistent("Precond", made.module_state(modules={"transformer": transformer}), "")
    (tmp_path / "net.pkl").write_bytes(made.dump({"ema": net, "encoder": None}))
    with pytest.raises(students.FewstepError, match="of another kind, Precond around DiT: only EDM's and EDM2's own"):
        load_checkpoint(tmp_path / "net.pkl")


@pytest.mark.parametrize("dropout, refused", [(0.0, True), (0.1, False)])
def test_guidance_needs_label_dropout(tmp_path, dropout, refused):
    path = tmp_path / "a:b,c=d.pkl"
    arguments = DDPMPP | {"label_dropout": dropout}
    path.write_bytes(edm_pickle("SongUNet", arguments, make_weights("SongUNet", DDPMPP, 3), 3))
    for file in (path, convert(path, tmp_path / "net.safetensors")):
        student = students.load(f"file:{file}:heun")
        student.check(1, 1.0)
        if refused:
            with pytest.raises(students.FewstepError, match="without label dropout"):
                student.check(1, 2.0)
        else:
            student.check(1, 2.0)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("file:x.pt", "there is no 'x.pt'"),
        ("file:run:3,lr=1e-4/net.pkl", "there is no 'run:3,lr=1e-4/net.pkl'"),
        ("file:run:3,lr=1e-4/net.pkl:heun", "no checkpoint at run:3,lr=1e-4/net.pkl"),
        ("./net.pkl", "is a path, not a student: .* write file:./net.pkl:heun"),
        ("net.pt:heun", "write file:net.pt:heun"),
    ],
)
@pytest.mark.parametrize("folder", ["run", "other"])
def test_paths_that_are_not_there(spec, message, folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(students.FewstepError, match=message):
        students.load(spec)
