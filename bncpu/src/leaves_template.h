/* The leaves for one element type T of one variant. Included by leaves_unit.h, never alone.
 *
 * Four loops go over the data, each forward and backward: rows_sums, plane_sums, rows_apply and planes_apply. Besides them
 * there are those of short_template.h. `how` is a constant at every call, so each combination of its flags is compiled
 * separately.
 */

/* A register of T, its bits, and LANES values of T: registers_c.h says what they are for. */
#define VT NAME(vt)
#define VBITS NAME(vbits)
#define HT NAME(ht)
#define T_LANES ((ptrdiff_t)(sizeof(VT) / sizeof(T)))

#include "conversions_template.h"

/* ---- the arrays of a part ---- */

/* Where the same run begins in every array. `how` says which arrays there are. In a backward pass y is dx. */
typedef struct {
    const T *x, *z, *dy;
    T *y, *dz;
} NAME(runs);

/* converted: for sums, room for some values of x if x is of another type. fold: for sums, how many rows are taken as one row.
 * channels: of one of these rows. ahead: for results, how many bytes ahead of a single stream past the cache are fetched. */
typedef struct {
    bn_array x, z, dy, y, dz;
    T *converted;
    ptrdiff_t fold, channels;
    ptrdiff_t ahead;
} NAME(arrays);

INLINE NAME(runs) NAME(run)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t c, const int how) {
    NAME(runs) r = {(const T *)a.x.data + o * a.x.outer + c * a.x.channel, NULL, NULL, NULL, NULL};
    if (how & RESIDUAL)
        r.z = (const T *)a.z.data + o * a.z.outer + c * a.z.channel;
    if (how & BACKWARD)
        r.dy = (const T *)a.dy.data + o * a.dy.outer + c * a.dy.channel;
    if (a.y.data)
        r.y = (T *)a.y.data + o * a.y.outer + c * a.y.channel;
    if (a.dz.data)
        r.dz = (T *)a.dz.data + o * a.dz.outer + c * a.dz.channel;
    return r;
}

INLINE int NAME(is_rows)(bn_part p, bn_array x) { return p.inner == 1 && x.channel == 1; }

/* ---- sums: s += w*g, q += w*g*d, n += w with d = x - shift, everything in float64 ----
 * g is d itself in moments, and dy in a backward pass. n is summed only with MASKED; else it is the same for all channels. */

typedef struct {
    HT mean, scale, shift;
} NAME(affine_ht);

INLINE void NAME(accumulate)(NAME(runs) r, ptrdiff_t i, const ptrdiff_t lanes, vdouble shift,
                             vdouble w, NAME(affine_ht) f, vdouble *n, vdouble *s, vdouble *q,
                             const int how) {
    HT x = NAME(load_ht)(r.x + i, lanes);
    vdouble d = NAME(widen)(x) - shift, g;
    if (lanes < LANES) {
        d = first_of(d, lanes);
        w = first_of(w, lanes);
    }
    if (how & MASKED) {
        w = observed(d, w);
        d = observed(d, d);
    }
    g = d;
    if (how & BACKWARD) {
        HT dy = NAME(load_ht)(r.dy + i, lanes);
        if (how & RELU) {
            HT y = (x - f.mean) * f.scale + f.shift;
            if (how & RESIDUAL)
                y = y + NAME(load_ht)(r.z + i, lanes);
            dy = NAME(where_above_0_ht)(y, dy);
        }
        g = NAME(widen)(dy);
    }
    if (how & WEIGHTED)
        g = w * g;
    *s += g;
    *q += g * d;
    if (how & MASKED)
        *n += w;
}

/* The value that is subtracted from each channel, and the coefficients for computing the forward result again: BN_TILE
 * values each. */
typedef struct {
    double *center;
    T *mean, *scale, *shift;
} NAME(about);

typedef struct {
    double *n, *s, *q;
} NAME(sums);

/* Where one of the streams of rows begins. A row is `a.fold` rows of so many channels, each with a weight of its own. */
typedef struct {
    NAME(arrays) a;
    const double *weights;
    ptrdiff_t channels;
} NAME(start);

/* Sums `n_rows` rows of each stream, from row `first` on, the streams in turn. It takes the columns from j on that fit
 * `registers` registers, with `lanes` values in the last one. The sums stay in registers meanwhile. With `wide`, values further
 * on in each stream are fetched: the rest of the row, then the next row. */
