"""What kernels are compiled for, and what they are given.

A kernel takes its arguments in groups with names. On the device each field is an argument of its own, in the order of
the fields, so that groups cost nothing there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ._plan import AT_ONCE

Address = Any  # an integer on a device, `_compat.Words` in the simulator


class Kind(NamedTuple):
    """All that kernels are compiled for: each kind has kernels of its own."""

    storage: str  # the type of the data in memory
    parameters: str  # the type of gamma, beta, running and given statistics
    rows: bool  # the form
    n: int  # values in a vector
    columns: int  # in a block
    members: int  # threads of a column in a block, a power of two
    relu: bool = False
    residual: bool = False
    given: bool = False  # a mean and a variance of type `parameters`; else saved statistics
    frozen: bool = False  # statistics do not depend on x
    skipping: bool = False  # NaN is left out, and samples are weighted; vectors of planes hold one value then

    @property
    def lanes(self) -> int:
        """The number of channels of a column."""
        return self.n if self.rows else 1

    @property
    def threads(self) -> int:
        """The number of threads of a block."""
        return self.columns * self.members

    @property
    def is_heavy(self) -> bool:
        """Whether what a thread needs for four vectors would not fit into its registers."""
        return self.skipping or (self.residual and self.n > 4)

    @property
    def blocks_at_once(self) -> int:
        """How many blocks a multiprocessor has registers for: kernels are compiled for no more than that leaves them.

        A plan wants as many, but for heavy kinds with many lanes, whose blocks take turns.
        """
        blocks = AT_ONCE // max(self.threads, 64)
        return blocks // 2 if self.is_heavy and self.lanes > 4 else blocks

    @property
    def entries(self) -> int:
        """The number of channels that all threads of a block keep in shared memory."""
        return self.threads * self.lanes


class Walk(NamedTuple):
    """Sizes of the data, and the way of a thread through them, in vectors."""

    outer: int
    channels: int  # vectors along the channels axis
    inner: int
    step_outer: int  # to the next vector of a thread
    step_inner: int


class Forward(NamedTuple):
    """Data of a forward pass, all like x."""

    x: Address
    z: Address  # the residual; not read if there is none
    y: Address


class Backward(NamedTuple):
    """Data that a backward pass reads, all like x."""

    dy: Address
    x: Address
    z: Address  # the residual; not read if there is none


class Gradients(NamedTuple):
    """Data that a backward pass writes, all like x."""

    dx: Address
    dz: Address  # of the residual; not written if there is none


class Statistics(NamedTuple):
    """Of every channel, float64. If `Kind.given`, of type `Kind.parameters`, and a variance in place of `invstd`."""

    mean: Address
    mean_lo: Address  # what rounding took from the mean; not read if given
    invstd: Address


class Affine(NamedTuple):
    """Parameters of every channel. The step of one is 0 if it is not given, else 1."""

    gamma: Address
    gamma_step: int
    beta: Address
    beta_step: int


class Sums(NamedTuple):
    """Gradients of the parameters of every channel, float64."""

    dgamma: Address
    dbeta: Address


class Running(NamedTuple):
    """Running statistics of every channel, and how they are updated. The step is 0 if they are not given, else 1."""

    mean: Address
    var: Address
    step: int
    momentum: float
    ddof: float


class Weights(NamedTuple):
    """Weights of samples, float64. The step is 0 if there are none, else 1."""

    values: Address
    step: int
    per_sample: int  # outer positions


class Workspace(NamedTuple):
    """What slices leave for the last one of their group."""

    parts: Address  # float64: what each slice has summed, and then each group of slices
    done: Address  # int32: how many slices of a group are done; 0 between launches
