"""Reference statistics in files, as others publish them: mean and covariance of features of real images.

    EDM                .npz or .pkl   mu, sigma
    EDM2               .pkl           {"fid": {mu, sigma}, "fd_dinov2": {mu, sigma}}
    guided-diffusion   .npz           mu, sigma, mu_s, sigma_s (those of sFID), arr_0 (the images, uint8 NHWC)
    pytorch-fid        .npz           mu, sigma
    clean-fid          .npz           mu, sigma

None says which network made them: a card (references.py) does, of a file of one's own its length must fit.
"""

import zipfile
from pathlib import Path

import numpy as np

from bench.measure.statistics import FeatureStats
from students.errors import FewstepError, one_line, reading

SPATIAL = "inception_spatial"
NAMES = {SPATIAL: ("mu_s", "sigma_s")}  # of an extractor's moments; of all others mu and sigma
ENTRIES = {"dinov2": "fd_dinov2"}  # the part of EDM2's files; of all others "fid"
TOLERANCE = 1e-5  # of the largest eigenvalue or entry: what float32 leaves


def read_moments(path: Path, extractor: str) -> FeatureStats:
    """Mean (F,) and unbiased covariance (F, F) of an extractor's features, as exact moments.

    Raises FewstepError for a file of another kind, shapes that do not fit, values that are not finite, and a covariance
    that is not symmetric or has a negative eigenvalue.
    """
    arrays = _pickled(path, extractor) if path.suffix == ".pkl" else _archived(path)
    names = NAMES.get(extractor, ("mu", "sigma"))
    if missing := [name for name in names if name not in arrays]:
        raise FewstepError(
            f"{path} lacks {' and '.join(missing)} for {extractor}, and holds "
            f"{', '.join(sorted(arrays)) or 'nothing'}: take a file of reference statistics"
        )
    mean, covariance = (_real(arrays[name], name, path) for name in names)
    if mean.ndim != 1 or covariance.shape != mean.shape * 2 or not mean.size:
        raise FewstepError(
            f"{path}: {names[0]} and {names[1]} must be (F,) and (F, F), got {mean.shape} and {covariance.shape}"
        )
    _check_covariance(covariance, names[1], path)
    return FeatureStats.from_moments(mean, (covariance + covariance.T) / 2)


def _archived(path: Path) -> dict:
    """The arrays of an archive but its images, which may be many."""
    if not zipfile.is_zipfile(path):
        raise FewstepError(f"{path} is no archive of numpy, or is cut short: get the file again")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if not name.startswith("arr_")}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise FewstepError(f"{path} is no archive of numbers, or is damaged ({one_line(error)})") from error


def _pickled(path: Path, extractor: str) -> dict:
    from students.models.checkpoints.unpickling import NumpyArray, unpickle

    with reading(path, "pickle of mu and sigma"):
        content = unpickle(path)
    if not isinstance(content, dict):
        raise FewstepError(f"{path} holds a {type(content).__name__}: take a pickle of mu and sigma")
    part = content.get(ENTRIES.get(extractor, "fid"), content)
    if not isinstance(part, dict):
        raise FewstepError(f"{path} holds no mu and sigma for {extractor}: take a file of reference statistics")
    return {name: value.values for name, value in part.items() if isinstance(value, NumpyArray)}


def _real(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise FewstepError(f"{path}: {name} must be real numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise FewstepError(f"{path}: {name} holds NaN or infinite values: get the file again")
    return array.astype(np.float64)


def _check_covariance(covariance: np.ndarray, name: str, path: Path) -> None:
    largest = abs(covariance).max()
    if (apart := abs(covariance - covariance.T).max()) > TOLERANCE * largest:
        raise FewstepError(f"{path}: {name} is not symmetric (up to {apart:.3g} apart): it is no covariance")
    values = np.linalg.eigvalsh(covariance)
    if values[-1] <= 0 or values[0] < -TOLERANCE * values[-1]:
        raise FewstepError(
            f"{path}: {name} has eigenvalues from {values[0]:.3g} to {values[-1]:.3g}, and a covariance has none below "
            "0: get the file again"
        )