INLINE void NAME(rows_sums_at)(const NAME(start) *from, const int streams, ptrdiff_t first, ptrdiff_t n_rows, const int wide,
                               ptrdiff_t width, ptrdiff_t j, const int registers, const ptrdiff_t lanes, NAME(about) k,
                               NAME(sums) to, const int how) {
    ptrdiff_t row[ROW_REGISTERS]; /* the row, of a.fold, whose weight a register needs */
    vdouble center[ROW_REGISTERS], n[ROW_REGISTERS], s[ROW_REGISTERS], q[ROW_REGISTERS];
    NAME(affine_ht) f[ROW_REGISTERS] = {{0}};
    const ptrdiff_t ahead = 512 / sizeof(T);
    const int ends = j + ahead >= width;
    ptrdiff_t u;
    int g, h;
    UNROLL
    for (g = 0; g < registers; g++) {
        center[g] = vdouble_load(k.center + j + g * LANES);
        n[g] = vdouble_load(to.n + j + g * LANES);
        s[g] = vdouble_load(to.s + j + g * LANES);
        q[g] = vdouble_load(to.q + j + g * LANES);
        if (how & WEIGHTED)
            row[g] = (j + g * LANES) / from[0].channels;
        if (how & RELU) {
            f[g].mean = NAME(load_ht)(k.mean + j + g * LANES, LANES);
            f[g].scale = NAME(load_ht)(k.scale + j + g * LANES, LANES);
            f[g].shift = NAME(load_ht)(k.shift + j + g * LANES, LANES);
        }
    }
    for (u = first; u < first + n_rows; u++) {
        UNROLL
        for (h = 0; h < streams; h++) {
            NAME(arrays) a = from[h].a;
            NAME(runs) r = NAME(run)(a, u, 0, how);
            const double *weights = how & WEIGHTED ? from[h].weights + u * a.fold : NULL;
            UNROLL
            for (g = 0; g < registers; g++) {
                ptrdiff_t i = j + g * LANES;
                vdouble w = vdouble_all(how & WEIGHTED ? weights[row[g]] : 1.0);
                if (wide && i % (64 / sizeof(T)) == 0) {
                    PREFETCH(r.x + i + ahead + (ends ? a.x.outer - width : 0));
                    if (how & BACKWARD)
                        PREFETCH(r.dy + i + ahead + (ends ? a.dy.outer - width : 0));
                    if (how & RESIDUAL)
                        PREFETCH(r.z + i + ahead + (ends ? a.z.outer - width : 0));
                }
                NAME(accumulate)(r, i, g + 1 < registers ? LANES : lanes, center[g], w, f[g], &n[g], &s[g], &q[g], how);
            }
        }
    }
    UNROLL
    for (g = 0; g < registers; g++) {
        if (how & MASKED)
            vdouble_store(to.n + j + g * LANES, n[g]);
        vdouble_store(to.s + j + g * LANES, s[g]);
        vdouble_store(to.q + j + g * LANES, q[g]);
    }
}

/* All columns of `n_rows` rows of each stream. The first stream begins at row o, each other one `apart` rows after the one
 * before. */
INLINE void NAME(rows_sums_of)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t apart, const int streams, ptrdiff_t n_rows,
                               const int wide, ptrdiff_t width, NAME(about) k, const double *weights, NAME(sums) to,
                               const int how) {
    const int most = streams == 1 ? 1 : how & (RELU | MASKED) ? ROW_REGISTERS / 2 : ROW_REGISTERS;
    NAME(start) from[SUM_STREAMS];
    ptrdiff_t channels = a.fold > 1 ? a.channels : width, step = wide ? 1 : n_rows, u, j;
    int registers, h;
    UNROLL
    for (h = 0; h != streams; h++) {
        NAME(arrays) at = a;
        if (!(how & BACKWARD) && a.x.type) {
            bn_part rows = {n_rows, width, 1};
            at.x.data = NAME(at)(a.x, o + h * apart, 0, 0);
            NAME(convert)(rows, at.x, a.converted + h * n_rows * width, 0, 0);
            at.x = NAME(packed)(rows, a.converted + h * n_rows * width);
        } else
            at.x.data = (char *)NAME(run)(a, o + h * apart, 0, how).x;
        if (how & BACKWARD)
            at.dy.data = (char *)NAME(run)(a, o + h * apart, 0, how).dy;
        if (how & RESIDUAL)
            at.z.data = (char *)NAME(run)(a, o + h * apart, 0, how).z;
        from[h].a = at;
        from[h].channels = channels;
        from[h].weights = how & WEIGHTED ? weights + (o + h * apart) * a.fold : NULL;
    }
    for (u = 0; u < n_rows; u += step) {
        j = 0;
        UNROLL
        for (registers = 8; registers; registers /= 2)
            for (; registers <= most && j + registers * LANES <= width; j += registers * LANES)
                NAME(rows_sums_at)(from, streams, u, step, wide, width, j, registers, LANES, k, to, how);
        if (j < width)
            NAME(rows_sums_at)(from, streams, u, step, wide, width, j, 1, width - j, k, to, how);
    }
}

