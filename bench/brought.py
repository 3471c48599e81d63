"""What scoring needs beside a run's context: a reference that is a file, and samples that nobody here has drawn."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bench.conditions import Conditions
from bench.context import Context
from bench.images import Images, Rule, open_images
from bench.measure.extractors import extractor_identity
from bench.measure.features import Extractor, load_extractor
from bench.measure.reference import cached_statistics
from bench.measure.references import ReferenceFile
from bench.measure.statistics import FeatureStats, Reference
from bench.measure.statistics_files import read_moments
from bench.plan import Cell, Setup
from students.datafiles import reference_folder
from students.errors import FewstepError

ROWS = {"kid", "prc", "coverage"}  # metrics that compare with rows of the reference


class BroughtContext(Context):
    """The context of images that are brought; `given` takes the place of the task's data as the reference."""

    def __init__(self, setup: Setup, given: Reference | None = None):
        super().__init__(setup)
        self.given = given

    @cached_property
    def _of_data(self) -> tuple[Reference, Conditions | None]:
        return super()._of_data if self.given is None else (self.given, None)

    def classes_of(self, cell: Cell) -> Tensor | None:
        """Nobody has asked them to show a class."""
        return None


class GivenStats(FeatureStats):
    """Rows of the images of a file, with the moments that the file gives, which are those of more images."""

    def __init__(self, moments: FeatureStats):
        super().__init__(keep_rows=True)
        self.moments = moments

    def mean(self) -> Tensor:
        return self.moments.mean()

    def covariance(self) -> Tensor:
        return self.moments.covariance()


def file_reference(file: ReferenceFile, setup: Setup) -> Reference:
    """The moments of a file and, where a metric needs them, the features of its images.

    Raises FewstepError for a file at fault, and for moments of another number of features than the extractor gives.
    """
    name, device = setup.task.extractor, torch.device(setup.device)
    moments = read_moments(file.path, name)  # type: ignore[arg-type]
    extractor = load_extractor(name, device)  # type: ignore[arg-type]
    features = extractor.features(torch.zeros(1, *setup.task.shape, dtype=torch.uint8))[0].shape[1]
    if (given := len(moments.mean())) != features:
        raise FewstepError(
            f"reference {file.name} is of {given} features, and {name} gives {features}: take the reference of this "
            "extractor, or the --extractor of this reference"
        )
    if not ROWS & {*setup.metrics}:
        return Reference(train={"features": moments}, device=device)
    stats = GivenStats(moments)
    stats.merge(_image_statistics(file, extractor, setup.task.batch_size))  # type: ignore[arg-type]
    return Reference(train={"features": stats}, device=device)


def _image_statistics(file: ReferenceFile, extractor: Extractor, batch_size: int) -> FeatureStats:
    """The features of a file's images, computed once and kept in the user's cache."""
    images = open_images(file.path, Rule())
    rows = _Rows(images, batch_size, extractor)
    statistics = cached_statistics(
        reference_folder(),
        {"file": file.sha256, "extractor": extractor_identity(extractor.name)},
        images.content.count,
        batch_size,
        rows,
        lambda: {"features": FeatureStats(keep_rows=True)},
        f"features of the images in {file.name}",
    )
    return statistics["features"]


class _Rows:
    """Features of images start ... stop - 1, read in their order; those before are skipped without a network."""

    def __init__(self, images: Images, batch_size: int, extractor: Extractor):
        self.images, self.batch_size, self.extractor = images, batch_size, extractor
        self._restart()

    def _restart(self) -> None:
        self.position, self.pending = 0, torch.empty(0)
        self.batches = self.images.batches(self.batch_size)

    def __call__(self, start: int, stop: int) -> dict[str, Tensor]:
        if start < self.position:
            self._restart()
        while self.position + len(self.pending) < stop:
            if self.position + len(self.pending) <= start:
                self.position, self.pending = self.position + len(self.pending), next(self.batches)
            else:
                self.pending = torch.cat([self.pending, next(self.batches)])
        asked = self.pending[start - self.position : stop - self.position]
        self.pending, self.position = self.pending[start - self.position :], start
        return {"features": self.extractor.features(asked)[0]}


def distance(
    first: Path, second: Path, extractor: Extractor, rule: Rule, batch_size: int
) -> tuple[float, list[Images]]:
    """The Fréchet distance of features between two sets of images, and the sets."""
    from bench.measure.frechet import frechet_distance

    sets = [open_images(path, rule) for path in (first, second)]
    for images in sets:
        images.content  # noqa: B018  # what is wrong with either shows before any network runs
    moments = []
    for images in sets:
        stats = FeatureStats()
        for batch in images.batches(batch_size):
            stats.update(extractor.features(batch)[0])
        moments += [stats.mean(), stats.covariance()]
    return frechet_distance(*moments), sets
