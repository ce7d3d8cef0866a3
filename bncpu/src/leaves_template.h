/* The leaves for one element type T of one variant. Included by leaves_unit.h, never alone.
 *
 * Four loops touch the data: rows_sums, plane_sums, rows_apply, plane_apply. The flags they take
 * (weighted, masked, ...) are constants at every call, so each combination is compiled apart.
 */

/* ---- a register of T, and one of float64 loaded from T ---- */

#if LANES == 1
#define VT NAME(vt)
#define VBITS NAME(vbits)
#define T_LANES 1
typedef T VT;
typedef T_BITS VBITS;
INLINE VT NAME(load)(const T *p) { return *p; }
INLINE void NAME(store)(T *p, VT v, const int stream) { (void)stream; *p = v; }
INLINE VBITS NAME(infinite)(VT v) { return isinf(v) != 0; }
INLINE VT NAME(relu)(VT v) { return v < 0 ? (T)0 : v; }
INLINE vdouble NAME(widen)(const T *p) { return (double)*p; }
#else
#define VT NAME(vt)
#define VT_UNALIGNED NAME(vt_unaligned)
#define VBITS NAME(vbits)
#define T_LANES ((ptrdiff_t)(LANES * 8 / sizeof(T)))
typedef T VT __attribute__((vector_size(LANES * 8)));
typedef T VT_UNALIGNED __attribute__((vector_size(LANES * 8), aligned(sizeof(T)), may_alias));
typedef T_BITS VBITS __attribute__((vector_size(LANES * 8)));

INLINE VT NAME(load)(const T *p) { return *(const VT_UNALIGNED *)p; }

INLINE void NAME(store)(T *p, VT v, const int stream) {
    if (!stream)
        *(VT_UNALIGNED *)p = v;
#if LANES == 8
    else
        _mm512_stream_si512((void *)p, (__m512i)v);
#else
    else
        _mm256_stream_si256((void *)p, (__m256i)v);
#endif
}

/* Integer compares: unlike x - x, they tell infinity from NaN. */
INLINE VBITS NAME(infinite)(VT v) { return ((VBITS)v & T_ABS) == T_INFINITY; }

INLINE VT NAME(relu)(VT v) { return (VT)((VBITS)v & ~(v < 0)); /* keeps NaN */ }

/* __builtin_convertvector from float is twice as slow on AVX2 as the conversion instruction. */
INLINE vdouble NAME(widen)(const T *p) {
    if (sizeof(T) == 8)
        return vdouble_load((const double *)p);
#if LANES == 8
    return (vdouble)_mm512_cvtps_pd(_mm256_loadu_ps((const float *)p));
#else
    return (vdouble)_mm256_cvtps_pd(_mm_loadu_ps((const float *)p));
#endif
}
#endif

/* ---- sums: s += w*d, q += w*d*d, n += w with d = x - shift, everything in float64 ----
 * n is left alone where it is plain counting: neither weighted nor masked. */

INLINE void NAME(accumulate)(vdouble d, vdouble w, vdouble *n, vdouble *s, vdouble *q,
                             const int weighted, const int masked) {
    vdouble wd;
    if (masked) {
        w = observed(d, w);
        d = observed(d, d);
    }
    wd = weighted ? w * d : d;
    *s += wd;
    *q += wd * d;
    if (weighted || masked)
        *n += w;
}

/* `step` rows of all columns; a column's values are added top to bottom whatever the step.
 * The next rows are fetched meanwhile: the processor's own prefetch stops at the end of each row. */
INLINE void NAME(rows_sums_step)(const T *x, ptrdiff_t stride, ptrdiff_t width,
                                 const double *shift, const double *weights, double *n, double *s,
                                 double *q, const int step, const int weighted, const int masked) {
    ptrdiff_t j = 0;
    int u;
    for (; j + LANES <= width; j += LANES) {
        vdouble k = vdouble_load(shift + j), nj = vdouble_load(n + j);
        vdouble sj = vdouble_load(s + j), qj = vdouble_load(q + j);
        UNROLL
        for (u = 0; u < step; u++) {
            if (step > 1 && j % (64 / sizeof(T)) == 0)
                PREFETCH(x + (u + step) * stride + j);
            NAME(accumulate)(NAME(widen)(x + u * stride + j) - k,
                             vdouble_all(weighted ? weights[u] : 1.0), &nj, &sj, &qj, weighted,
                             masked);
        }
        if (weighted || masked)
            vdouble_store(n + j, nj);
        vdouble_store(s + j, sj);
        vdouble_store(q + j, qj);
    }
    for (; j < width; j++)
        for (u = 0; u < step; u++) {
            double d = (double)x[u * stride + j] - shift[j], w = weighted ? weights[u] : 1.0;
            if (masked && d != d)
                continue;
            n[j] += w;
            s[j] += weighted ? w * d : d;
            q[j] += weighted ? w * d * d : d * d;
        }
}