/* The rows of a part are read as four streams, a quarter of the rows each, which take turns row by row: more reads are under
 * way than with one stream. If the sums of all columns fit in registers, they stay there for many rows; else for one row of
 * each stream. */
INLINE void NAME(rows_sums)(NAME(arrays) a, ptrdiff_t rows, ptrdiff_t width, NAME(about) k,
                            const double *weights, NAME(sums) to, const int how) {
    const int narrow = width <= (how & (RELU | MASKED) ? ROW_REGISTERS / 2 : ROW_REGISTERS) * LANES;
    ptrdiff_t quarter = rows / SUM_STREAMS, many = CONVERTED / SUM_STREAMS / width, n, o;
    many = many ? many : 1;
    for (o = 0; o < quarter; o += n) {
        n = many < quarter - o ? many : quarter - o;
        if (narrow)
            NAME(rows_sums_of)(a, o, quarter, SUM_STREAMS, n, 0, width, k, weights, to, how);
        else
            NAME(rows_sums_of)(a, o, quarter, SUM_STREAMS, n, 1, width, k, weights, to, how);
    }
    for (o = SUM_STREAMS * quarter; o < rows; o++)
        NAME(rows_sums_of)(a, o, 0, 1, 1, 0, width, k, weights, to, how);
}

/* Element i of the run at (o, c) is added to lane i % SUM_LANES. At the end the lanes are added pairwise. */
INLINE void NAME(plane_sums)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t c, ptrdiff_t inner, NAME(about) k,
                             const double *weights, NAME(sums) to, const int how) {
    vdouble n[SUM_REGISTERS], s[SUM_REGISTERS], q[SUM_REGISTERS], center = vdouble_all(*k.center);
    NAME(affine_ht) f = {0};
    NAME(runs) r = NAME(run)(a, o, c, how);
    const int converts = !(how & BACKWARD) && a.x.type;
    ptrdiff_t start, end, i;
    int u;
    if (how & RELU) {
        f.mean = NAME(all_ht)(*k.mean);
        f.scale = NAME(all_ht)(*k.scale);
        f.shift = NAME(all_ht)(*k.shift);
    }
    for (u = 0; u < SUM_REGISTERS; u++)
        n[u] = s[u] = q[u] = vdouble_all(0.0);
    for (start = 0; start < inner; start = end) {
        end = converts && inner - start > CONVERTED ? start + CONVERTED : inner;
        if (converts) {
            NAME(from)[a.x.type](NAME(at)(a.x, o, c, start), a.converted, end - start);
            r.x = a.converted - start;
        }
        for (i = start; i + SUM_LANES <= end; i += SUM_LANES) {
            PREFETCH(r.x + i + 2048 / sizeof(T));
            if (how & BACKWARD)
                PREFETCH(r.dy + i + 2048 / sizeof(T));
            UNROLL
            for (u = 0; u < SUM_REGISTERS; u++)
                NAME(accumulate)(r, i + u * LANES, LANES, center,
                                 how & WEIGHTED ? vdouble_load(weights + i + u * LANES) : vdouble_all(1.0),
                                 f, &n[u], &s[u], &q[u], how);
        }
        UNROLL
        for (u = 0; u < SUM_REGISTERS; u++) {
            ptrdiff_t left = end - i - u * LANES;
            if (left > 0)
                NAME(accumulate)(r, i + u * LANES, left < LANES ? left : LANES, center,
                                 how & WEIGHTED ? vdouble_load_first(weights + i + u * LANES, left)
                                                : vdouble_all(1.0),
                                 f, &n[u], &s[u], &q[u], how);
        }
    }
    if (how & MASKED)
        *to.n += sum_of_lanes(n);
    *to.s += sum_of_lanes(s);
    *to.q += sum_of_lanes(q);
}

/* The sums of every channel. Narrow rows are folded: several rows are summed as one wide row. Its pieces have the same
 * centers, and their sums are added at the end. With weights, this is done only if no register of any variant holds values
 * of two of the rows. */
