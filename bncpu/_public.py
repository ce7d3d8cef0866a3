"""The public names of `bncpu`."""

from importlib.metadata import version

from bncpu import _dispatch, gpu  # noqa: F401  (_dispatch first: it says so if there is no compiled kernel)
from bncpu._versions import show_versions
from bncpu.accel import patch_sklearn, unpatch_sklearn
from bncpu.buffers import release_buffers, set_buffer_limit
from bncpu.display import BatchNormDisplay
from bncpu.folding import fold_conv, fold_linear
from bncpu.functional import (
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_frozen,
    batch_norm_backward_sums,
    batch_norm_forward,
    batch_norm_moments,
    merge,
)
from bncpu.group_norms import (
    group_norm,
    group_norm_backward,
    group_norm_forward,
    instance_norm,
    instance_norm_backward,
    instance_norm_forward,
)
from bncpu.layer_norms import (
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)
from bncpu.moments import BackwardSums, Moments
from bncpu.pipelines import concatenate, simplify, streaming_pipeline
from bncpu.saved import SavedStatistics
from bncpu.transformer import BatchNormTransformer

__version__ = version("bncpu")

__all__ = [
    "BackwardSums",
    "BatchNormDisplay",
    "BatchNormTransformer",
    "Moments",
    "SavedStatistics",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_frozen",
    "batch_norm_backward_sums",
    "batch_norm_forward",
    "batch_norm_moments",
    "concatenate",
    "fold_conv",
    "fold_linear",
    "gpu",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "merge",
    "patch_sklearn",
    "release_buffers",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "set_buffer_limit",
    "show_versions",
    "simplify",
    "streaming_pipeline",
    "unpatch_sklearn",
]
