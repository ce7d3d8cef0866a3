from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BLOCKS: int
PAST_CACHE_BYTES: int
PAST_CACHE_BYTES_FUSED: int
SHORT: int
WIDE_ROW: int
BYTES_PER_THREAD: int

def isa_variants() -> tuple[str, ...]: ...
def isa() -> str: ...
def use_isa(name: str) -> None: ...
def openmp_version() -> int: ...
def max_threads() -> int: ...
def pause_threads() -> None: ...
def set_machine(processors: int, usable: int, loadavg: str, long_wait: float = ...) -> None: ...
def idle_threads(most: int) -> int: ...
def processor() -> tuple[str, int]: ...
def second_level_cache() -> int: ...
def set_walk(streams: int, resident_bytes: int, places_deep: int = ..., ahead: int = ...) -> None: ...
def threads(n_threads: int | None, n_bytes: int) -> int | None: ...
def allowed_threads(n_bytes: int) -> int: ...
def block_shape(outer: int, channels: int, inner: int) -> tuple[int, int]: ...
def resident_channels(x: NDArray[Any], n_read: int, n_threads: int | None) -> int: ...
def read(x: NDArray[Any], n_threads: int, streams: int = ...) -> int: ...
def copy(x: NDArray[Any], y: NDArray[Any], n_threads: int, streams: int = ...) -> None: ...
def triad(x: NDArray[Any], y: NDArray[Any], z: NDArray[Any], n_threads: int, streams: int = ...) -> None: ...
def merge_blocks(blocks: NDArray[Any]) -> None: ...
def sum_blocks(blocks: NDArray[Any]) -> None: ...

merge: np.ufunc
variance: np.ufunc
update_momentum: np.ufunc
decay: np.ufunc
inverse_std: np.ufunc
fold: np.ufunc
fold_backward: np.ufunc
rounded: np.ufunc
rounded_gradient: np.ufunc

def sparse_sums(
    values: NDArray[Any],
    columns: NDArray[Any],
    weights: NDArray[Any] | None,
    about: NDArray[Any],
    choose: bool,
    sums: NDArray[Any],
) -> None: ...
def moments(
    x: NDArray[Any],
    weights: NDArray[Any] | None,
    skip_missing: bool,
    n_threads: int | None,
    halflife: float | None = ...,
    counted: NDArray[np.bool_] | None = ...,
) -> tuple[NDArray[Any], bool]: ...

IN_Y: int
IN_X: int
IN_Y_OF_BOTH: int

def apply(
    x: NDArray[Any],
    y: NDArray[Any],
    residual: NDArray[Any] | None,
    mean: NDArray[Any],
    scale: NDArray[Any],
    shift: NDArray[Any],
    relu: bool,
    past_cache: bool,
    n_threads: int | None,
    both: bool = ...,
) -> int: ...
def backward_sums(
    dy: NDArray[Any],
    x: NDArray[Any],
    residual: NDArray[Any] | None,
    center: NDArray[Any],
    mean: NDArray[Any] | None,
    scale: NDArray[Any] | None,
    shift: NDArray[Any] | None,
    relu: bool,
    n_threads: int | None,
) -> NDArray[Any]: ...
def backward_apply(
    dy: NDArray[Any],
    x: NDArray[Any],
    residual: NDArray[Any] | None,
    dx: NDArray[Any],
    dresidual: NDArray[Any] | None,
    mean: NDArray[Any],
    scale: NDArray[Any] | None,
    shift: NDArray[Any] | None,
    dy_scale: NDArray[Any],
    x_scale: NDArray[Any],
    offset: NDArray[Any],
    relu: bool,
    past_cache: bool,
    n_threads: int | None,
    counted: NDArray[np.bool_] | None = ...,
) -> None: ...
def forward(
    x: NDArray[Any],
    y: NDArray[Any],
    residual: NDArray[Any] | None,
    gamma: NDArray[Any] | None,
    beta: NDArray[Any] | None,
    eps: float,
    relu: bool,
    apart: bool,
    n_threads: int | None,
    counted: NDArray[np.bool_] | None = ...,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]: ...
def normalize(
    x: NDArray[Any],
    y: NDArray[Any],
    gamma: NDArray[Any] | None,
    beta: NDArray[Any] | None,
    eps: float,
    centred: bool,
    keep: bool,
    past_cache: bool,
    n_threads: int | None,
) -> tuple[NDArray[Any] | None, NDArray[Any]]: ...
def backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    residual: NDArray[Any] | None,
    dx: NDArray[Any],
    dresidual: NDArray[Any] | None,
    center: NDArray[Any],
    center_lo: NDArray[Any],
    invstd: NDArray[Any],
    gamma: NDArray[Any] | None,
    mean: NDArray[Any] | None,
    scale: NDArray[Any] | None,
    shift: NDArray[Any] | None,
    relu: bool,
    apart: bool,
    n_threads: int | None,
    counted: NDArray[np.bool_] | None = ...,
    counts: NDArray[Any] | None = ...,
) -> tuple[NDArray[Any], NDArray[Any], int]: ...
def fold_running(
    learned: NDArray[Any],
    n_values: float | NDArray[Any] | None,
    ddof: float,
    eps: float,
    with_mean: bool,
    with_std: bool,
    gamma: NDArray[Any] | None,
    beta: NDArray[Any] | None,
) -> tuple[NDArray[Any], NDArray[Any] | None]: ...
def apply_plain(
    X: object,
    channel_axis: int | None,
    out: object,
    dtype: object,
    n_threads: int | None,
    values: NDArray[Any],
    single: NDArray[Any] | None,
) -> NDArray[Any] | tuple[NDArray[Any], int] | None: ...
def update_plain(
    X: object,
    channel_axis: int | None,
    weights: object,
    n_threads: int | None,
    learned: NDArray[Any],
    momentum: float | None,
    halflife: float | None,
    ddof: float,
) -> tuple[NDArray[Any], NDArray[Any], bool] | None: ...
def unchanged(given: dict[str, Any], checked: tuple[Any, ...]) -> bool: ...
def normalize_plain(
    x: object,
    last: bool,
    mean: object,
    var: object,
    gamma: object,
    beta: object,
    eps: object,
    out: object,
    relu: bool,
    n_threads: int | None,
) -> NDArray[Any] | None: ...
def forward_plain(
    x: object,
    last: bool,
    gamma: object,
    beta: object,
    eps: object,
    where: object,
    out: object,
    relu: bool,
    n_threads: int | None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], int] | None: ...
def backward_plain(
    dy: object,
    x: object,
    last: bool,
    mean: object,
    invstd: object,
    mean_lo: object,
    count: object,
    gamma: object,
    beta: object,
    where: object,
    out: object,
    relu: bool,
    n_threads: int | None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None: ...