INLINE void NAME(part_sums)(bn_part p, NAME(arrays) a, const double *weights,
                            ptrdiff_t weight_stride, NAME(about) k, NAME(sums) to, const int how) {
    ptrdiff_t o, c, fold = 1, rows, columns;
    int is_rows = NAME(is_rows)(p, a.x);
    if (is_rows && !(how & WEIGHTED && p.channels % 8) && p.outer > 1 && a.x.outer == p.channels &&
        (!(how & BACKWARD) || a.dy.outer == p.channels) &&
        (!(how & RESIDUAL) || a.z.outer == p.channels))
        fold = rows_folded(p.channels) < p.outer ? rows_folded(p.channels) : p.outer;
    for (c = p.channels; c < fold * p.channels; c++) {
        k.center[c] = k.center[c - p.channels];
        if (how & RELU) {
            k.mean[c] = k.mean[c - p.channels];
            k.scale[c] = k.scale[c - p.channels];
            k.shift[c] = k.shift[c - p.channels];
        }
    }
    memset(to.n, 0, fold * p.channels * sizeof(double));
    memset(to.s, 0, fold * p.channels * sizeof(double));
    memset(to.q, 0, fold * p.channels * sizeof(double));
    if (!is_rows) {
        for (o = 0; o < p.outer; o++)
            for (c = 0; c < p.channels; c++) {
                NAME(about) at = {k.center + c, NULL, NULL, NULL};
                NAME(sums) sums = {to.n + c, to.s + c, to.q + c};
                if (how & RELU)
                    at.mean = k.mean + c, at.scale = k.scale + c, at.shift = k.shift + c;
                NAME(plane_sums)(a, o, c, p.inner, at, how & WEIGHTED ? weights + o * weight_stride : NULL, sums, how);
            }
        return;
    }
    rows = p.outer / fold;
    if (fold > 1) {
        NAME(arrays) wide = a;
        wide.x.outer = wide.dy.outer = wide.z.outer = fold * p.channels;
        wide.fold = fold;
        wide.channels = p.channels;
        NAME(rows_sums)(wide, rows, fold * p.channels, k, weights, to, how);
        NAME(rows_sums_of)(wide, rows, 0, 1, 1, 0, (p.outer - rows * fold) * p.channels, k, weights, to, how);
        for (c = p.channels; c < fold * p.channels; c++) {
            to.n[c % p.channels] += to.n[c];
            to.s[c % p.channels] += to.s[c];
            to.q[c % p.channels] += to.q[c];
        }
        return;
    }
    for (c = 0; c < p.channels; c += columns) {
        NAME(arrays) at = a;
        NAME(about) about = {k.center + c, NULL, NULL, NULL};
        NAME(sums) sums = {to.n + c, to.s + c, to.q + c};
        columns = p.channels - c;
        if (!(how & BACKWARD) && a.x.type) {
            columns = columns < CONVERTED / SUM_STREAMS ? columns : CONVERTED / SUM_STREAMS;
            at.x.data = NAME(at)(a.x, 0, c, 0);
        }
        if (how & RELU)
            about = k;
        NAME(rows_sums)(at, rows, columns, about, weights, sums, how);
    }
}

/* ---- moments of a part: choose a shift, sum, and sum again if the shift was far from the mean ---- */

INLINE double NAME(value)(bn_array x, ptrdiff_t o, ptrdiff_t c, ptrdiff_t i) {
    const char *at = NAME(at)(x, o, c, i);
    T value;
    if (!x.type)
        return (double)*(const T *)at;
    NAME(from)[x.type](at, &value, 1);
    return (double)value;
}

/* The shift of each channel: its value of largest weight, or its first value without weights. So
 * |mean - shift| <= sqrt(count) * std, and one correction is always enough. Masked: NaN is not chosen. */
static void NAME(choose_shift)(bn_part p, bn_array x, const double *weights, ptrdiff_t weight_stride, int masked,
                               double *shift) {
    ptrdiff_t o, i, c, best_o = 0, best_i = 0;
    if (!masked) {
        if (weights)
            largest_weight(p, weights, weight_stride, &best_o, &best_i);
        for (c = 0; c < p.channels; c++)
            shift[c] = NAME(value)(x, best_o, c, best_i);
        return;
    }
    for (c = 0; c < p.channels; c++) {
        double best = -1.0;
        shift[c] = 0.0;
        for (o = 0; o < p.outer && (weights || best < 0); o++)
            for (i = 0; i < p.inner && (weights || best < 0); i++) {
                double value = NAME(value)(x, o, c, i);
                double w = weights ? weights[o * weight_stride + i] : 1.0;
                if (value == value && w > best) {
                    best = w;
                    /* Not infinity: inf - inf is NaN, which would be taken as missing. */
                    shift[c] = isinf(value) ? 0.0 : value;
                }
            }
    }
}

/* Moves a shift to the mean if it lies more than 8 standard deviations from it, and returns whether any moved. For integers
 * it moves to the nearest integer: then deviations are integers, and their sums are exact. */
static int NAME(recentre)(ptrdiff_t channels, bn_type type, const double *n, const double *s, const double *q,
                          double *shift) {
    ptrdiff_t c;
    int moved = 0;
    for (c = 0; c < channels; c++) {
        double mean = s[c] / n[c], between = s[c] * mean;
        if (n[c] > 0 && between > 64.0 * (q[c] - between) && between > 0) {
            shift[c] = type >= BN_UINT8 ? rint(shift[c] + mean) : shift[c] + mean;
            moved = 1;
        }
    }
    return moved;
}

