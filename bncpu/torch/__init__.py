"""PyTorch on the CPU: its normalization layers by our kernels, exact statistics for them, and batches in parts."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"bncpu.torch needs {error.name}: pip install 'bncpu[torch]'") from error

from bncpu.torch._accumulate import accumulate
from bncpu.torch._layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    Sequential,
    convert,
    revert,
)
from bncpu.torch._statistics import SyncBatchNorm, update_bn

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Sequential",
    "SyncBatchNorm",
    "accumulate",
    "convert",
    "revert",
    "update_bn",
]
