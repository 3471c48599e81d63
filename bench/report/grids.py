"""Sample grids: one picture a student, the same seeds in the same places for every student."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from bench.report.tables import REAL

TILE, GAP = 32, 2  # pixels: the least size an image is shown at, and the space between images
LABEL, TITLE = 92, 26  # pixels left of a row and above the picture
PANEL, MARGIN = 240, 24  # pixels of a scatter panel and around it
FINE = 4  # scatter panels are drawn this much larger, then reduced
INK, GREY, REFERENCE, RULE, PAPER = "#1a1a1a", "#6e6e6e", "#d0d0d0", "#ececec", "white"


def sample_grid(cells: pd.DataFrame, reference: np.ndarray | None = None) -> Image.Image | None:
    """The stored samples of one student's first seed block; None if there are none.

    Images (uint8, (k, C, H, W)): a row for each step count, a column for each seed, enlarged by whole pixels.
    Vectors (float, (k, D)): a panel for each step count, the first two coordinates, all on the same axes, which
    `reference` (real samples, drawn in light grey) sets where it is given; points outside are counted.
    """
    rows = _rows(cells)
    if not rows:
        return None
    title = cells["student"].iloc[0]
    return _image_rows(title, rows) if next(iter(rows.values())).ndim == 4 else _panels(title, rows, reference)


def stored_samples(path: str) -> np.ndarray | None:
    """The samples of a cell's folder, or None."""
    try:
        with np.load(Path(path) / "samples.npz") as arrays:
            return arrays["samples"]
    except OSError:
        return None


def shown(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that a grid shows: the first seed block, once for each guidance, dtype and step count."""
    keys = ["guidance", "dtype", "steps"]
    first = cells[(cells["status"] == "ok") & (cells["seed_block"] == 0)].sort_values("samples", ascending=False)
    return first.drop_duplicates(keys).sort_values(keys)


def _rows(cells: pd.DataFrame) -> dict[str, np.ndarray]:
    """Label -> samples, in the order of `shown`. The label names guidance and dtype where they vary."""
    cells = shown(cells)
    rows = {}
    for cell in cells.itertuples():
        samples = stored_samples(cell.path)
        if samples is not None:
            words = [f"{cell.steps} step{'s' * (cell.steps > 1)}", f"{cell.nfe:.4g} NFE"]
            if cell.student == REAL:
                words = ["held out"]
            words += [f"guidance {cell.guidance:g}"] if cells["guidance"].nunique() > 1 else []
            words += [cell.dtype] if cells["dtype"].nunique() > 1 else []
            rows["\n".join(words)] = samples
    return rows


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _image_rows(title: str, rows: dict[str, np.ndarray]) -> Image.Image:
    channels, height, width = next(iter(rows.values())).shape[1:]
    columns = max(len(samples) for samples in rows.values())
    scale = max(1, round(TILE / max(height, width)))
    pitch_x, pitch_y = width * scale + GAP, max(height * scale + GAP, 14 * max(label.count("\n") + 1 for label in rows))
    size = LABEL + columns * pitch_x + GAP, TITLE + len(rows) * pitch_y + 18
    picture = Image.new("RGB" if channels == 3 else "L", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, 5), title, INK, _font(14))
    for row, (label, samples) in enumerate(rows.items()):
        top = TITLE + row * pitch_y
        draw.multiline_text((LABEL - 8, top + pitch_y / 2), label, INK, _font(11), "rm", spacing=1, align="right")
        large = samples.repeat(scale, axis=2).repeat(scale, axis=3).transpose(0, 2, 3, 1)
        for column, image in enumerate(large):
            tile = Image.fromarray(image.squeeze(2) if channels == 1 else image)
            picture.paste(tile, (LABEL + column * pitch_x, top))
    for column in range(columns):
        x = LABEL + column * pitch_x + width * scale / 2
        draw.text((x, size[1] - 3), str(column), GREY, _font(10), "ms")
    draw.text((LABEL - 8, size[1] - 3), "seed", GREY, _font(10), "rs")
    return picture


def _panels(title: str, rows: dict[str, np.ndarray], reference: np.ndarray | None) -> Image.Image:
    pool = np.concatenate([samples[:, :2] for samples in rows.values()]) if reference is None else reference[:, :2]
    low, high = pool.min(axis=0), pool.max(axis=0)
    centre, reach = (low + high) / 2, 0.65 * (high - low).max()
    pitch = PANEL + MARGIN
    picture = Image.new("L", (len(rows) * pitch + MARGIN, TITLE + 20 + PANEL + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 5), title, INK, _font(14))
    for column, (label, samples) in enumerate(rows.items()):
        panel = Image.new("L", (PANEL * FINE, PANEL * FINE), PAPER)
        brush = ImageDraw.Draw(panel)
        for tick in _ticks(centre, reach):
            for axis in range(2):
                at = _pixels(np.full(2, tick), centre, reach)[axis]
                brush.line([(at, 0), (at, panel.height)] if axis == 0 else [(0, at), (panel.width, at)], RULE, FINE)
        for points, shade, radius in ((reference, REFERENCE, 1.5), (samples, INK, 1.3)):
            for x, y in _pixels(points[:, :2], centre, reach) if points is not None else ():
                brush.ellipse([(x - radius * FINE, y - radius * FINE), (x + radius * FINE, y + radius * FINE)], shade)
        brush.rectangle([(0, 0), (panel.width - 1, panel.height - 1)], outline=GREY, width=FINE)
        left, top = MARGIN + column * pitch, TITLE + 20
        picture.paste(panel.resize((PANEL, PANEL), Image.Resampling.BOX), (left, top))
        outside = int((np.abs(samples[:, :2] - centre) > reach).any(axis=1).sum())
        words = label.replace("\n", ", ") + (f", {outside} of {len(samples)} outside" if outside else "")
        draw.text((left, top - 5), words, INK, _font(11), "ls")
        for tick in _ticks(centre, reach):
            x, y = _pixels(np.full(2, tick), centre, reach) / FINE
            draw.text((left + x, top + PANEL + 13), f"{tick:g}", GREY, _font(10), "ms")
            if column == 0:
                draw.text((left - 4, top + y), f"{tick:g}", GREY, _font(10), "rm")
    return picture.quantize(16)


def _pixels(points: np.ndarray, centre: np.ndarray, reach: float) -> np.ndarray:
    """Data coordinates to pixels of the enlarged panel, y upwards."""
    unit = (points - centre) / (2 * reach)
    return (0.5 + unit * [1, -1]) * PANEL * FINE


def _ticks(centre: np.ndarray, reach: float) -> list[float]:
    """Multiples of a power of ten, or twice or five times one, that both axes show: at most five or so."""
    if not 0 < reach < np.inf:
        return []
    exponent = 10.0 ** np.floor(np.log10(reach))
    step = next(factor * exponent for factor in (0.5, 1, 2, 5, 10) if reach / (factor * exponent) <= 2.5)
    low, high = np.ceil((centre.max() - reach) / step), np.floor((centre.min() + reach) / step)
    return [float(step * i) for i in np.arange(low, high + 1)]