INLINE void NAME(rows_sums)(const T *x, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t width,
                            const double *shift, const double *weights, double *n, double *s,
                            double *q, const int weighted, const int masked) {
    ptrdiff_t r = 0;
    for (; r + 8 <= rows; r += 8)
        NAME(rows_sums_step)(x + r * stride, stride, width, shift, weighted ? weights + r : NULL,
                             n, s, q, 8, weighted, masked);
    for (; r < rows; r++)
        NAME(rows_sums_step)(x + r * stride, stride, width, shift, weighted ? weights + r : NULL,
                             n, s, q, 1, weighted, masked);
}

/* Element i goes to lane i % SUM_LANES; the lanes are added pairwise at the end. */
INLINE void NAME(plane_sums)(const T *x, ptrdiff_t inner, double shift, const double *weights,
                             double *n, double *s, double *q, const int weighted,
                             const int masked) {
    vdouble nv[SUM_REGISTERS], sv[SUM_REGISTERS], qv[SUM_REGISTERS], k = vdouble_all(shift);
    double lanes[3][SUM_LANES];
    ptrdiff_t i = 0;
    int r, half;
    for (r = 0; r < SUM_REGISTERS; r++)
        nv[r] = sv[r] = qv[r] = vdouble_all(0.0);
    for (; i + SUM_LANES <= inner; i += SUM_LANES) {
        UNROLL
        for (r = 0; r < SUM_REGISTERS; r++)
            NAME(accumulate)(NAME(widen)(x + i + r * LANES) - k,
                             weighted ? vdouble_load(weights + i + r * LANES) : vdouble_all(1.0),
                             &nv[r], &sv[r], &qv[r], weighted, masked);
    }
    for (r = 0; r < SUM_REGISTERS; r++) {
        vdouble_store(lanes[0] + r * LANES, nv[r]);
        vdouble_store(lanes[1] + r * LANES, sv[r]);
        vdouble_store(lanes[2] + r * LANES, qv[r]);
    }
    for (r = 0; i < inner; i++, r++) {
        double d = (double)x[i] - shift, w = weighted ? weights[i] : 1.0;
        if (masked && d != d)
            continue;
        lanes[0][r] += w;
        lanes[1][r] += weighted ? w * d : d;
        lanes[2][r] += weighted ? w * d * d : d * d;
    }
    for (half = SUM_LANES / 2; half; half /= 2)
        for (r = 0; r < half; r++) {
            lanes[0][r] += lanes[0][r + half];
            lanes[1][r] += lanes[1][r + half];
            lanes[2][r] += lanes[2][r + half];
        }
    *n += lanes[0][0];
    *s += lanes[1][0];
    *q += lanes[2][0];
}

/* ---- moments of a part: shift, sums, and once more where the shift was far off ---- */

/* The sums of every channel about `shift`. Rows narrower than the tile are folded: several rows
 * are summed as one wide row, whose pieces share their channel's shift and are added at the end. */
