"""The kernels: {moments, apply} forward, {sums, apply} backward, each over one walk that serves both memory forms.

Where one block has all of a channel, one kernel does both steps of a direction.

An array is ``(outer, channels, inner)`` in vectors of n values. In the form of planes a vector holds n neighbours of
one channel; in the form of rows, where inner is 1, one value of each of n channels. A block has `columns` x `members`
threads: a column is a vector of the channels axis, and its members share that column's values with those of the other
blocks of the column, the slices. The forms differ only in whether the lanes of a vector are added up in the end.

A thread sums deviations from its own first value, so that an outlier costs no digits that it would not cost anyway.
Members and slices merge (Chan, Golub & LeVeque, 1983) in an order that depends on the plan alone; the last block of a
column to finish merges the slices and folds. Until then a mean is a deviation from the channel's first value, and then
it is told in two parts, so that a large mean costs no digits.

For a transformer the same sums leave NaN out and are weighted by sample: `collect`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda, float64, int32

from . import _compat


class Kind(NamedTuple):
    """What kernels are compiled for."""

    storage: str  # the type of the data in memory
    parameters: str  # that of gamma, beta, running and given statistics
    rows: bool  # the form
    n: int  # values of a vector
    columns: int  # of a block
    members: int  # of a column in a block, a power of two
    relu: bool = False
    residual: bool = False
    given: bool = False  # a mean and a variance of type `parameters`; else saved statistics
    frozen: bool = False  # statistics do not depend on x
    skipping: bool = False  # NaN is left out, and samples are weighted; vectors of planes hold one value then


class Kernels(NamedTuple):
    """Compiled when they are first launched. Sizes are in vectors; `channels` counts those of the channels axis.

    `step_outer`, `step_inner` are where a thread goes next. Parameters that are not given have a step of 0, else 1.
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
    load_value, _ = _compat.access(storage, 1)
    distance = 1 if rows else n  # values from one channel's first to the next one's, by inner
    load_parameter, store_parameter = _compat.access(parameters, 1)
    in_values, in_channels, in_one = (_compat.filled(size) for size in (n, lanes, 1))
    lane, total = _compat.lane, _compat.total
    relu, where_above_0, inverse_std = _compat.relu, _compat.where_above_0, _compat.inverse_std
    present, known, where_0 = _compat.present, _compat.known, _compat.where_0
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
    def join_moments(count, mean, m2, count_, mean_, m2_):
        both = count + count_
        if both == 0.0:
            return 0.0, 0.0, 0.0
        delta, share = mean_ - mean, count_ / both
        return both, mean + delta * share, m2 + m2_ + delta * (count * share) * delta

    @cuda.jit(device=True)
    def join_sums(a, b, c, a_, b_, c_):
        return a + a_, b + b_, c + c_

    def merging(join):
        @cuda.jit(device=True)
        def merge_members(a, b, c):
            """All members of a column into the first."""
            half = members // 2
            cuda.syncthreads()
            while half > 0:
                if cuda.threadIdx.y < half:
                    for k in range(lanes):
                        i = (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k
                        j = i + half * columns * lanes
                        a[i], b[i], c[i] = join(a[i], b[i], c[i], a[j], b[j], c[j])
                cuda.syncthreads()
                half //= 2

        @cuda.jit(device=True)
        def merge(a, b, c, last, partial, done, channels):
            """All members and slices of a column into the entries of member 0. True in the block that has them."""
            column = cuda.blockIdx.x * columns + cuda.threadIdx.x
            slices, width, first = cuda.gridDim.y, channels * lanes, column * lanes
            merge_members(a, b, c)
            if slices == 1:
                return True
            if cuda.threadIdx.y == 0 and column < channels:
                for k in range(lanes):
                    i = cuda.threadIdx.x * lanes + k
                    at = 3 * cuda.blockIdx.y * width + first + k
                    store_one(partial, at, in_one(a[i]))
                    store_one(partial, at + width, in_one(b[i]))
                    store_one(partial, at + 2 * width, in_one(c[i]))
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
                a_, b_, c_ = 0.0, 0.0, 0.0
                slice_ = cuda.threadIdx.y
                while slice_ < slices and column < channels:
                    at = 3 * slice_ * width + first + k
                    a_, b_, c_ = join(
                        a_, b_, c_, lane(load_one(partial, at), 0), lane(load_one(partial, at + width), 0),
                        lane(load_one(partial, at + 2 * width), 0),
                    )  # fmt: skip
                    slice_ += members
                i = (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k
                a[i], b[i], c[i] = a_, b_, c_
            merge_members(a, b, c)
            return True

        return merge

    merge_moments, merge_sums = merging(join_moments), merging(join_sums)

    # ---- moments ----

    if skipping:

        @cuda.jit(device=True)
        def weighed(weights, step, o, per_sample):
            """The weight of the sample of a position."""
            return 1.0 if step == 0 else lane(load_one(weights, o // per_sample), 0)

        @cuda.jit(device=True)
        def taken(v, weight, shift, count, s, q):
            """Sums with one more vector. The first value that counts is what deviations are from."""
            shift = where_0(count, v, shift)
            weights = present(v) * weight
            d = known(v - shift)
            return shift, count + weights, s + weights * d, q + weights * d * d

        @cuda.jit(device=True)
        def base(v):
            """What a mean is told from."""
            return known(v)

        @cuda.jit(device=True)
        def counted(count, steps):
            return count

    else:

        @cuda.jit(device=True)
        def weighed(weights, step, o, per_sample):
            return 1.0

        @cuda.jit(device=True)
        def taken(v, weight, shift, count, s, q):
            d = v - shift
            return shift, count, s + d, q + d * d

        @cuda.jit(device=True)
        def base(v):
            return v

        @cuda.jit(device=True)
        def counted(count, steps):
            return in_values(steps)

    @cuda.jit(device=True)
    def sum_moments(
        x, outer, channels, inner, step_outer, step_inner, weights, weight_step, per_sample,
        partial, done, a, b, c, last,
    ):  # fmt: skip
        """Count, mean less the channel's `base`, and m2 into the entries of member 0; as `merge` returns."""
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        position = cuda.blockIdx.y * members + cuda.threadIdx.y
        o, j = position // inner, position % inner
        steps = 0.0
        count = s = q = shift = in_values(0.0)
        if column < channels and o < outer:
            shift = spread(load(x, (o * channels + column) * inner + j))
        while column < channels and o < outer:
            weight = weighed(weights, weight_step, o, per_sample)
            v = load(x, (o * channels + column) * inner + j)
            shift, count, s, q = taken(v, weight, shift, count, s, q)
            steps += 1.0
            o, j = onward(o, j, step_outer, step_inner, inner)
        count = counted(count, steps)
        offset = in_values(0.0)
        if steps > 0.0:
            offset = where_0(count, offset, shift - spread(base(load(x, column * inner))))
        for k in range(lanes):
            i = (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k
            a[i] = summed(count, k)
            b[i] = summed(s, k)
            c[i] = summed(q, k)
        for k in range(lanes):
            i = (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k
            if a[i] > 0.0:
                mean_of_s = b[i] / a[i]
                c[i] -= b[i] * mean_of_s
                b[i] = mean_of_s
        for k in range(lanes):
            b[(cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k] += lane(offset, k)
        return merge_moments(a, b, c, last, partial, done, channels)

    @cuda.jit(device=True)
    def told(x, at, inner, b):
        """The mean of a channel in two parts."""
        first = lane(base(load_value(x, at * distance * inner)), 0)
        hi = first + b
        back = hi - first
        return hi, (first - (hi - back)) + (b - back)

    @cuda.jit(device=True)
    def finish_moments(
        x, channels, inner, a, b, c, mean, mean_lo, invstd, eps,
        running_mean, running_var, running_step, momentum, ddof,
    ):  # fmt: skip
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        if cuda.threadIdx.y == 0 and column < channels:
            for k in range(lanes):
                i = cuda.threadIdx.x * lanes + k
                at = column * lanes + k
                hi, lo = told(x, at, inner, b[i])
                store_one(mean, at, in_one(hi))
                store_one(mean_lo, at, in_one(lo))
                m2 = 0.0 if c[i] < 0.0 else c[i]  # NaN stays
                var = m2 / a[i]
                var += var - var  # NaN where it is beyond float64
                store_one(invstd, at, inverse_std(in_one(var), eps))
                if running_step:
                    old = lane(load_parameter(running_mean, at), 0)
                    store_parameter(running_mean, at, in_one(momentum * old + (1.0 - momentum) * hi))
                    old, var = lane(load_parameter(running_var, at), 0), m2 / (a[i] - ddof)
                    store_parameter(running_var, at, in_one(momentum * old + (1.0 - momentum) * var))

    @cuda.jit
    def moments(
        x, outer, channels, inner, step_outer, step_inner, partial, done, mean, mean_lo, invstd, eps,
        running_mean, running_var, running_step, momentum, ddof,
    ):  # fmt: skip
        """Mean and inverse standard deviation of every channel; running statistics move towards the batch's."""
        a = cuda.shared.array(entries, float64)
        b = cuda.shared.array(entries, float64)
        c = cuda.shared.array(entries, float64)
        last = cuda.shared.array(1, int32)
        if sum_moments(
            x, outer, channels, inner, step_outer, step_inner, x, 0, 1, partial, done, a, b, c, last
        ):  # fmt: skip
            finish_moments(
                x, channels, inner, a, b, c, mean, mean_lo, invstd, eps,
                running_mean, running_var, running_step, momentum, ddof,
            )  # fmt: skip

    @cuda.jit
    def collect(
        x, outer, channels, inner, step_outer, step_inner, partial, done, weights, weight_step, per_sample, result,
    ):  # fmt: skip
        """Count, mean, its low part and m2 of every channel, one after the other. A sample has `per_sample` rows."""
        a = cuda.shared.array(entries, float64)
        b = cuda.shared.array(entries, float64)
        c = cuda.shared.array(entries, float64)
        last = cuda.shared.array(1, int32)
        column = cuda.blockIdx.x * columns + cuda.threadIdx.x
        if not sum_moments(
            x, outer, channels, inner, step_outer, step_inner, weights, weight_step, per_sample,
            partial, done, a, b, c, last,
        ):  # fmt: skip
            return
        if cuda.threadIdx.y == 0 and column < channels:
            for k in range(lanes):
                i = cuda.threadIdx.x * lanes + k
                at, width = column * lanes + k, channels * lanes
                hi, lo = told(x, at, inner, b[i])
                store_one(result, at, in_one(a[i]))
                store_one(result, at + width, in_one(hi))
                store_one(result, at + 2 * width, in_one(lo))
                store_one(result, at + 3 * width, in_one(0.0 if c[i] < 0.0 else c[i]))

    # ---- what a channel's statistics and parameters make of its values ----

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
        """From the end: what was read last is in the cache."""
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
        a = cuda.shared.array(entries, float64)
        b = cuda.shared.array(entries, float64)
        c = cuda.shared.array(entries, float64)
        last = cuda.shared.array(1, int32)
        sum_moments(x, outer, channels, inner, step_outer, step_inner, x, 0, 1, x, x, a, b, c, last)
        finish_moments(
            x, channels, inner, a, b, c, mean, mean_lo, invstd, eps,
            running_mean, running_var, running_step, momentum, ddof,
        )  # fmt: skip
        cuda.syncthreads()
        write_forward(
            x, z, y, outer, channels, inner, step_outer, step_inner,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, eps,
        )  # fmt: skip

    @cuda.jit(device=True)
    def sum_backward(
        dy, x, z, outer, channels, inner, step_outer, step_inner, partial, done,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, a, b, c, last,
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
            a[i] = summed(s, k)
            b[i] = summed(q, k)
            c[i] = 0.0
        if not merge_sums(a, b, c, last, partial, done, channels):
            return
        if cuda.threadIdx.y == 0 and column < channels:
            for k in range(lanes):
                i = cuda.threadIdx.x * lanes + k
                at = column * lanes + k
                lo, inverse = lane(load_one(mean_lo, at), 0), lane(load_one(invstd, at), 0)
                store_one(dgamma, at, in_one((b[i] - lo * a[i]) * inverse))
                store_one(dbeta, at, in_one(a[i]))

    @cuda.jit(device=True)
    def write_backward(
        dy, x, z, dx, dz, outer, channels, inner, step_outer, step_inner,
        mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, per_value,
    ):  # fmt: skip
        """From the end."""
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
        a = cuda.shared.array(entries, float64)
        b = cuda.shared.array(entries, float64)
        c = cuda.shared.array(entries, float64)
        last = cuda.shared.array(1, int32)
        sum_backward(
            dy, x, z, outer, channels, inner, step_outer, step_inner, partial, done,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, a, b, c, last,
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
        a = cuda.shared.array(entries, float64)
        b = cuda.shared.array(entries, float64)
        c = cuda.shared.array(entries, float64)
        last = cuda.shared.array(1, int32)
        sum_backward(
            dy, x, z, outer, channels, inner, step_outer, step_inner, x, x,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, a, b, c, last,
        )  # fmt: skip
        cuda.syncthreads()
        write_backward(
            dy, x, z, dx, dz, outer, channels, inner, step_outer, step_inner,
            mean, mean_lo, invstd, gamma, gamma_step, beta, beta_step, dgamma, dbeta, per_value,
        )  # fmt: skip

    return Kernels(moments, apply, forward, backward_sums, backward_apply, backward, collect)