static void NAME(sums_about)(bn_part p, bn_array x, T *converted, const double *weights, ptrdiff_t weight_stride,
                             int masked, double *shift, double *n, double *s, double *q) {
    NAME(arrays) a = {x, {0}, {0}, {0}, {0}, converted, 1, 0, 0};
    NAME(about) k = {shift, NULL, NULL, NULL};
    NAME(sums) to = {n, s, q};
    if (weights && masked)
        NAME(part_sums)(p, a, weights, weight_stride, k, to, WEIGHTED | MASKED);
    else if (weights)
        NAME(part_sums)(p, a, weights, weight_stride, k, to, WEIGHTED);
    else if (masked)
        NAME(part_sums)(p, a, NULL, 0, k, to, MASKED);
    else
        NAME(part_sums)(p, a, NULL, 0, k, to, 0);
}

static int NAME(moments)(bn_part p, bn_array x, const double *weights, ptrdiff_t weight_stride,
                         int skip_missing, double *count, double *mean, double *mean_lo,
                         double *m2) {
    double shift[BN_TILE], n[BN_TILE], s[BN_TILE], q[BN_TILE];
    T converted[CONVERTED];
    double all = weights ? sum_of_weights(p, weights, weight_stride) : (double)p.outer * (double)p.inner;
    unsigned char finite[BN_TILE];
    ptrdiff_t c;
    int masked = 0;

    NAME(choose_shift)(p, x, weights, weight_stride, 0, shift);
    NAME(sums_about)(p, x, converted, weights, weight_stride, 0, shift, n, s, q);
    for (c = 0; c < p.channels; c++) {
        finite[c] = isfinite(q[c]) != 0;
        masked |= skip_missing && !finite[c];
    }
    if (masked) {
        NAME(choose_shift)(p, x, weights, weight_stride, 1, shift);
        NAME(sums_about)(p, x, converted, weights, weight_stride, 1, shift, n, s, q);
    }
    for (c = 0; c < p.channels; c++)
        if (!masked || finite[c]) /* nothing is missing in this channel: the same bits whatever other channels hold */
            n[c] = all;
    memcpy(count, n, p.channels * sizeof(double));
    if (NAME(recentre)(p.channels, x.type, count, s, q, shift))
        NAME(sums_about)(p, x, converted, weights, weight_stride, masked, shift, n, s, q);

    for (c = 0; c < p.channels; c++) {
        double offset = count[c] > 0 ? s[c] / count[c] : 0.0, spread = q[c] - s[c] * offset;
        double hi = (count[c] > 0 ? shift[c] : 0.0) + offset, back = hi - shift[c];
        mean[c] = hi;
        mean_lo[c] = count[c] > 0 ? (shift[c] - (hi - back)) + (offset - back) : 0.0;
        m2[c] = spread < 0 ? 0.0 : spread;
    }
    return masked;
}

static void NAME(backward_sums)(bn_part p, bn_array x, bn_array z, bn_array dy,
                                const double *center_, bn_coefficients c, int relu, double *sum,
                                double *product) {
    double center[BN_TILE], n[BN_TILE], s[BN_TILE], q[BN_TILE];
    T mean[BN_TILE], scale[BN_TILE], shift[BN_TILE];
    NAME(arrays) a = {x, z, dy, {0}, {0}, NULL, 1, 0, 0};
    NAME(about) k = {center, mean, scale, shift};
    NAME(sums) to = {n, s, q};
    memcpy(center, center_, p.channels * sizeof(double));
    if (relu) {
        memcpy(mean, c.mean, p.channels * sizeof(T));
        memcpy(scale, c.scale, p.channels * sizeof(T));
        memcpy(shift, c.shift, p.channels * sizeof(T));
    }
    if (relu && z.data)
        NAME(part_sums)(p, a, NULL, 0, k, to, BACKWARD | RELU | RESIDUAL);
    else if (relu)
        NAME(part_sums)(p, a, NULL, 0, k, to, BACKWARD | RELU);
    else
        NAME(part_sums)(p, a, NULL, 0, k, to, BACKWARD);
    memcpy(sum, s, p.channels * sizeof(double));
    memcpy(product, q, p.channels * sizeof(double));
}

/* ---- apply ---- */

typedef struct {
    const T *mean, *scale, *shift, *dy_scale, *x_scale, *offset;
} NAME(coefficients);

typedef struct {
    VT mean, scale, shift, dy_scale, x_scale, offset;
} NAME(registers);