INLINE void NAME(part_sums)(const T *x, bn_part p, const double *weights, ptrdiff_t weight_stride,
                            double *shift, double *n, double *s, double *q, const int weighted,
                            const int masked) {
    ptrdiff_t o, c, fold = 1, rows;
    if (p.inner == 1 && p.channel_stride == 1) {
        if (!weighted && p.outer_stride == p.channels && p.outer > 1)
            fold = BN_TILE / p.channels < p.outer ? BN_TILE / p.channels : p.outer;
        rows = p.outer / fold;
        for (c = p.channels; c < fold * p.channels; c++)
            shift[c] = shift[c - p.channels];
        memset(n, 0, fold * p.channels * sizeof(double));
        memset(s, 0, fold * p.channels * sizeof(double));
        memset(q, 0, fold * p.channels * sizeof(double));
        NAME(rows_sums)(x, rows, fold * p.outer_stride, fold * p.channels, shift, weights, n, s, q,
                        weighted, masked);
        NAME(rows_sums)(x + rows * fold * p.outer_stride, 1, 0,
                        (p.outer - rows * fold) * p.channels, shift, NULL, n, s, q, 0, masked);
        for (c = p.channels; c < fold * p.channels; c++) {
            n[c % p.channels] += n[c];
            s[c % p.channels] += s[c];
            q[c % p.channels] += q[c];
        }
    } else {
        memset(n, 0, p.channels * sizeof(double));
        memset(s, 0, p.channels * sizeof(double));
        memset(q, 0, p.channels * sizeof(double));
        for (o = 0; o < p.outer; o++)
            for (c = 0; c < p.channels; c++)
                NAME(plane_sums)(x + o * p.outer_stride + c * p.channel_stride, p.inner, shift[c],
                                 weighted ? weights + o * weight_stride : NULL, n + c, s + c,
                                 q + c, weighted, masked);
    }
}

/* The value a channel is shifted by: the one of largest weight (the first, unweighted), so that
 * |mean - shift| <= sqrt(count) * std and one correction is always enough. Masked: of the numbers. */
static void NAME(choose_shift)(const T *x, bn_part p, const double *weights,
                               ptrdiff_t weight_stride, int masked, double *shift) {
    ptrdiff_t o, i, c, best_o = 0, best_i = 0;
    if (!masked) {
        if (weights)
            for (o = 0; o < p.outer; o++)
                for (i = 0; i < p.inner; i++)
                    if (weights[o * weight_stride + i] > weights[best_o * weight_stride + best_i])
                        best_o = o, best_i = i;
        for (c = 0; c < p.channels; c++)
            shift[c] = (double)x[best_o * p.outer_stride + c * p.channel_stride + best_i];
        return;
    }
    for (c = 0; c < p.channels; c++) {
        double best = -1.0;
        shift[c] = 0.0;
        for (o = 0; o < p.outer && (weights || best < 0); o++)
            for (i = 0; i < p.inner && (weights || best < 0); i++) {
                double value = (double)x[o * p.outer_stride + c * p.channel_stride + i];
                double w = weights ? weights[o * weight_stride + i] : 1.0;
                if (value == value && w > best) {
                    best = w;
                    /* Not about infinity itself: inf - inf would pass for missing. */
                    shift[c] = isinf(value) ? 0.0 : value;
                }
            }
    }
}

/* Moves shifts more than 8 standard deviations from their mean onto it; says whether any moved. */
static int NAME(recentre)(ptrdiff_t channels, const double *n, const double *s, const double *q,
                          double *shift) {
    ptrdiff_t c;
    int moved = 0;
    for (c = 0; c < channels; c++) {
        double mean = s[c] / n[c], between = s[c] * mean;
        if (n[c] > 0 && between > 64.0 * (q[c] - between) && between > 0) {
            shift[c] += mean;
            moved = 1;
        }
    }
    return moved;
}

INLINE void NAME(part_sums_of)(const T *x, bn_part p, const double *weights,
                               ptrdiff_t weight_stride, int masked, double *shift, double *n,
                               double *s, double *q) {
    if (weights && masked)
        NAME(part_sums)(x, p, weights, weight_stride, shift, n, s, q, 1, 1);
    else if (weights)
        NAME(part_sums)(x, p, weights, weight_stride, shift, n, s, q, 1, 0);
    else if (masked)
        NAME(part_sums)(x, p, NULL, 0, shift, n, s, q, 0, 1);
    else
        NAME(part_sums)(x, p, NULL, 0, shift, n, s, q, 0, 0);
}

