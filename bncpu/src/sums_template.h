/* Sums over a part, and the moments that they make. Included by leaves_template.h, never alone.
 *
 * The loops are rows_sums and plane_sums, each forward and backward. */

/* ---- sums: s += w*g, q += w*g*d, n += w with d = x - shift, everything in float64 ----
 * g is d itself in moments, and dy in a backward pass. n is summed only with MASKED. With COUNTED d is 0 where a value does
 * not count, whatever x. */

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
    if (how & COUNTED)
        d = counted_f64(r.counted + i, d, lanes);
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

/* Where one of the streams of rows begins. A row is `a.joined` rows of so many channels, each with a weight of its own. */
typedef struct {
    NAME(arrays) a;
    const double *weights;
    ptrdiff_t channels;
    const ptrdiff_t *rows; /* with BY_ROW; else the rows from there on */
} NAME(start);

/* Sums `n_rows` rows of each stream, from row `first` on, the streams in turn. It takes the columns from j on that fit
 * `registers` registers, with `lanes` values in the last one. The sums stay in registers meanwhile. With `wide`, values further
 * on in each stream are fetched: 512 bytes ahead, or of a part of longer rows the same columns of the next row. */
INLINE void NAME(rows_sums_at)(const NAME(start) *from, const int streams, ptrdiff_t first, ptrdiff_t n_rows, const int wide,
                               ptrdiff_t width, ptrdiff_t j, const int registers, const ptrdiff_t lanes, NAME(about) k,
                               NAME(sums) to, const int how) {
    ptrdiff_t row[ROW_REGISTERS]; /* the row, of a.joined, whose weight a register needs */
    vdouble center[ROW_REGISTERS], n[ROW_REGISTERS], s[ROW_REGISTERS], q[ROW_REGISTERS];
    NAME(affine_ht) f[ROW_REGISTERS] = {{0}};
    const ptrdiff_t ahead = 512 / sizeof(T);
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
            NAME(runs) r = NAME(run)(a, how & BY_ROW ? from[h].rows[u] : u, 0, how);
            const double *weights = how & WEIGHTED ? from[h].weights + u * a.joined : NULL;
            UNROLL
            for (g = 0; g < registers; g++) {
                ptrdiff_t i = j + g * LANES;
                vdouble w = vdouble_all(how & WEIGHTED ? weights[row[g]] : 1.0);
                if (wide && i % (64 / sizeof(T)) == 0) {
                    PREFETCH(r.x + i + (a.x.outer == width ? ahead : a.x.outer));
                    if (how & BACKWARD)
                        PREFETCH(r.dy + i + (a.dy.outer == width ? ahead : a.dy.outer));
                    if (how & RESIDUAL)
                        PREFETCH(r.z + i + (a.z.outer == width ? ahead : a.z.outer));
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
    ptrdiff_t channels = a.joined > 1 ? a.channels : width, step = wide ? 1 : n_rows, u, j;
    int registers, h;
    UNROLL
    for (h = 0; h != streams; h++) {
        NAME(arrays) at = a;
        if (how & BY_ROW)
            from[h].rows = a.rows + o + h * apart;
        else if (!(how & BACKWARD) && a.x.type) {
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
        from[h].weights = how & WEIGHTED ? weights + (o + h * apart) * a.joined : NULL;
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
                NAME(accumulate)(r, i + u * LANES, LANES, center, weights_at(weights, i + u * LANES, LANES, how), f, &n[u],
                                 &s[u], &q[u], how);
        }
        UNROLL
        for (u = 0; u < SUM_REGISTERS; u++) {
            ptrdiff_t left = end - i - u * LANES;
            left = left < LANES ? left : LANES;
            if (left > 0)
                NAME(accumulate)(r, i + u * LANES, left, center, weights_at(weights, i + u * LANES, left, how), f, &n[u],
                                 &s[u], &q[u], how);
        }
    }
    if (how & MASKED)
        *to.n += sum_of_lanes(n);
    *to.s += sum_of_lanes(s);
    *to.q += sum_of_lanes(q);
}

/* The sums of every channel. Narrow rows are joined: several rows are summed as one wide row. Its pieces have the same
 * centers, and their sums are added at the end. With weights of rows, this is done only if no register of any variant holds
 * values of two of the rows. */
INLINE void NAME(part_sums)(bn_part p, NAME(arrays) a, const double *weights,
                            ptrdiff_t weight_stride, NAME(about) k, NAME(sums) to, const int how) {
    ptrdiff_t o, c, joined = 1, rows, columns;
    int is_rows = NAME(is_rows)(p, a.x);
    if (is_rows && !(how & WEIGHTED && p.channels % 8) && p.outer > 1 && a.x.outer == p.channels &&
        (!(how & BACKWARD) || a.dy.outer == p.channels) &&
        (!(how & RESIDUAL) || a.z.outer == p.channels))
        joined = rows_joined(p.channels) < p.outer ? rows_joined(p.channels) : p.outer;
    for (c = p.channels; c < joined * p.channels; c++) {
        k.center[c] = k.center[c - p.channels];
        if (how & RELU) {
            k.mean[c] = k.mean[c - p.channels];
            k.scale[c] = k.scale[c - p.channels];
            k.shift[c] = k.shift[c - p.channels];
        }
    }
    memset(to.n, 0, joined * p.channels * sizeof(double));
    memset(to.s, 0, joined * p.channels * sizeof(double));
    memset(to.q, 0, joined * p.channels * sizeof(double));
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
    rows = p.outer / joined;
    if (joined > 1) {
        NAME(arrays) wide = a;
        wide.x.outer = wide.dy.outer = wide.z.outer = joined * p.channels;
        wide.joined = joined;
        wide.channels = p.channels;
        NAME(rows_sums)(wide, rows, joined * p.channels, k, weights, to, how);
        NAME(rows_sums_of)(wide, rows, 0, 1, 1, 0, (p.outer - rows * joined) * p.channels, k, weights, to, how);
        for (c = p.channels; c < joined * p.channels; c++) {
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

#define FUNCTION(name, how)                                                                                           \
    NOINLINE void NAME(name)(bn_part p, const NAME(arrays) *a, const double *weights, ptrdiff_t weight_stride,        \
                             const NAME(about) *k, NAME(sums) to) {                                                   \
        NAME(part_sums)(p, *a, (how) & WEIGHTED ? weights : NULL, weight_stride, *k, to, how);                        \
    }
FUNCTION(sums_plain, 0)
FUNCTION(sums_weighted, WEIGHTED)
FUNCTION(sums_masked, MASKED)
FUNCTION(sums_weighted_masked, WEIGHTED | MASKED)
FUNCTION(sums_backward, BACKWARD)
FUNCTION(sums_backward_relu, BACKWARD | RELU)
FUNCTION(sums_backward_relu_residual, BACKWARD | RELU | RESIDUAL)
#undef FUNCTION

/* The sums of what counts: of rows as a whole, or of single values of planes. x is of the type computed in. */
static void NAME(counted_sums)(bn_part p, NAME(arrays) a, NAME(about) k, NAME(sums) to) {
    ptrdiff_t list[LISTED], n, first, o, c;
    memset(to.s, 0, p.channels * sizeof(double));
    memset(to.q, 0, p.channels * sizeof(double));
    if (!NAME(is_rows)(p, a.x)) {
        for (o = 0; o < p.outer; o++)
            for (c = 0; c < p.channels; c++) {
                double s = 0, q = 0;
                NAME(about) about = {k.center + c, NULL, NULL, NULL};
                NAME(plane_sums)(a, o, c, p.inner, about, NULL, (NAME(sums)){NULL, &s, &q}, COUNTED);
                to.s[c] += s;
                to.q[c] += q;
            }
        return;
    }
    a.rows = list;
    for (first = 0; first < p.outer; first += LISTED) {
        for (n = 0, o = first; o < p.outer && o < first + LISTED; o++) {
            list[n] = o;
            n += *byte_at(a.counted, o, 0) != 0;
        }
        NAME(rows_sums)(a, n, p.channels, k, NULL, to, BY_ROW);
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

/* The shift of each channel: its value of largest weight, or its first value, that counts, without weights. So
 * |mean - shift| <= sqrt(count) * std, and one correction is always enough. Masked: NaN is not chosen. */
static void NAME(choose_shift)(bn_part p, bn_array x, bn_array counted, const double *weights, ptrdiff_t weight_stride,
                               int masked, double *shift) {
    ptrdiff_t o, i, c, best_o = 0, best_i = 0;
    if (counted.data) {
        for (c = 0; c < p.channels; c++) {
            int found = c && !counted.channel ? byte_at(counted, best_o, c)[best_i] != 0
                                              : first_counted(p, counted, c, &best_o, &best_i);
            shift[c] = found ? NAME(value)(x, best_o, c, best_i) : 0.0;
        }
        return;
    }
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

static void NAME(sums_about)(bn_part p, bn_array x, bn_array counted, T *converted, const double *weights,
                             ptrdiff_t weight_stride, int masked, double *shift, double *n, double *s, double *q) {
    NAME(arrays) a = {x, {0}, {0}, {0}, {0}, counted, converted, 1, 0, 0, NULL};
    NAME(about) k = {shift, NULL, NULL, NULL};
    NAME(sums) to = {n, s, q};
    if (counted.data)
        NAME(counted_sums)(p, a, k, to);
    else if (weights && masked)
        NAME(sums_weighted_masked)(p, &a, weights, weight_stride, &k, to);
    else if (weights)
        NAME(sums_weighted)(p, &a, weights, weight_stride, &k, to);
    else if (masked)
        NAME(sums_masked)(p, &a, NULL, 0, &k, to);
    else
        NAME(sums_plain)(p, &a, NULL, 0, &k, to);
}

static int NAME(moments)(bn_part p, bn_array x, bn_array counted, const double *weights,
                         ptrdiff_t weight_stride, int skip_missing, double *count, double *mean, double *mean_lo,
                         double *m2) {
    double shift[BN_TILE], n[BN_TILE], s[BN_TILE], q[BN_TILE];
    T converted[CONVERTED];
    double all = weights ? sum_of_weights(p, weights, weight_stride) : (double)p.outer * (double)p.inner;
    unsigned char finite[BN_TILE];
    ptrdiff_t c;
    int masked = 0;

    NAME(choose_shift)(p, x, counted, weights, weight_stride, 0, shift);
    NAME(sums_about)(p, x, counted, converted, weights, weight_stride, 0, shift, n, s, q);
    for (c = 0; c < p.channels; c++) {
        finite[c] = isfinite(q[c]) != 0;
        masked |= skip_missing && !finite[c];
    }
    if (masked) {
        NAME(choose_shift)(p, x, counted, weights, weight_stride, 1, shift);
        NAME(sums_about)(p, x, counted, converted, weights, weight_stride, 1, shift, n, s, q);
    }
    if (counted.data)
        n_counted(p, counted, n);
    for (c = 0; c < p.channels && !counted.data; c++)
        if (!masked || finite[c]) /* nothing is missing in this channel: the same bits whatever other channels hold */
            n[c] = all;
    memcpy(count, n, p.channels * sizeof(double));
    if (NAME(recentre)(p.channels, x.type, count, s, q, shift))
        NAME(sums_about)(p, x, counted, converted, weights, weight_stride, masked, shift, n, s, q);

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
    NAME(arrays) a = {x, z, dy, {0}, {0}, {0}, NULL, 1, 0, 0, NULL};
    NAME(about) k = {center, mean, scale, shift};
    NAME(sums) to = {n, s, q};
    memcpy(center, center_, p.channels * sizeof(double));
    if (relu) {
        memcpy(mean, c.mean, p.channels * sizeof(T));
        memcpy(scale, c.scale, p.channels * sizeof(T));
        memcpy(shift, c.shift, p.channels * sizeof(T));
    }
    if (relu && z.data)
        NAME(sums_backward_relu_residual)(p, &a, NULL, 0, &k, to);
    else if (relu)
        NAME(sums_backward_relu)(p, &a, NULL, 0, &k, to);
    else
        NAME(sums_backward)(p, &a, NULL, 0, &k, to);
    memcpy(sum, s, p.channels * sizeof(double));
    memcpy(product, q, p.channels * sizeof(double));
}
