"""The kernels: `moments` and `apply` forward, `backward_sums` and `backward_apply` backward.

Where one block has whole channels, one kernel does both steps of a direction: `forward`, `backward`. For the
transformer, `collect` is `moments` that leaves NaN out and weights samples.

All kernels go through an array in the same way, in both memory forms. An array is ``(outer, channels, inner)``, in
vectors of n values. In the form of planes a vector holds n adjacent values of one channel; in the form of rows, where
inner is 1, one value of each of n channels. A block has `columns` x `members` threads. A column is a vector of the
channels axis. Its values are shared among its members in this block and in other blocks of the same column, which are
called slices. The forms differ only in whether the lanes of a vector are added up in the end.

A thread sums deviations from its own first value. If that is an outlier, the sum has up to one more rounding for each
value. Members and slices are merged (Chan, Golub & LeVeque, 1983) in an order that depends on the plan alone. The last
block of a column to finish merges the slices and computes the statistics. A mean is kept as two numbers, so that a
large mean costs no digits.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda, float64, int32

from . import _compat

# In `collect` a new shift is chosen when the values summed about one weigh so many times as much as it does. This
# bounds the number of roundings that an outlier as shift can cost.
MOST_OF_A_SHIFT = 64.0


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


class Kernels(NamedTuple):
    """The kernels of a kind, compiled when they are first launched.

    Sizes are in vectors: `channels` is the number of vectors along the channels axis. `step_outer` and `step_inner` are
    the distance to the next vector of a thread. The step of a parameter is 0 if it is not given, else 1.
    """

    moments: Any
    apply: Any
    forward: Any  # moments and apply, for plans of one slice
    backward_sums: Any
    backward_apply: Any
    backward: Any  # both, for plans of one slice
    collect: Any


@cache
def kernels(kind: Kind) -> Kernels:
    """The kernels of a kind."""
    storage, parameters, rows, n, columns, members, with_relu, with_residual, given, frozen, skipping = kind
    lanes = n if rows else 1  # channels of a column
    entries = columns * members * lanes
    load, store = _compat.access(storage, n)
    load_wide, _ = _compat.access("float64", lanes, aligned=False)
    load_parameters, _ = _compat.access(parameters, lanes, aligned=False)
    load_one, store_one = _compat.access("float64", 1)
    load_parameter, store_parameter = _compat.access(parameters, 1)
    in_values, in_channels, in_one = (_compat.filled(size) for size in (n, lanes, 1))
    lane, total = _compat.lane, _compat.total
    relu, where_above_0, inverse_std = _compat.relu, _compat.where_above_0, _compat.inverse_std
    present, where_0, any_above = _compat.present, _compat.where_0, _compat.any_above
    ticket, reset = _compat.ticket, _compat.reset

    # ---- channels of a column, and values of a vector ----

    if rows:

        @cuda.jit(device=True)
        def spread(v):
            """A value for each channel of a column, for every value of a vector."""
            return v

        @cuda.jit(device=True)
        def summed(v, k):
            """What a vector adds to channel k of its column."""
            return lane(v, k)

    else:

        @cuda.jit(device=True)
        def spread(v):
            """A value for each channel of a column, for every value of a vector."""
            return in_values(lane(v, 0))

        @cuda.jit(device=True)
        def summed(v, k):
            """What a vector adds to channel k of its column."""
            return total(v)

    @cuda.jit(device=True)
    def parameter(address, column, step, otherwise):
        if step == 0:
            return in_channels(otherwise)
        return load_parameters(address, column)

    # ---- the walk ----

    @cuda.jit(device=True)
    def onward(o, j, step_outer, step_inner, inner):
        """Where a thread goes next."""
        o, j = o + step_outer, j + step_inner
        if j >= inner:
            o, j = o + 1, j - inner
        return o, j

    # ---- merging ----

    @cuda.jit(device=True)
    def two_sum(a, b):
        """The sum, and what rounding took from it."""
        total = a + b
        back = total - a
        return total, (a - (total - back)) + (b - back)

    @cuda.jit(device=True)
    def join_moments(p, q):
        """Merge count, mean in two parts and m2. In a part without a count, m2 may be NaN, as a sign of an infinity."""
        n, hi, lo, m2 = p
        n_, hi_, lo_, m2_ = q
        if n == 0.0:
            return n_, hi_, lo_, m2_ + m2
        if n_ == 0.0:
            return n, hi, lo, m2 + m2_
        if n < n_:  # start from the mean of the heavier part: from the other one rounding would be larger
            n, hi, lo, m2, n_, hi_, lo_, m2_ = n_, hi_, lo_, m2_, n, hi, lo, m2
        delta, share = (hi_ - hi) + (lo_ - lo), n_ / (n + n_)
        mean, rest = two_sum(hi, delta * share)
        return n + n_, mean, lo + rest, m2 + m2_ + delta * (n * share) * delta

    @cuda.jit(device=True)
    def join_sums(p, q):
        return p[0] + q[0], p[1] + q[1]

    @cuda.jit(device=True)
    def four(parts, i):
        return parts[0, i], parts[1, i], parts[2, i], parts[3, i]

    @cuda.jit(device=True)
    def put_four(parts, i, p):
        parts[0, i], parts[1, i], parts[2, i], parts[3, i] = p

    @cuda.jit(device=True)
    def two(parts, i):
        return parts[0, i], parts[1, i]

    @cuda.jit(device=True)
    def put_two(parts, i, p):
        parts[0, i], parts[1, i] = p

    def merging(join, fields, get, put):
        @cuda.jit(device=True)
        def merge_members(parts):
            """Merge all members of a column into the first."""
            half = members // 2
            cuda.syncthreads()
            while half > 0:
                if cuda.threadIdx.y < half:
                    for k in range(lanes):
                        i = (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k
                        put(parts, i, join(get(parts, i), get(parts, i + half * columns * lanes)))
                cuda.syncthreads()
                half //= 2

        @cuda.jit(device=True)
        def merge(parts, last, partial, done, channels):
            """Merge members and slices of a column into the entries of member 0; True in the block that has them."""
            column = cuda.blockIdx.x * columns + cuda.threadIdx.x
            slices, width = cuda.gridDim.y, channels * lanes
            merge_members(parts)
            if slices == 1:
                return True
            if cuda.threadIdx.y == 0 and column < channels:
                for k in range(lanes):
                    for f in range(fields):
                        at = (fields * cuda.blockIdx.y + f) * width + column * lanes + k
                        store_one(partial, at, in_one(parts[f, cuda.threadIdx.x * lanes + k]))
            cuda.threadfence()
            cuda.syncthreads()
            if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
                last[0] = ticket(done, cuda.blockIdx.x)
                cuda.threadfence()
            cuda.syncthreads()
            if last[0] != slices - 1:
                return False
            if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
                reset(done, cuda.blockIdx.x)
            for k in range(lanes):
                i = (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k
                slice_ = cuda.threadIdx.y
                for f in range(fields):
                    parts[f, i] = 0.0
                while slice_ < slices and column < channels:
                    before = get(parts, i)
                    for f in range(fields):
                        at = (fields * slice_ + f) * width + column * lanes + k
                        parts[f, i] = lane(load_one(partial, at), 0)
                    put(parts, i, join(before, get(parts, i)))
                    slice_ += members
            merge_members(parts)
            return True

        return merge

    merge_moments = merging(join_moments, 4, four, put_four)
    merge_sums = merging(join_sums, 2, two, put_two)

    # ---- moments ----

    if skipping:

        @cuda.jit(device=True)
        def weighed(weights, step, o, per_sample):
            """The weight of the sample of a position."""
            return 1.0 if step == 0 else lane(load_one(weights, o // per_sample), 0)

        @cuda.jit(device=True)
        def is_due(v, weight, count, anchor):
            """Whether a new shift is needed: with this vector the values weigh too much for the present one."""
            return any_above(count + present(v) * weight, anchor * MOST_OF_A_SHIFT)

        @cuda.jit(device=True)
        def taken(v, weight, shift, anchor, count, s, q):
            """The sums with one more vector. The first value that counts is the shift, and its weight the anchor."""
            there = present(v)
            weights = there * weight
            shift, anchor = where_0(count, v, shift), where_0(count, weights, anchor)
            d = where_0(there, there, v - shift)  # with an infinity the sums become NaN, whatever its weight
            return shift, anchor, count + weights, s + weights * d, q + weights * d * d

        @cuda.jit(device=True)
        def counted(count, steps):
            return count

    else:

        @cuda.jit(device=True)
        def weighed(weights, step, o, per_sample):
            return 1.0

        @cuda.jit(device=True)
        def is_due(v, weight, count, anchor):
            return False

        @cuda.jit(device=True)
        def taken(v, weight, shift, anchor, count, s, q):
            d = v - shift
            return shift, anchor, count, s + d, q + d * d

        @cuda.jit(device=True)
        def counted(count, steps):
            return in_values(steps)

    @cuda.jit(device=True)
    def put_aside(parts, shift, count, s, q):
        """Merge the sums so far into the moments of this thread."""
        for k in range(lanes):
            i = (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k
            n, total_, about, m2 = summed(count, k), summed(s, k), lane(shift, k), summed(q, k)
            if n > 0.0:
                from_about = total_ / n
                hi, lo = two_sum(about, from_about)
                put_four(parts, i, join_moments(four(parts, i), (n, hi, lo, m2 - total_ * from_about)))
            else:
                put_four(parts, i, join_moments(four(parts, i), (0.0, 0.0, 0.0, m2)))

    @cuda.jit(device=True)
    def sum_moments(
        x, outer, channels, inner, step_outer, step_inner, weights, weight_step, per_sample, partial, done, parts, last,
    ):  # fmt: skip
        """Write the moments to the entries of member 0. Returns what `merge` returns."""
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        position = cuda.blockIdx.y * members + cuda.threadIdx.y
        o, j = position // inner, position % inner
        steps = 0.0
        count = s = q = shift = anchor = zeros = in_values(0.0)
        for k in range(lanes):
            put_four(parts, (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k, (0.0, 0.0, 0.0, 0.0))
        if column < channels and o < outer:
            shift = spread(load(x, (o * channels + column) * inner + j))
        while column < channels and o < outer:
            weight = weighed(weights, weight_step, o, per_sample)
            v = load(x, (o * channels + column) * inner + j)
            if is_due(v, weight, count, anchor):
                put_aside(parts, shift, count, s, q)
                count = s = q = zeros
            shift, anchor, count, s, q = taken(v, weight, shift, anchor, count, s, q)
            steps += 1.0
            o, j = onward(o, j, step_outer, step_inner, inner)
        put_aside(parts, shift, counted(count, steps), s, q)
        return merge_moments(parts, last, partial, done, channels)

    @cuda.jit(device=True)
    def finish_moments(
        channels, parts, mean, mean_lo, invstd, eps, running_mean, running_var, running_step, momentum, ddof,
    ):  # fmt: skip
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        if cuda.threadIdx.y == 0 and column < channels:
            for k in range(lanes):
                at = column * lanes + k
                n, hi, lo, m2 = four(parts, cuda.threadIdx.x * lanes + k)
                hi, lo = two_sum(hi, lo)
                store_one(mean, at, in_one(hi))
                store_one(mean_lo, at, in_one(lo))
                m2 = 0.0 if m2 < 0.0 else m2  # NaN stays
                var = m2 / n
                var += var - var  # NaN where var has overflowed
                store_one(invstd, at, inverse_std(in_one(var), eps))
                if running_step:
                    old = lane(load_parameter(running_mean, at), 0)
                    store_parameter(running_mean, at, in_one(momentum * old + (1.0 - momentum) * hi))
                    old, var = lane(load_parameter(running_var, at), 0), m2 / (n - ddof)
                    store_parameter(running_var, at, in_one(momentum * old + (1.0 - momentum) * var))

    @cuda.jit
    def moments(
        x, outer, channels, inner, step_outer, step_inner, partial, done, mean, mean_lo, invstd, eps,
        running_mean, running_var, running_step, momentum, ddof,
    ):  # fmt: skip
        """Mean and inverse standard deviation of every channel. Running statistics are updated."""
        parts = cuda.shared.array((4, entries), float64)
        last = cuda.shared.array(1, int32)
        if sum_moments(
            x, outer, channels, inner, step_outer, step_inner, x, 0, 1, partial, done, parts, last
        ):  # fmt: skip
            finish_moments(
                channels, parts, mean, mean_lo, invstd, eps, running_mean, running_var, running_step, momentum, ddof
            )

    @cuda.jit
    def collect(
        x, outer, channels, inner, step_outer, step_inner, partial, done, weights, weight_step, per_sample, result,
    ):  # fmt: skip
        """Count, mean, its low part and m2 of every channel. A sample has `per_sample` outer positions."""
        parts = cuda.shared.array((4, entries), float64)
        last = cuda.shared.array(1, int32)
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        if not sum_moments(
            x, outer, channels, inner, step_outer, step_inner, weights, weight_step, per_sample,
            partial, done, parts, last,
        ):  # fmt: skip
            return
        if cuda.threadIdx.y == 0 and column < channels:
            for k in range(lanes):
                at, width = column * lanes + k, channels * lanes
                n, hi, lo, m2 = four(parts, cuda.threadIdx.x * lanes + k)
                hi, lo = two_sum(hi, lo)
                store_one(result, at, in_one(n))
                store_one(result, at + width, in_one(hi))
                store_one(result, at + 2 * width, in_one(lo))
                store_one(result, at + 3 * width, in_one(0.0 if m2 < 0.0 else m2))

    # ---- results, from statistics and parameters ----

    if given:

        @cuda.jit(device=True)
        def statistics(column, mean, var, eps):
            return load_parameters(mean, column), inverse_std(load_parameters(var, column), eps)

        @cuda.jit(device=True)
        def remainder(column, mean_lo):
            return in_channels(0.0)

    else:

        @cuda.jit(device=True)
        def statistics(column, mean, invstd, eps):
            return load_wide(mean, column), load_wide(invstd, column)

        @cuda.jit(device=True)
        def remainder(column, mean_lo):
            return load_wide(mean_lo, column)

    @cuda.jit(device=True)
    def forward_of(column, mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, eps):
        """``y = (x - mean) * scale + shift`` for each value of a vector."""
        gammas = parameter(gamma, column, gamma_step, 1.0)
        betas = parameter(beta, column, beta_step, 0.0)
        means, scales = statistics(column, mean, invstd, eps)
        scales = scales * gammas
        return spread(means), spread(scales), spread(betas - remainder(column, mean_lo) * scales)

    if with_residual:

        @cuda.jit(device=True)
        def plus(v, z, i):
            return v + load(z, i)

        @cuda.jit(device=True)
        def kept(dz, i, g):
            store(dz, i, g)

    else:

        @cuda.jit(device=True)
        def plus(v, z, i):
            return v

        @cuda.jit(device=True)
        def kept(dz, i, g):
            pass

    if with_relu:

        @cuda.jit(device=True)
        def activated(v):
            return relu(v)

        @cuda.jit(device=True)
        def passed(y, dy):
            return where_above_0(y, dy)

    else:

        @cuda.jit(device=True)
        def activated(v):
            return v

        @cuda.jit(device=True)
        def passed(y, dy):
            return dy

    if frozen:

        @cuda.jit(device=True)
        def gradient(direct, centered, k_x, k_offset):
            return direct

    else:

        @cuda.jit(device=True)
        def gradient(direct, centered, k_x, k_offset):
            return direct + (centered * k_x + k_offset)

    @cuda.jit(device=True)
    def write_forward(
        x, z, y, outer, channels, inner, step_outer, step_inner,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, eps,
    ):  # fmt: skip
        """Write the result, from the end of the array: what was read last is still in the cache."""
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        if column >= channels:
            return
        k_mean, k_scale, k_shift = forward_of(
            column, mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, eps
        )  # fmt: skip
        position = cuda.blockIdx.y * members + cuda.threadIdx.y
        o, j = position // inner, position % inner
        while o < outer:
            i = ((outer - 1 - o) * channels + column) * inner + j
            store(y, i, activated(plus((load(x, i) - k_mean) * k_scale + k_shift, z, i)))
            o, j = onward(o, j, step_outer, step_inner, inner)

    @cuda.jit
    def apply(
        x, z, y, outer, channels, inner, step_outer, step_inner,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, eps,
    ):  # fmt: skip
        """``activation(gamma * (x - mean) * invstd + beta + z)``."""
        write_forward(
            x, z, y, outer, channels, inner, step_outer, step_inner,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, eps,
        )  # fmt: skip

    @cuda.jit
    def forward(
        x, z, y, outer, channels, inner, step_outer, step_inner, mean, mean_lo, invstd,
        gamma, gamma_step, beta, beta_step, eps, running_mean, running_var, running_step, momentum, ddof,
    ):  # fmt: skip
        """`moments`, then `apply`."""
        parts = cuda.shared.array((4, entries), float64)
        last = cuda.shared.array(1, int32)
        sum_moments(x, outer, channels, inner, step_outer, step_inner, x, 0, 1, x, x, parts, last)
        finish_moments(
            channels, parts, mean, mean_lo, invstd, eps, running_mean, running_var, running_step, momentum, ddof
        )
        cuda.syncthreads()
        write_forward(
            x, z, y, outer, channels, inner, step_outer, step_inner,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, eps,
        )  # fmt: skip

    @cuda.jit(device=True)
    def sum_backward(
        dy, x, z, outer, channels, inner, step_outer, step_inner, partial, done,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, parts, last,
    ):  # fmt: skip
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        position = cuda.blockIdx.y * members + cuda.threadIdx.y
        o, j = position // inner, position % inner
        s = q = k_mean = k_scale = k_shift = in_values(0.0)
        if column < channels:
            k_mean, k_scale, k_shift = forward_of(
                column, mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, 0.0
            )  # fmt: skip
        while column < channels and o < outer:
            i = (o * channels + column) * inner + j
            centered = load(x, i) - k_mean
            g = passed(plus(centered * k_scale + k_shift, z, i), load(dy, i))
            s = s + g
            q = q + g * centered
            o, j = onward(o, j, step_outer, step_inner, inner)
        for k in range(lanes):
            i = (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k
            put_two(parts, i, (summed(s, k), summed(q, k)))
        if not merge_sums(parts, last, partial, done, channels):
            return
        if cuda.threadIdx.y == 0 and column < channels:
            for k in range(lanes):
                at = column * lanes + k
                total_, product = two(parts, cuda.threadIdx.x * lanes + k)
                lo, inverse = lane(load_one(mean_lo, at), 0), lane(load_one(invstd, at), 0)
                store_one(dgamma, at, in_one((product - lo * total_) * inverse))
                store_one(dbeta, at, in_one(total_))

    @cuda.jit(device=True)
    def write_backward(
        dy, x, z, dx, dz, outer, channels, inner, step_outer, step_inner,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, per_value,
    ):  # fmt: skip
        """Write dx, from the end of the array."""
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        if column >= channels:
            return
        k_mean, k_scale, k_shift = forward_of(
            column, mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, 0.0
        )  # fmt: skip
        scale = parameter(gamma, column, gamma_step, 1.0) * load_wide(invstd, column)
        of_x = in_channels(-per_value) * scale * load_wide(invstd, column) * load_wide(dgamma, column)
        k_dy, k_x = spread(scale), spread(of_x)
        k_offset = spread(
            in_channels(-per_value) * scale * load_wide(dbeta, column) - load_wide(mean_lo, column) * of_x
        )
        position = cuda.blockIdx.y * members + cuda.threadIdx.y
        o, j = position // inner, position % inner
        while o < outer:
            i = ((outer - 1 - o) * channels + column) * inner + j
            centered = load(x, i) - k_mean
            g = passed(plus(centered * k_scale + k_shift, z, i), load(dy, i))
            store(dx, i, gradient(g * k_dy, centered, k_x, k_offset))
            kept(dz, i, g)
            o, j = onward(o, j, step_outer, step_inner, inner)

    @cuda.jit
    def backward_sums(
        dy, x, z, outer, channels, inner, step_outer, step_inner, partial, done,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta,
    ):  # fmt: skip
        """``dgamma = sum(dy * x_hat)`` and ``dbeta = sum(dy)`` of every channel, dy being 0 where ReLU gave 0."""
        parts = cuda.shared.array((2, entries), float64)
        last = cuda.shared.array(1, int32)
        sum_backward(
            dy, x, z, outer, channels, inner, step_outer, step_inner, partial, done,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, parts, last,
        )  # fmt: skip

    @cuda.jit
    def backward_apply(
        dy, x, z, dx, dz, outer, channels, inner, step_outer, step_inner,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, per_value,
    ):  # fmt: skip
        """``dx = gamma * invstd * (dy - mean(dy) - x_hat * mean(dy * x_hat))``.

        `per_value` is 1 over the number of values of a channel.
        """
        write_backward(
            dy, x, z, dx, dz, outer, channels, inner, step_outer, step_inner,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, per_value,
        )  # fmt: skip

    @cuda.jit
    def backward(
        dy, x, z, dx, dz, outer, channels, inner, step_outer, step_inner,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, per_value,
    ):  # fmt: skip
        """`backward_sums`, then `backward_apply`."""
        parts = cuda.shared.array((2, entries), float64)
        last = cuda.shared.array(1, int32)
        sum_backward(
            dy, x, z, outer, channels, inner, step_outer, step_inner, x, x,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, parts, last,
        )  # fmt: skip
        cuda.syncthreads()
        write_backward(
            dy, x, z, dx, dz, outer, channels, inner, step_outer, step_inner,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, per_value,
        )  # fmt: skip

    return Kernels(moments, apply, forward, backward_sums, backward_apply, backward, collect)
