"""Batch normalization for NumPy people: exact, fast statistics and transforms with a scikit-learn API."""

from importlib.metadata import version

from bncpu import _dispatch, gpu  # noqa: F401  (_dispatch first: it says so if there is no compiled kernel)
from bncpu._versions import show_versions
from bncpu.functional import SavedStatistics, batch_norm, batch_norm_forward
from bncpu.transformer import BatchNormTransformer

__version__ = version("bncpu")

__all__ = [
    "BatchNormTransformer",
    "SavedStatistics",
    "__version__",
    "batch_norm",
    "batch_norm_forward",
    "gpu",
    "show_versions",
]