static int NAME(moments)(const void *data, bn_part p, const double *weights,
                         ptrdiff_t weight_stride, int skip_missing, double *count, double *mean,
                         double *mean_lo, double *m2) {
    const T *x = (const T *)data;
    double shift[BN_TILE], n[BN_TILE], s[BN_TILE], q[BN_TILE];
    ptrdiff_t c;
    int masked = 0;

    NAME(choose_shift)(x, p, weights, weight_stride, 0, shift);
    NAME(part_sums_of)(x, p, weights, weight_stride, 0, shift, n, s, q);
    if (skip_missing)
        for (c = 0; c < p.channels; c++)
            masked |= !isfinite(q[c]);
    if (masked) {
        NAME(choose_shift)(x, p, weights, weight_stride, 1, shift);
        NAME(part_sums_of)(x, p, weights, weight_stride, 1, shift, n, s, q);
    } else if (!weights) {
        for (c = 0; c < p.channels; c++)
            n[c] = (double)p.outer * (double)p.inner;
    }
    memcpy(count, n, p.channels * sizeof(double));
    if (NAME(recentre)(p.channels, count, s, q, shift))
        NAME(part_sums_of)(x, p, weights, weight_stride, masked, shift, n, s, q);

    for (c = 0; c < p.channels; c++) {
        double offset = count[c] > 0 ? s[c] / count[c] : 0.0, spread = q[c] - s[c] * offset;
        double hi = (count[c] > 0 ? shift[c] : 0.0) + offset, back = hi - shift[c];
        mean[c] = hi;
        mean_lo[c] = count[c] > 0 ? (shift[c] - (hi - back)) + (offset - back) : 0.0;
        m2[c] = spread < 0 ? 0.0 : spread;
    }
    return masked;
}

/* ---- apply ---- */

INLINE VT NAME(affine)(VT v, VT mean, VT scale, VT shift, VT residual, const int added,
                       const int relu) {
    v = (v - mean) * scale + shift;
    if (added)
        v = v + residual;
    return relu ? NAME(relu)(v) : v;
}

INLINE T NAME(affine_one)(T v, T mean, T scale, T shift, T residual, const int added,
                          const int relu, VBITS *infinite) {
    int bad = isinf(v) != 0;
    v = (v - mean) * scale + shift;
    if (added)
        v = v + residual;
#if LANES == 1
    *infinite |= bad;
#else
    (*infinite)[0] |= -(T_BITS)bad;
#endif
    return relu && v < 0 ? (T)0 : v;
}

/* Elements up to the next register boundary of y, where streaming stores may begin. */
INLINE ptrdiff_t NAME(peel)(const T *y, ptrdiff_t n) {
    ptrdiff_t head = (ptrdiff_t)(-(uintptr_t)y % (LANES * 8)) / (ptrdiff_t)sizeof(T);
    return head < n ? head : n;
}

/* `step` rows share each load of the parameters. Streaming needs aligned rows unless step == 1.
 * Four rows at a time: eight are more lines than the processor can combine streaming stores in. */
INLINE VBITS NAME(rows_apply_step)(const T *x, T *y, const T *z, ptrdiff_t width,
                                   ptrdiff_t x_stride, ptrdiff_t y_stride, const T *mean,
                                   const T *scale, const T *shift, const int step,
                                   const int added, const int relu, const int stream) {
    VBITS infinite = (VBITS){0};
    ptrdiff_t j = 0, head = stream && step == 1 ? NAME(peel)(y, width) : 0;
    int u;
    for (; j < head; j++)
        y[j] = NAME(affine_one)(x[j], mean[j], scale[j], shift[j], added ? z[j] : 0, added, relu,
                                &infinite);
    for (; j + T_LANES <= width; j += T_LANES) {
        VT m = NAME(load)(mean + j), a = NAME(load)(scale + j), b = NAME(load)(shift + j);
        VT v[4];
        UNROLL
        for (u = 0; u < step; u++) {
            v[u] = NAME(load)(x + u * x_stride + j);
            infinite |= NAME(infinite)(v[u]);
            v[u] = NAME(affine)(v[u], m, a, b, added ? NAME(load)(z + u * y_stride + j) : v[u], added,
                                relu);
        }
        UNROLL
        for (u = 0; u < step; u++)
            NAME(store)(y + u * y_stride + j, v[u], stream);
    }
    for (; j < width; j++)
        for (u = 0; u < step; u++)
            y[u * y_stride + j] = NAME(affine_one)(x[u * x_stride + j], mean[j], scale[j],
                                                   shift[j], added ? z[u * y_stride + j] : 0,
                                                   added, relu, &infinite);
    return infinite;
}

