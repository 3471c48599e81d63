"""The commands for samples made anywhere: `score` and `compare-folders`. Nothing heavy is imported before one runs."""

import argparse
import os
import sys
from pathlib import Path


def add_commands(command) -> list[argparse.ArgumentParser]:
    """Add them by `command(name, function, text)`; returns their parsers."""
    score = command("score", _score, "measure images that you bring: a folder, .zip, .npz, .npy, .pt or .safetensors")
    score.add_argument(
        "path", type=Path, metavar="PATH", help="the images: of one size, in this order or sorted by name"
    )
    score.add_argument("--task", required=True, help="a task by name, or the path of a task's YAML file")
    score.add_argument("--name", metavar="NAME", help="of what made them, as you state it (default: the path's)")
    score.add_argument("--steps", type=int, metavar="N", help="that it took, as you state it")
    score.add_argument("--nfe", type=float, metavar="N", help="network evaluations an image, as you state it")
    score.add_argument("--protocol", metavar="NAME", help="python -m bench list protocols (default: the task's)")
    score.add_argument("--reference", metavar="FILE", help="statistics (.npz, .pkl), or one of: bench list references")
    score.add_argument("--metrics", nargs="+", metavar="NAME", default=[], help="metrics (default: the protocol's)")
    score.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    score.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="parent of run/ and reports/ (default: .)"
    )

    compare = command("compare-folders", _compare, "the Fréchet distance between two sets of images")
    compare.add_argument("first", type=Path, metavar="A", help="images, as `score` takes them")
    compare.add_argument("second", type=Path, metavar="B", help="others")
    compare.add_argument("--batch-size", type=int, default=250, metavar="N", help="images at a time (default: 250)")
    compare.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    for sub in (score, compare):
        sub.add_argument("--extractor", metavar="NAME", help="of features (default: the protocol's, else Inception's)")
        sub.add_argument(
            "--range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of floats: the values of black and white"
        )
    by = "of images of another size, by Pillow: none, box, bilinear, bicubic or lanczos (default: the protocol's)"
    score.add_argument("--resize", metavar="FILTER", help=by)
    return [score, compare]


def _score(arguments) -> int:
    from bench import report
    from bench.score import Asked, Stated, score
    from bench.store import Store
    from bench.tasks import load_task
    from students.devices import check_device

    check_device(arguments.device)
    task = load_task(arguments.task)
    path = Path(os.path.abspath(arguments.path))  # which says what "." is called, and follows no link
    name = arguments.name or (path.name if path.is_dir() else path.stem)
    asked = Asked(
        arguments.protocol,
        arguments.reference,
        arguments.extractor,
        tuple(arguments.metrics),
        arguments.resize,
        _limits(arguments.range),
        arguments.device,
    )
    store = Store(arguments.out, task.name)
    record = score(task, arguments.path, Stated(name, arguments.steps, arguments.nfe), store, asked)
    cells = store.cells()
    print(report.stated_text(task, cells))
    for path in report.write_stated(task, cells, arguments.out):
        print(f"wrote {path}")
    for metric, reason in record["failures"].items():
        print(f"error: {metric}: {reason}", file=sys.stderr)
    return 2 if record["failures"] or record["reason"] else 0


def _limits(given: list[float] | None) -> tuple[float, float] | None:
    from students.errors import FewstepError

    if given is None:
        return None
    low, high = given
    if not (low < high < float("inf") and low > -float("inf")):
        raise FewstepError(f"--range must be two finite numbers, the smaller first, got {low:g} {high:g}")
    return low, high


def _compare(arguments) -> int:
    from bench.brought import distance
    from bench.images import Rule
    from bench.measure import metric_columns
    from bench.measure.features import load_extractor
    from bench.plan import available
    from students.devices import check_device
    from students.errors import FewstepError

    if arguments.batch_size < 1:
        raise FewstepError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    name = arguments.extractor or available("inception", "inception768")
    extractor = load_extractor(name, check_device(arguments.device))
    rule = Rule(limits=_limits(arguments.range))
    value, sets = distance(arguments.first, arguments.second, extractor, rule, arguments.batch_size)
    sizes = [images.content for images in sets]
    for images, content in zip(sets, sizes, strict=True):
        print(f"{images.path}: {content.count} images of {content.shape[2]} x {content.shape[1]}")
    if sizes[0].count != sizes[1].count or sizes[0].shape != sizes[1].shape:
        print("note: the sets differ in count or size, and both change a distance", file=sys.stderr)
    print(f"{metric_columns('fd', name)[0]}: {value:.6g}")
    return 0