/* n values, from i on, of the forward result or of dx. Returns where x is infinite. */
INLINE VBITS NAME(result)(NAME(runs) r, ptrdiff_t i, const ptrdiff_t n, NAME(registers) k, VT *y,
                          const int how) {
    VT x = NAME(load)(r.x + i, n), centred = x - k.mean, v;
    if (!(how & BACKWARD) || how & RELU) {
        v = centred * k.scale + k.shift;
        if (how & RESIDUAL)
            v = v + NAME(load)(r.z + i, n);
    }
    if (!(how & BACKWARD)) {
        *y = how & RELU ? NAME(relu)(v) : v;
        return NAME(infinite)(x);
    }
    VT dy = NAME(load)(r.dy + i, n);
    if (how & RELU)
        dy = NAME(where_above_0)(v, dy);
    if (how & RESIDUAL)
        NAME(store)(r.dz + i, dy, n, 0);
    *y = (centred * k.x_scale + k.offset) + dy * k.dy_scale;
    return (VBITS){0};
}

INLINE NAME(registers) NAME(of_columns)(NAME(coefficients) c, ptrdiff_t j, const ptrdiff_t n, const int how) {
    NAME(registers) k = {0};
    k.mean = NAME(load)(c.mean + j, n);
    if (!(how & BACKWARD) || how & RELU) {
        k.scale = NAME(load)(c.scale + j, n);
        k.shift = NAME(load)(c.shift + j, n);
    }
    if (how & BACKWARD) {
        k.dy_scale = NAME(load)(c.dy_scale + j, n);
        k.x_scale = NAME(load)(c.x_scale + j, n);
        k.offset = NAME(load)(c.offset + j, n);
    }
    return k;
}

INLINE NAME(registers) NAME(of_plane)(NAME(coefficients) c, ptrdiff_t channel, const int how) {
    NAME(registers) k = {0};
    k.mean = NAME(all)(c.mean[channel]);
    if (!(how & BACKWARD) || how & RELU) {
        k.scale = NAME(all)(c.scale[channel]);
        k.shift = NAME(all)(c.shift[channel]);
    }
    if (how & BACKWARD) {
        k.dy_scale = NAME(all)(c.dy_scale[channel]);
        k.x_scale = NAME(all)(c.x_scale[channel]);
        k.offset = NAME(all)(c.offset[channel]);
    }
    return k;
}

/* The first n lanes from a, the others from b. n may be negative, or more than the lanes. */
INLINE NAME(registers) NAME(joined)(NAME(registers) a, NAME(registers) b, ptrdiff_t n, const int how) {
    n = n < 0 ? 0 : n < T_LANES ? n : T_LANES;
    a.mean = NAME(blend)(a.mean, b.mean, n);
    if (!(how & BACKWARD) || how & RELU) {
        a.scale = NAME(blend)(a.scale, b.scale, n);
        a.shift = NAME(blend)(a.shift, b.shift, n);
    }
    if (how & BACKWARD) {
        a.dy_scale = NAME(blend)(a.dy_scale, b.dy_scale, n);
        a.x_scale = NAME(blend)(a.x_scale, b.x_scale, n);
        a.offset = NAME(blend)(a.offset, b.offset, n);
    }
    return a;
}

/* How many of the first n values of a line are in register h of the line. */
INLINE ptrdiff_t NAME(in_register)(const ptrdiff_t n, const int h) {
    return n - h * T_LANES < T_LANES ? n - h * T_LANES : T_LANES;
}

/* A line of results at i, for the runs of `step` outer positions, which share each load of the parameters. Four streams (a
 * page apart in wide rows) are written faster than one; with eight there are more lines than the processor can combine
 * stores past the cache in. A line is written at once, whatever the width of a register. n is LINE, or less at the ends. k
 * has the parameters for each register of the line. */
INLINE VBITS NAME(apply_line)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t c, ptrdiff_t i, const ptrdiff_t n,
                              const NAME(registers) *k, const int step, const int how) {
    VBITS infinite = (VBITS){0};
    VT v[4][LINE_REGISTERS];
    int u, h;
    if (how & STREAM && step == 1 && n == LINE) {
        NAME(runs) r = NAME(run)(a, o, c, how);
        PREFETCH((const char *)(r.x + i) + a.ahead);
        if (how & BACKWARD)
            PREFETCH((const char *)(r.dy + i) + a.ahead);
        if (how & RESIDUAL)
            PREFETCH((const char *)(r.z + i) + a.ahead);
    }
    UNROLL
    for (u = 0; u < step; u++)
        UNROLL
        for (h = 0; h < LINE_REGISTERS; h++)
            if (n > h * T_LANES)
                infinite |= NAME(result)(NAME(run)(a, o + u, c, how), i + h * T_LANES, NAME(in_register)(n, h), k[h],
                                         &v[u][h], how);
    UNROLL
    for (u = 0; u < step; u++)
        UNROLL
        for (h = 0; h < LINE_REGISTERS; h++)
            if (n > h * T_LANES)
                NAME(store)(NAME(run)(a, o + u, c, how).y + i + h * T_LANES, v[u][h], NAME(in_register)(n, h),
                            n == LINE && how & STREAM);
    return infinite;
}

