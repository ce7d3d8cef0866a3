"""What kernels are compiled for, and what they are given.

A kernel takes its arguments in groups with names. On the device each field is an argument of its own, in the order of
the fields, so that groups cost nothing there.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from ._plan import AT_ONCE, STORAGE, threads_at_once

Address = Any  # an integer on a device, `_compat.Words` in the simulator

# Which statistics and parameters belong to a value:
# "columns": those of its column. A column is a channel: batch normalization.
# "repeated": the same, where several rows are taken as one, in which the channels follow each other again and again.
# "planes": a column is a channel of a sample. It has parameters of its channel, and statistics of its group.
# "along": a column is a group of a sample, or a whole one. It has statistics; parameters lie along it.
# "rows": a column is a channel, and has parameters; statistics are those of the outer position, a sample.
Belonging = Literal["columns", "repeated", "planes", "along", "rows"]


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
    belonging: Belonging = "columns"
    centred: bool = True  # else nothing is subtracted, and the mean of squares is in place of the variance
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
    def is_of_samples(self) -> bool:
        """Whether a column is of one sample, so that there is one outer position."""
        return self.belonging in ("planes", "along")

    @property
    def is_heavy(self) -> bool:
        """Whether what a thread needs for four vectors would not fit into its registers."""
        return self.skipping or (self.residual and self.n > 4) or (self.belonging == "along" and self.n > 2)

    @property
    def blocks_at_once(self) -> int:
        """How many blocks a multiprocessor has registers for: kernels are compiled for no more than that leaves them.

        A plan wants as many, but for the heaviest kinds, whose blocks take turns.
        """
        blocks = threads_at_once(self.n * STORAGE[self.storage]) // max(self.threads, 64)
        many_numbers = self.lanes > 4 or (self.belonging == "along" and self.residual and self.n > 4)
        return blocks // 2 if self.is_heavy and (many_numbers or blocks * self.threads > AT_ONCE) else blocks

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
    groups: int = 1  # of a sample
    share: int = 1  # channels in a group; with "repeated" the number of channels


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
    """Of all values that are normalized together, float64.

    If `Kind.given`, of type `Kind.parameters`, and a variance in place of `invstd`.
    """

    mean: Address  # neither read nor written if not `Kind.centred`, as the next
    mean_lo: Address  # what rounding took from the mean; not read if given
    invstd: Address


class Affine(NamedTuple):
    """Parameters of every channel. The step of one is 0 if it is not given, else 1."""

    gamma: Address
    gamma_step: int
    beta: Address
    beta_step: int


class Sums(NamedTuple):
    """Sums of a backward pass, float64, with ``g = gamma * dy``; dy is 0 where the activation gave 0."""

    dgamma: Address  # of ``dy * x_hat``, of every channel, or column of "planes"
    dbeta: Address  # of dy
    g_x_hat: Address  # of ``g * x_hat``, of all values that are normalized together; not used where these are a channel
    g: Address  # of g


class Parts(NamedTuple):
    """Count, mean, its low part and m2, float64, of each of some columns."""

    first: Address
    apart: int  # how far the four numbers of a column are from each other


class Pair(NamedTuple):
    """Two arrays of one shape, float64, whose values are added up."""

    first: Address
    second: Address


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
