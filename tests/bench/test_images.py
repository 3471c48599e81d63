"""Images that are brought: every container gives the same pixels, and what cannot be read in one way is refused."""

import io
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.images import Rule, open_images
from students.errors import FewstepError

N, SIDE = 7, 6
FLOATS = Rule(limits=(-1, 1))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 (N, H, W, C)."""
    return np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)


def png(pixels, kind="PNG", mode=None, **options) -> bytes:
    content = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)).save(content, kind, **options)
    return content.getvalue()


def folder(path, pixels, nested=True):
    for i, image in enumerate(pixels):
        place = path / (f"part{i // 3}" if nested else "") / f"{i:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(image))
    return path


def one(tmp_path, content: bytes, name="odd.png"):
    """The image of a file that lies beside a plain one."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.png").write_bytes(png(np.full((SIDE, SIDE, 3), 200, np.uint8)))
    images = open_images(tmp_path, Rule())
    assert images.content
    return next(images.batches(2))[0].numpy()


def containers(tmp_path, pixels):
    first = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    folder(tmp_path / "folder", pixels)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i, image in enumerate(pixels):
            archive.writestr(f"deep/er/{i:03d}.png", png(image))
        archive.writestr("__MACOSX/._000.png", b"no image")
    np.savez(tmp_path / "adm.npz", pixels, np.arange(N))
    np.savez_compressed(tmp_path / "first.npz", first.numpy())
    np.save(tmp_path / "x.npy", pixels)
    torch.save(first, tmp_path / "x.pt")
    torch.save({"images": first}, tmp_path / "dict.pth")
    save_file({"x": first}, tmp_path / "x.safetensors")
    save_file({"x": first.float() / 127.5 - 1}, tmp_path / "floats.safetensors")
    torch.save(first.double() / 255, tmp_path / "unit.pt")
    rules = {"floats.safetensors": FLOATS, "unit.pt": Rule(limits=(0, 1))}
    return [(path, rules.get(path.name, Rule())) for path in sorted(tmp_path.iterdir())]


def test_every_container_gives_the_same_content(tmp_path, pixels):
    found = {path.name: open_images(path, rule) for path, rule in containers(tmp_path, pixels)}
    assert len(found) == 10
    for name, images in found.items():
        assert images.content.count == N and images.content.shape == (3, SIDE, SIDE), name
        for size in (2, 3, N + 1):
            batches = list(images.batches(size))
            assert max(map(len, batches)) <= size
            assert torch.equal(torch.cat(batches).permute(0, 2, 3, 1), torch.from_numpy(pixels)), name
    assert len({images.content.hash for images in found.values()}) == 1


def test_the_hash_is_of_the_pixels_and_their_order(tmp_path, pixels):
    changed = pixels.copy()
    changed[3, 0, 0, 0] ^= 1
    hashes = set()
    for name, values in {"a": pixels, "b": changed, "c": pixels[::-1], "d": pixels[:-1]}.items():
        np.save(tmp_path / f"{name}.npy", values)
        hashes.add(open_images(tmp_path / f"{name}.npy", Rule()).content.hash)
    assert len(hashes) == 4


def test_what_is_converted_follows_the_rule(tmp_path, pixels):
    image, grey = pixels[0], pixels[0, :, :, 0]
    opaque = np.dstack([image, np.full((SIDE, SIDE), 255, np.uint8)])
    palette = Image.fromarray(image).quantize(8)
    for content, expected in [
        (png(image), image),
        (png(grey), grey[..., None].repeat(3, 2)),
        (png(opaque), image),
        (png(palette), np.asarray(palette.convert("RGB"))),
        (png(Image.fromarray(grey > 99)), ((grey > 99) * np.uint8(255))[..., None].repeat(3, 2)),
        (png(image, "WEBP", lossless=True), image),
    ]:
        assert np.array_equal(one(tmp_path, content).transpose(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: png(np.dstack([p, p[:, :, :1]])), "odd.png has transparent pixels"),
        (lambda p: png(p[:, :, 0].astype(np.uint16) * 257), "odd.png has 16 bits a channel"),
        (lambda p: png(Image.fromarray(p).convert("CMYK"), "JPEG"), "odd.png is of mode CMYK"),
        (lambda p: png(p)[:60], "odd.png is no image, or is damaged"),
        (lambda p: b"text", "odd.png is no image, or is damaged"),
        (lambda p: png(p[:-1]), f"odd.png is {SIDE} x {SIDE - 1}, most are|z.png is {SIDE} x {SIDE}, most are"),
        (
            lambda p: png(Image.fromarray(p), save_all=True, append_images=[Image.fromarray(p[::-1].copy())]),
            "odd.png has 2 frames",
        ),
    ],
)
def test_what_is_refused_is_named(make, message, tmp_path, pixels):
    with pytest.raises(FewstepError, match=f"^1 of 2 images of .* cannot be taken: ({message})"):
        one(tmp_path, make(pixels[0]))