/* The number of elements up to the next line of the cache, where stores past the cache may begin. */
INLINE ptrdiff_t NAME(peel)(const T *y, ptrdiff_t n, const int how) {
    ptrdiff_t head = how & STREAM && STREAMING ? (ptrdiff_t)(-(uintptr_t)y % 64 / sizeof(T)) : 0;
    return head < n ? head : n;
}

/* Whether four outer positions, from o on, are written together. With stores past the cache only if four streams are wanted,
 * and the lines of all four begin at the same element. */
INLINE int NAME(together)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t outer, int streams, const int how) {
    return o + 4 <= outer && (!(how & STREAM) || (streams == 4 && a.y.outer * (ptrdiff_t)sizeof(T) % 64 == 0));
}

INLINE VBITS NAME(rows_apply_line)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t j, const ptrdiff_t n, NAME(coefficients) c,
                                   const int step, const int how) {
    NAME(registers) k[LINE_REGISTERS];
    int h;
    UNROLL
    for (h = 0; h < LINE_REGISTERS; h++)
        if (n > h * T_LANES)
            k[h] = NAME(of_columns)(c, j + h * T_LANES, NAME(in_register)(n, h), how);
    return NAME(apply_line)(a, o, 0, j, n, k, step, how);
}

INLINE VBITS NAME(rows_apply)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t width, NAME(coefficients) c, const int step,
                              const int how) {
    VBITS infinite = (VBITS){0};
    ptrdiff_t j = NAME(peel)(NAME(run)(a, o, 0, how).y, width, how);
    if (j)
        infinite |= NAME(rows_apply_line)(a, o, 0, j, c, step, how);
    for (; j + LINE <= width; j += LINE)
        infinite |= NAME(rows_apply_line)(a, o, j, LINE, c, step, how);
    if (j < width)
        infinite |= NAME(rows_apply_line)(a, o, j, width - j, c, step, how);
    return infinite;
}

/* Adjacent planes, of at least a line each, are written as one run. A line that crosses from a plane into the next takes its
 * parameters from both. */
INLINE VBITS NAME(planes_apply)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t channel, ptrdiff_t planes, ptrdiff_t inner,
                                NAME(coefficients) c, const int step, const int how) {
    VBITS infinite = (VBITS){0};
    NAME(registers) k[LINE_REGISTERS], next;
    ptrdiff_t i = NAME(peel)(NAME(run)(a, o, channel, how).y, inner, how), end = inner, plane = channel;
    int h;
    next = NAME(of_plane)(c, plane, how);
    UNROLL
    for (h = 0; h < LINE_REGISTERS; h++)
        k[h] = next;
    if (i)
        infinite |= NAME(apply_line)(a, o, channel, 0, i, k, step, how);
    for (;; end += inner) {
        for (; i + LINE <= end; i += LINE)
            infinite |= NAME(apply_line)(a, o, channel, i, LINE, k, step, how);
        if (++plane == channel + planes)
            break;
        next = NAME(of_plane)(c, plane, how);
        if (i < end) {
            UNROLL
            for (h = 0; h < LINE_REGISTERS; h++)
                k[h] = NAME(joined)(k[h], next, end - i - h * T_LANES, how);
            infinite |= NAME(apply_line)(a, o, channel, i, LINE, k, step, how);
            i += LINE;
        }
        UNROLL
        for (h = 0; h < LINE_REGISTERS; h++)
            k[h] = next;
    }
    if (i < end)
        infinite |= NAME(apply_line)(a, o, channel, i, end - i, k, step, how);
    return infinite;
}

/* Whether the channels of an array are adjacent. True if there is no array. */
INLINE int NAME(are_adjacent)(bn_part p, bn_array a) {
    return !a.data || a.channel == p.inner;
}

INLINE VBITS NAME(outer_apply)(bn_part p, NAME(arrays) a, ptrdiff_t o, ptrdiff_t planes, NAME(coefficients) k,
                               const int step, const int how) {
    VBITS infinite = (VBITS){0};
    ptrdiff_t c;
    if (!planes)
        return NAME(rows_apply)(a, o, p.channels, k, step, how);
    for (c = 0; c < p.channels; c += planes)
        infinite |= NAME(planes_apply)(a, o, c, planes, p.inner, k, step, how);
    return infinite;
}