INLINE VBITS NAME(rows_apply)(const T *x, T *y, const T *z, bn_part p, ptrdiff_t y_stride,
                              const T *mean, const T *scale, const T *shift, const int added,
                              const int relu, const int stream) {
    VBITS infinite = (VBITS){0};
    ptrdiff_t r = 0;
    int together = !stream || (((uintptr_t)y | (uintptr_t)(y_stride * (ptrdiff_t)sizeof(T))) &
                               (LANES * 8 - 1)) == 0;
    for (; together && r + 4 <= p.outer; r += 4)
        infinite |= NAME(rows_apply_step)(x + r * p.outer_stride, y + r * y_stride,
                                          added ? z + r * y_stride : NULL, p.channels,
                                          p.outer_stride, y_stride, mean, scale, shift, 4, added,
                                          relu, stream);
    for (; r < p.outer; r++)
        infinite |= NAME(rows_apply_step)(x + r * p.outer_stride, y + r * y_stride,
                                          added ? z + r * y_stride : NULL, p.channels, 0, 0, mean,
                                          scale, shift, 1, added, relu, stream);
    return infinite;
}

INLINE VBITS NAME(plane_apply)(const T *x, T *y, const T *z, ptrdiff_t inner, T mean, T scale,
                               T shift, const int added, const int relu, const int stream) {
    VBITS infinite = (VBITS){0};
    VT m = mean - (VT){0}, a = scale - (VT){0}, b = shift - (VT){0}; /* keeps -0.0 */
    ptrdiff_t i = 0, head = stream ? NAME(peel)(y, inner) : 0;
    for (; i < head; i++)
        y[i] = NAME(affine_one)(x[i], mean, scale, shift, added ? z[i] : 0, added, relu, &infinite);
    UNROLL4
    for (; i + T_LANES <= inner; i += T_LANES) {
        VT v = NAME(load)(x + i);
        infinite |= NAME(infinite)(v);
        v = NAME(affine)(v, m, a, b, added ? NAME(load)(z + i) : v, added, relu);
        NAME(store)(y + i, v, stream);
    }
    for (; i < inner; i++)
        y[i] = NAME(affine_one)(x[i], mean, scale, shift, added ? z[i] : 0, added, relu, &infinite);
    return infinite;
}

INLINE int NAME(part_apply)(const T *x, T *y, const T *z, bn_part p, ptrdiff_t y_outer,
                            ptrdiff_t y_channel, const T *mean, const T *scale, const T *shift,
                            const int added, const int relu, const int stream) {
    VBITS infinite = (VBITS){0};
    ptrdiff_t o, c;
    size_t byte;
    int any = 0;
    if (p.inner == 1 && p.channel_stride == 1)
        infinite = NAME(rows_apply)(x, y, z, p, y_outer, mean, scale, shift, added, relu, stream);
    else
        for (o = 0; o < p.outer; o++)
            for (c = 0; c < p.channels; c++) {
                ptrdiff_t at = o * y_outer + c * y_channel;
                infinite |= NAME(plane_apply)(x + o * p.outer_stride + c * p.channel_stride, y + at,
                                              added ? z + at : NULL, p.inner, mean[c], scale[c],
                                              shift[c], added, relu, stream);
            }
#if LANES > 1
    if (stream)
        _mm_sfence();
#endif
    for (byte = 0; byte < sizeof(infinite); byte++)
        any |= ((const unsigned char *)&infinite)[byte];
    return any != 0;
}

static int NAME(apply)(const void *x_, void *y_, const void *z_, bn_part p, ptrdiff_t y_outer,
                       ptrdiff_t y_channel, const void *mean_, const void *scale_,
                       const void *shift_, int relu, int stream) {
    const T *x = (const T *)x_, *z = (const T *)z_;
    const T *mean = (const T *)mean_, *scale = (const T *)scale_, *shift = (const T *)shift_;
    T *y = (T *)y_;
#define APPLY(added, relu, stream)                                                                \
    NAME(part_apply)(x, y, z, p, y_outer, y_channel, mean, scale, shift, added, relu, stream)
    if (z && relu)
        return stream ? APPLY(1, 1, 1) : APPLY(1, 1, 0);
    if (z)
        return stream ? APPLY(1, 0, 1) : APPLY(1, 0, 0);
    if (relu)
        return stream ? APPLY(0, 1, 1) : APPLY(0, 1, 0);
    return stream ? APPLY(0, 0, 1) : APPLY(0, 0, 0);
#undef APPLY
}

#undef VT
#undef VT_UNALIGNED
#undef VBITS
#undef T_LANES