def test_sixteen_bits_of_colour_are_not_cut_to_eight(tmp_path):
    """Pillow opens such a PNG as 8-bit RGB and drops the rest."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(content)).mode == "RGB"
    with pytest.raises(FewstepError, match=r"odd.png has 16 bits a channel: convert it to 8"):
        one(tmp_path, content)


def test_all_that_is_wrong_is_counted(tmp_path, pixels):
    folder(tmp_path, pixels, nested=False)
    for i in range(5):
        (tmp_path / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(FewstepError, match=r"^5 of 12 images of .*bad0.png .*; bad1.png .*; bad2.png .*; and 2 more$"):
        assert open_images(tmp_path, Rule()).content


def test_others_are_left_out_and_counted(tmp_path, pixels):
    folder(tmp_path, pixels)
    (tmp_path / "labels.txt").write_text("3")
    (tmp_path / ".hidden.png").write_text("")
    images = open_images(tmp_path, Rule())
    assert images.content.count == N and images.left_out == 1


@pytest.mark.parametrize(
    ("values", "rule", "message"),
    [
        (np.zeros((4, 3, 8, 3), np.uint8), Rule(), r"of shape \(4, 3, 8, 3\), which could be \(N, C, H, W\) or"),
        (np.zeros((4, 8, 8, 4), np.uint8), Rule(), "1 channel or 3, first or last, and no alpha"),
        (np.zeros((4, 8, 8), np.uint8), Rule(), r"images are \(N, H, W, C\) or"),
        (np.zeros((0, 8, 8, 3), np.uint8), Rule(), "holds 0 images: at least two"),
        (np.zeros((4, 8, 8, 3), np.int64), Rule(), "holds int64: images must be uint8 from 0 to 255, or floats"),
        (np.zeros((4, 8, 8, 3), np.float32), Rule(), "whose range nobody has stated: say it with --range"),
        (np.zeros((4, 8, 8, 3), np.uint8), FLOATS, "holds uint8, which go from 0 to 255: leave --range out"),
        (np.ones((4, 8, 8, 3), np.uint8), Rule(), "these hold nothing above 1"),
        (np.full((4, 8, 8, 3), np.nan), FLOATS, "holds NaN or infinite values"),
        (np.linspace(0, 255, 768).reshape(4, 8, 8, 3), FLOATS, "from 0 to 255, outside the stated range of -1 to 1"),
        (np.linspace(0, 1, 768).reshape(4, 8, 8, 3), FLOATS, "nothing below 0, .*say --range 0 1"),
        (np.zeros((4, 8, 8, 3), np.uint8), Rule(channels=1), "holds images in colour, the task's are grey"),
        (np.zeros((4, 8, 8, 3), object), Rule(), "objects, which could run code"),
    ],
)
def test_arrays_that_are_refused(values, rule, message, tmp_path):
    np.savez(tmp_path / "x.npz", values)
    with pytest.raises(FewstepError, match=f"x.npz.*{message}"):
        assert open_images(tmp_path / "x.npz", rule).content


def test_files_that_are_refused(tmp_path, pixels):
    np.savez(tmp_path / "named.npz", samples=pixels)
    np.savez(tmp_path / "whole.npz", pixels)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-300])
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "two.pt")
    torch.save({"steps": 3}, tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "text.zip").write_text("text")
    (tmp_path / "text.csv").write_text("text")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "fortran.npy", np.asfortranarray(pixels))
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    for name, message in {
        "named.npz": "has no arr_0, but samples: save the images under it",
        "cut.npz": "is no archive of numpy, or is cut short",
        "two.pt": "holds 2 tensors ('a', 'b'): save the one of the images, alone",
        "none.pt": "holds no tensor",
        "text.pt": "holds no numbers that can be read without running code",
        "text.safetensors": "holds no numbers that can be read without running code",
        "text.npy": "holds no numbers that can be read without running code",
        "text.zip": "is no zip, or is cut short",
        "texts.zip": "there is no image in",
        "text.csv": "is no kind of file that holds images here",
        "empty": "there is no image in",
        "absent": "there is no",
    }.items():
        with pytest.raises(FewstepError, match=re.escape(message)):
            assert open_images(tmp_path / name, Rule()).content
    assert open_images(tmp_path / "fortran.npy", Rule()).content.count == N


def test_truncation_is_another_content(tmp_path):
    values = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    torch.save(values, tmp_path / "x.pt")
    rounded, cut = (open_images(tmp_path / "x.pt", Rule(limits=(-1, 1), rounding=r)) for r in ("round", "truncate"))
    assert rounded.content.hash != cut.content.hash
    assert torch.equal(next(cut.batches(4)), ((values + 1) * 127.5).clamp(0, 255).to(torch.uint8))


def test_resizing_is_pillows_by_name(tmp_path, pixels):
    folder(tmp_path / "files", pixels)
    np.save(tmp_path / "x.npy", pixels)
    seen = set()
    for name, by in {"box": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}.items():
        for path in (tmp_path / "files", tmp_path / "x.npy"):
            found = open_images(path, Rule(size=3, filter=name))
            assert found.content.shape == (3, 3, 3)
            for image, original in zip(torch.cat(list(found.batches(2))), pixels, strict=True):
                expected = np.asarray(Image.fromarray(original).resize((3, 3), by))
                assert np.array_equal(image.permute(1, 2, 0), expected)
        seen.add(found.content.hash)
    assert len(seen) == 2
    (tmp_path / "files" / "wide.png").write_bytes(png(np.zeros((4, 6, 3), np.uint8)))
    with pytest.raises(FewstepError, match=r"wide.png is 6 x 4: only square images are resized"):
        assert open_images(tmp_path / "files", Rule(size=3, filter="box")).content


def test_folders_behind_links_are_read_and_loops_are_no_end(tmp_path, pixels):
    folder(tmp_path / "elsewhere", pixels[:3])
    folder(tmp_path / "here", pixels[3:])
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here")
    assert open_images(tmp_path / "here", Rule()).content.count == N


def test_an_archive_that_cannot_be_read_is_named(tmp_path, pixels):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i, image in enumerate(pixels):
            archive.writestr(f"{i}.png", png(image))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(FewstepError, match=r"1 of 7 images .* cannot be taken: 0.png cannot be read \(.*Bad CRC"):
        assert open_images(tmp_path / "x.zip", Rule()).content
    with zipfile.ZipFile(tmp_path / "bare.npz", "w") as archive:
        archive.writestr("arr_0", b"0")
    with pytest.raises(FewstepError, match=r"bare\.npz has no arr_0, but nothing"):
        open_images(tmp_path / "bare.npz", Rule())


def test_empty_files_ranges_of_files_and_other_floats_are_refused_by_their_cause(tmp_path, pixels):
    folder(tmp_path / "x", pixels)
    with pytest.raises(FewstepError, match="values go from 0 to 255: leave --range out"):
        open_images(tmp_path / "x", FLOATS)
    (tmp_path / "x" / "empty.png").write_bytes(b"")
    (tmp_path / "x" / "text.png").write_bytes(b"no image")
    with pytest.raises(FewstepError, match=r"empty\.png is empty: .*text\.png is no image, or is damaged") as error:
        assert open_images(tmp_path / "x", Rule()).content
    assert " at 0x" not in str(error.value)
    for name, values in (("long", pixels.astype(np.longdouble) / 255), ("none", np.zeros((5, 0, 0, 1), np.uint8))):
        np.save(tmp_path / f"{name}.npy", values)
    with pytest.raises(FewstepError, match="images must be uint8 from 0 to 255, or floats"):
        open_images(tmp_path / "long.npy", FLOATS)
    with pytest.raises(FewstepError, match="without a pixel"):
        open_images(tmp_path / "none.npy", Rule())