INLINE int NAME(part_apply)(bn_part p, NAME(arrays) a, NAME(coefficients) k, int streams, const int how) {
    VBITS infinite = (VBITS){0};
    ptrdiff_t o = 0, planes = NAME(is_rows)(p, a.x) ? 0 : 1;
    size_t byte;
    int any = 0;
    if (planes && p.inner >= LINE && NAME(are_adjacent)(p, a.x) && NAME(are_adjacent)(p, a.z) &&
        NAME(are_adjacent)(p, a.dy) && NAME(are_adjacent)(p, a.y) && NAME(are_adjacent)(p, a.dz))
        planes = p.channels;
    while (o < p.outer)
        if (NAME(together)(a, o, p.outer, streams, how)) {
            infinite |= NAME(outer_apply)(p, a, o, planes, k, 4, how);
            o += 4;
        } else
            infinite |= NAME(outer_apply)(p, a, o++, planes, k, 1, how);
    for (byte = 0; byte < sizeof(infinite); byte++)
        any |= ((const unsigned char *)&infinite)[byte];
    return any != 0;
}

static int NAME(any_apply)(bn_part p, NAME(arrays) a, bn_coefficients c, int stream, int how) {
    const int streams = stream % 64;
    NAME(coefficients) k = {(const T *)c.mean,     (const T *)c.scale,   (const T *)c.shift,
                            (const T *)c.dy_scale, (const T *)c.x_scale, (const T *)c.offset};
    a.ahead = stream - streams;
    switch (how) {
#define CASE(flags)                                                                               \
    case flags:                                                                                   \
        return NAME(part_apply)(p, a, k, streams, flags);                                                  \
    case (flags) | STREAM:                                                                        \
        return NAME(part_apply)(p, a, k, streams, (flags) | STREAM);
        CASE(RELU | RESIDUAL)
        CASE(RESIDUAL)
        CASE(RELU)
        CASE(BACKWARD | RELU | RESIDUAL)
        CASE(BACKWARD | RELU)
        CASE(BACKWARD)
    case STREAM:
        return NAME(part_apply)(p, a, k, streams, STREAM);
    default:
        return NAME(part_apply)(p, a, k, streams, 0);
#undef CASE
    }
}

/* The same for x and y of other types, a piece at a time. Only forward and without residual. */
static int NAME(apply_converted)(bn_part p, bn_array x, bn_array y, bn_coefficients c, int streams, const int how) {
    T from[CONVERTED], to[CONVERTED];
    ptrdiff_t inner = p.inner < CONVERTED ? p.inner : CONVERTED;
    ptrdiff_t channels = p.channels < CONVERTED / inner ? p.channels : CONVERTED / inner;
    ptrdiff_t outer = CONVERTED / (inner * channels), o, first, i;
    int infinite = 0;
    for (o = 0; o < p.outer; o += outer)
        for (first = 0; first < p.channels; first += channels)
            for (i = 0; i < p.inner; i += inner) {
                bn_part part = {p.outer - o < outer ? p.outer - o : outer,
                                p.channels - first < channels ? p.channels - first : channels,
                                p.inner - i < inner ? p.inner - i : inner};
                bn_array x_part = x, y_part = y, as_from, as_to;
                bn_coefficients k = {c.mean + first * sizeof(T), c.scale + first * sizeof(T),
                                     c.shift + first * sizeof(T), NULL, NULL, NULL};
                x_part.data = NAME(at)(x, o, first, i);
                y_part.data = NAME(at)(y, o, first, i);
                as_from = x.type ? NAME(packed)(part, from) : x_part;
                as_to = y.type ? NAME(packed)(part, to) : y_part;
                if (x.type)
                    NAME(convert)(part, x_part, from, 0, 0);
                infinite |= NAME(any_apply)(part, (NAME(arrays)){as_from, {0}, {0}, as_to, {0}, NULL, 1, 0, 0}, k, streams, how);
                if (y.type)
                    NAME(convert)(part, y_part, to, 1, streams);
            }
    return infinite;
}

static int NAME(apply)(bn_part p, bn_array x, bn_array z, bn_array y, bn_coefficients c, int relu,
                       int stream) {
    NAME(arrays) a = {x, z, {0}, y, {0}, NULL, 1, 0, 0};
    int how = (z.data ? RESIDUAL : 0) | (relu ? RELU : 0);
    /* If y is converted, only the converted values are stored past the cache. */
    if (x.type || y.type)
        return NAME(apply_converted)(p, x, y, c, stream, how | (stream && !y.type ? STREAM : 0));
    return NAME(any_apply)(p, a, c, stream, how | (stream ? STREAM : 0));
}

static void NAME(backward_apply)(bn_part p, bn_array x, bn_array z, bn_array dy, bn_array dx,
                                 bn_array dz, bn_coefficients c, int relu, int stream) {
    NAME(arrays) a = {x, z, dy, dx, dz, NULL, 1, 0, 0};
    NAME(any_apply)(p, a, c, stream,
                    BACKWARD | (z.data ? RESIDUAL : 0) | (relu ? RELU : 0) | (stream ? STREAM : 0));
}

#include "short_template.h"

#undef VT
#undef VBITS
#undef HT
#undef T_LANES
