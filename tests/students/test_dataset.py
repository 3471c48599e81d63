"""Data of one's own: what is unambiguous is converted, everything else is refused by name."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from students.data import Dataset, Split, load_data
from students.dataset import checked
from students.errors import FewstepError

RNG = np.random.default_rng(0)
IMAGES = [torch.from_numpy(RNG.integers(0, 256, (n, 1, 6, 6), dtype=np.uint8)) for n in (5, 4)]
LABELS = [torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 0, 1, 0])]
VECTORS = [torch.randn(5, 2), torch.randn(4, 2)]


def dataset(samples=IMAGES, labels=LABELS, classes=3) -> Dataset:
    return Dataset(*map(Split, samples, labels or [None, None]), classes=classes)


def each(change, values):
    return [change(value) for value in values]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x, lambda x: x.numpy(), lambda x: x / 127.5 - 1, lambda x: (x / 127.5 - 1).numpy(),
        lambda x: (x / 127.5 - 1).double(), lambda x: x[:, :, :, :].transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: (x / 127.5 - 1).numpy().astype(">f4"), lambda x: np.asfortranarray(x.numpy()),
    ],
)  # fmt: skip
def test_one_data_set_in_many_forms(change):
    data = checked(dataset(each(change, IMAGES), [LABELS[0].tolist(), LABELS[1].numpy().astype(np.uint8)]), "mine")
    for split, images, labels in zip((data.train, data.heldout), IMAGES, LABELS, strict=True):
        assert split.samples.dtype == torch.uint8 and split.samples.equal(images) and split.labels.equal(labels)


@pytest.mark.parametrize(
    ("given", "kept"), [(torch.float16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2]
)
def test_vectors_keep_their_values_and_labels_may_be_missing(given, kept):
    vectors = [rows.to(given) for rows in VECTORS]
    data = checked(dataset(vectors, None, None), "mine")
    assert data.train.samples.equal(vectors[0].to(kept)) and data.train.samples.dtype == kept
    assert data.train.labels is None
    assert checked(dataset(classes=None), "mine").train.labels is None


def test_a_half_sorted_by_class_is_shuffled():
    labels = torch.arange(100) // 10
    images = [torch.arange(k, 100 + k, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 6, 6) for k in (0, 1)]
    data = checked(dataset(images, [labels, labels.flip(0)], 10), "mine")
    for split, k in ((data.train, 0), (data.heldout, 1)):
        assert all(split.labels[:n].bincount(minlength=10).eq(n // 10).all() for n in (20, 50, 100))
        seen = split.samples[:, 0, 0, 0].long() - k
        assert split.labels.equal((seen if not k else 99 - seen) // 10)


WRONG_SAMPLES = {
    "from 0 to 1": lambda x: (x == x.max()).float(),
    "from 0 to 255": lambda x: torch.where(x == x.max(), 255.0, 0.0),
    "got torch.int64": lambda x: x.long(),
    "got torch.bool": lambda x: x > 9,
    "hold NaN": lambda x: torch.where(x == x.max(), torch.nan, x / 127.5 - 1),
    "infinite": lambda x: torch.where(x == x.max(), torch.inf, x / 127.5 - 1),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "images or .* vectors": lambda x: x[:, 0],
    "nothing above 1": lambda x: x % 2,
    "at least two samples": lambda x: x[:1],
    "needed, got shape": lambda x: x[:, :, :0],
    "got list": lambda x: x.tolist(),
    "got NoneType": lambda x: None,
    "must be numbers": lambda x: x.numpy().astype(str),
    "got Tensor": lambda x: x.to(torch.complex64),
    "vectors must be floats": lambda x: x.flatten(1),
}
WRONG_LABELS = {
    "one-hot": lambda y: torch.eye(3)[y],
    "got fractions": lambda y: y.double(),
    "got truth values": lambda y: y > 0,
    "0 to 2, got 3": lambda y: y + 1,
    "got -1 to": lambda y: y - 1,
    "as many labels": lambda y: y[1:],
    "needs labels": lambda y: None,
    "got text": lambda y: [str(label) for label in y.tolist()],
}


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("message", WRONG_SAMPLES)
def test_wrong_samples_are_refused_by_name(message, half):
    samples = [WRONG_SAMPLES[message](x) if i == half else x for i, x in enumerate(IMAGES)]
    with pytest.raises(FewstepError, match=f"^mine, {['train', 'heldout'][half]}: .*{message}"):
        checked(dataset(samples), "mine")


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("message", WRONG_LABELS)
def test_wrong_labels_are_refused_by_name(message, half):
    labels = [WRONG_LABELS[message](y) if i == half else y for i, y in enumerate(LABELS)]
    with pytest.raises(FewstepError, match=f"^mine, {['train', 'heldout'][half]}: .*{message}"):
        checked(dataset(labels=labels), "mine")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dataset(Split(IMAGES[0]), None), "heldout: must be a students.data.Split"),  # type: ignore[arg-type]
        (Dataset(Split(IMAGES[0]), Split(IMAGES[0])), "the held-out half is the training half"),
        (Dataset(Split(IMAGES[0]), Split(IMAGES[1][:, :, :5])), "one shape"),
        (Dataset(Split(IMAGES[0]), Split(VECTORS[1])), "one shape"),
        (dataset(classes=0), "classes must be"),
        (dataset(classes=3.0), "classes must be"),
        (IMAGES, "is a list, no"),
        (None, "is a NoneType, no"),
    ],
)
def test_wrong_data_sets(data, message):
    with pytest.raises(FewstepError, match=message):
        checked(data, "mine")


ARRAYS = st.builds(
    lambda dtype, shape, low, high: np.random.default_rng(0).uniform(low, high, shape).astype(dtype),
    st.sampled_from(["u1", "i1", "u2", "i4", "i8", "f2", "f4", "f8", ">f4", "?", "c8", "U3", "O"]),
    st.lists(st.integers(0, 4), max_size=5).map(tuple),
    st.sampled_from([-300.0, -1.0, 0.0]),
    st.sampled_from([0.0, 1.0, 16.0, 255.0, np.nan, np.inf]).map(lambda high: 2.0 if not np.isfinite(high) else high),
)


@settings(max_examples=300, deadline=None)
@given(ARRAYS, ARRAYS, st.none() | st.integers(-1, 4), st.booleans())
def test_whatever_is_given_is_taken_or_refused_in_one_line(samples, labels, classes, as_tensor):
    if as_tensor and samples.dtype.kind in "uif" and samples.dtype.isnative and samples.dtype != np.uint16:
        samples = torch.from_numpy(samples)
    other = samples if not samples.ndim else samples[1:] if as_tensor else samples[::-1]
    try:
        data = checked(Dataset(Split(samples, labels), Split(other, labels), classes), "mine")
    except FewstepError as error:
        assert "\n" not in str(error) and str(error).startswith("mine")
        return
    float64 = str(samples.dtype).endswith("float64")
    assert data.train.samples.dtype in (
        (torch.float64,) if float64 and samples.ndim == 2 else (torch.uint8, torch.float32)
    )


# Files


def written(folder, size=(6, 6), mode="L", classes=("cat", "dog"), halves=("train", "test")):
    for k, half in enumerate(halves):
        for c, name in enumerate(classes or [""]):
            (folder / half / name).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                pixels = np.full(shape, 40 * k + 20 * c + 4 * i + 5, np.uint8)
                Image.fromarray(pixels, mode=None).save(folder / half / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_of_images(tmp_path, mode, channels):
    data = load_data(f"folder:{written(tmp_path, (5, 7), mode)}")
    assert data.classes == 2 and data.train.samples.shape == (4, channels, 7, 5)
    found = [
        sorted(zip(split.labels.tolist(), split.samples[:, 0, 0, 0].tolist(), strict=True))
        for split in (data.train, data.heldout)
    ]
    assert found == [[(0, 5), (0, 9), (1, 25), (1, 29)], [(0, 45), (0, 49), (1, 65), (1, 69)]]


def test_a_folder_without_classes(tmp_path):
    data = load_data(f"folder:{written(tmp_path, classes=None, halves=('train', 'heldout'))}")
    assert data.classes is None and data.train.labels is None and len(data.train.samples) == 2


def spoiled(folder, how):
    target = folder / "train" / "cat" / "1.png"
    if how == "cut":
        target.write_bytes(target.read_bytes()[:40])
    elif how == "palette":
        Image.new("P", (6, 6)).save(target)
    elif how == "alpha":
        Image.new("RGBA", (6, 6)).save(target)
    elif how == "deep":
        Image.new("I;16", (6, 6)).save(target)
    elif how == "size":
        Image.new("L", (7, 6)).save(target)
    elif how == "colour":
        Image.new("RGB", (6, 6)).save(target)
    elif how == "stray":
        Image.new("L", (6, 6)).save(folder / "train" / "2.png")
    elif how == "class":
        (folder / "train" / "cow").mkdir()
    elif how == "empty":
        for path in folder.rglob("train/*/*.png"):
            path.unlink()
    elif how == "half":
        (folder / "test").rename(folder / "other")
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "1.png is no image, or is damaged"), ("palette", "1.png is of mode P"), ("alpha", "mode RGBA"),
        ("deep", "mode I;16"), ("size", "1.png is 7 x 6"), ("colour", "3 channels"), ("stray", "beside the folders"),
        ("class", "same classes"), ("empty", "no image in it"), ("half", "must hold the folders train and heldout"),
    ],
)  # fmt: skip
def test_spoiled_folders(tmp_path, how, message):
    with pytest.raises(FewstepError, match=message):
        load_data(f"folder:{spoiled(written(tmp_path), how)}")


@pytest.mark.parametrize("last", [False, True])
def test_an_archive(tmp_path, last):
    samples = each(lambda x: (x.permute(0, 2, 3, 1) if last else x).numpy(), IMAGES)
    arrays = dict(zip(("train", "heldout"), samples, strict=True))
    arrays |= dict(zip(("train_labels", "heldout_labels"), each(torch.Tensor.numpy, LABELS), strict=True))
    np.savez(tmp_path / "mine.npz", **arrays)
    data = load_data(f"npz:{tmp_path / 'mine.npz'}")
    assert data.classes == 3 and data.train.samples.equal(IMAGES[0]) and data.heldout.labels.equal(LABELS[1])


def test_wrong_archives(tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(FewstepError, match="no such file"):
        load_data(f"npz:{path}")
    path.write_bytes(b"not an archive")
    with pytest.raises(FewstepError, match="no archive of numpy, or is cut short"):
        load_data(f"npz:{path}")
    np.savez(path, a=np.zeros(3))
    with pytest.raises(FewstepError, match=r"holds \['a'\]"):
        load_data(f"npz:{path}")
    np.savez(path, train=np.array([object()]), heldout=np.zeros((2, 2)))
    with pytest.raises(FewstepError, match="no archive of numbers"):
        load_data(f"npz:{path}")
    np.savez(path, train=IMAGES[0], heldout=IMAGES[1], train_labels=np.zeros(5))
    with pytest.raises(FewstepError, match="train_labels must be whole numbers"):
        load_data(f"npz:{path}")
    np.savez(path, train=IMAGES[0], heldout=IMAGES[1])
    content = path.read_bytes()
    for cut in range(0, len(content), 40):
        path.write_bytes(content[:cut])
        with pytest.raises(FewstepError):
            load_data(f"npz:{path}")
