/* Short planes, each normalized by its own statistics in one step. Included by leaves_template.h, never alone.
 *
 * As many planes as a register has lanes are turned (transposed), so that each lane holds a plane. Every operation on a
 * value, a sum or a statistic is then done for all these planes at once, in the order of plane_sums.
 */

/* Turns a square of values: value k of register h becomes value h of register k. */
INLINE void NAME(turn)(VT *v) {
    VT next[T_LANES];
    int step, k;
    UNROLL
    for (step = 1; step < T_LANES; step *= 2) {
        UNROLL
        for (k = 0; k < T_LANES / 2; k++) {
            next[2 * k] = NAME(low)(v[k], v[k + T_LANES / 2]);
            next[2 * k + 1] = NAME(high)(v[k], v[k + T_LANES / 2]);
        }
        UNROLL
        for (k = 0; k < T_LANES; k++)
            v[k] = next[k];
    }
}

/* Turns the first n values of each plane at x into n registers. Missing planes are 0. `whole`: whole registers may be read, as
 * there is memory behind the values. */
INLINE void NAME(turn_in)(const T *x, ptrdiff_t stride, const ptrdiff_t planes, const ptrdiff_t n, const int whole,
                          T *turned) {
    VT v[T_LANES];
    ptrdiff_t k;
    UNROLL
    for (k = 0; k < T_LANES; k++)
        v[k] = k < planes ? NAME(load)(x + k * stride, whole ? T_LANES : n) : NAME(all)(0);
    NAME(turn)(v);
    UNROLL
    for (k = 0; k < T_LANES; k++)
        if (k < n)
            NAME(store)(turned + k * T_LANES, v[k], T_LANES, 0);
}

INLINE void NAME(turn_all)(const T *x, ptrdiff_t stride, const ptrdiff_t planes, ptrdiff_t inner, const int whole,
                           T *turned) {
    ptrdiff_t i = 0;
    for (; i + T_LANES <= inner; i += T_LANES)
        NAME(turn_in)(x + i, stride, planes, T_LANES, 1, turned + i * T_LANES);
    if (i < inner)
        NAME(turn_in)(x + i, stride, planes, inner - i, whole, turned + i * T_LANES);
}

/* Turns n registers back into adjacent planes. Whole registers are written: what goes beyond a plane lies in the next planes,
 * which are written later, or behind the last one. */
INLINE void NAME(turn_out)(const T *turned, const ptrdiff_t n, T *y, ptrdiff_t inner) {
    VT v[T_LANES];
    ptrdiff_t k;
    UNROLL
    for (k = 0; k < T_LANES; k++)
        v[k] = k < n ? NAME(load)(turned + k * T_LANES, T_LANES) : NAME(all)(0);
    NAME(turn)(v);
    UNROLL
    for (k = 0; k < T_LANES; k++)
        NAME(store)(y + k * inner, v[k], T_LANES, 0);
}

INLINE void NAME(turn_back)(const T *turned, ptrdiff_t inner, T *y) {
    ptrdiff_t i = inner / T_LANES * T_LANES;
    if (i < inner)
        NAME(turn_out)(turned + i * T_LANES, inner - i, y + i, inner);
    while ((i -= T_LANES) >= 0)
        NAME(turn_out)(turned + i * T_LANES, T_LANES, y + i, inner);
}

typedef struct {
    double mean[T_LANES], mean_lo[T_LANES], m2[T_LANES];
    T center[T_LANES], scale[T_LANES], shift[T_LANES];
} NAME(normalizing);

/* The statistics of LANES turned planes, from the k-th on, and the coefficients from them, as moments, bn_inverse_std, bn_fold
 * and bn_round_affine would compute for one plane. Returns the lanes that must go the general way. */
INLINE vbits_f64 NAME(normalizing_of)(const T *turned, ptrdiff_t inner, double eps, const int centred, ptrdiff_t k,
                                      NAME(normalizing) *to) {
    const vdouble zero = vdouble_all(0.0), n = vdouble_all((double)inner);
    vdouble s[SUM_LANES], q[SUM_LANES], d, offset, spread, mean, mean_lo, back, m2, std, center, scale, shift;
    ptrdiff_t i, u, half, most = inner < SUM_LANES ? inner : SUM_LANES;
    vbits_f64 needs_more;
    HT narrow;
    const vdouble about = NAME(widen)(NAME(load_ht)(turned + k, LANES));

    /* Element i is added to sum i % SUM_LANES; then these are added pairwise. */
    for (u = 0; u < most; u++) {
        vdouble sum = zero, squares = zero;
        for (i = u; i < inner; i += SUM_LANES) {
            d = NAME(widen)(NAME(load_ht)(turned + i * T_LANES + k, LANES)) - about;
            sum += d;
            squares += d * d;
        }
        s[u] = sum;
        q[u] = squares;
    }
    for (half = SUM_LANES / 2; half; half /= 2) {
        for (u = 0; u < half && u + half < most; u++) {
            s[u] += s[u + half];
            q[u] += q[u + half];
        }
        most = most < half ? most : half;
    }

    offset = *s / n;
    spread = *s * offset;
    /* Not finite, or the mean is far from the value that was subtracted. */
    needs_more = (*q - *q != 0) | ((spread > 64.0 * (*q - spread)) & (spread > 0));
    spread = *q - spread;
    m2 = where(spread < 0, zero, spread);
    mean = about + offset;
    back = mean - about;
    mean_lo = (about - (mean - back)) + (offset - back);
    vdouble_store(to->mean + k, mean);
    vdouble_store(to->mean_lo + k, mean_lo);
    vdouble_store(to->m2 + k, m2);

    std = root((centred ? m2 / n : m2 / n + mean * mean) + eps);
    scale = where(std != 0, 1.0 / std, zero);
    center = centred ? mean : zero;
    shift = centred ? zero - mean_lo * scale : zero;
    narrow = NAME(narrow)(center);
    shift = shift - (center - NAME(widen)(narrow)) * scale;
    if (sizeof(T) < sizeof(double))
        needs_more |= (absolute(center) > 1e30) | (absolute(shift) > 1e37) |
                      ((scale != 0) & ((scale < 1e-37) | (scale > 1e37)));
    NAME(store_ht)(to->center + k, narrow);
    NAME(store_ht)(to->scale + k, NAME(narrow)(scale));
    NAME(store_ht)(to->shift + k, NAME(narrow)(shift));
    return needs_more;
}

/* The same for all turned planes. Returns 0 if one of them must go the general way. */
INLINE int NAME(normalizing_all)(const T *turned, ptrdiff_t inner, double eps, const int centred,
                                 NAME(normalizing) *to) {
    vbits_f64 needs_more = {0};
    ptrdiff_t k;
    for (k = 0; k < T_LANES; k += LANES)
        needs_more |= NAME(normalizing_of)(turned, inner, eps, centred, k, to);
    return !any(needs_more);
}

INLINE void NAME(turned_apply)(T *turned, ptrdiff_t inner, const NAME(normalizing) *c, const T *gamma, const T *beta,
                               const int affine) {
    VT mean = NAME(load)(c->center, T_LANES), scale = NAME(load)(c->scale, T_LANES),
       shift = NAME(load)(c->shift, T_LANES), v;
    ptrdiff_t i;
    for (i = 0; i < inner; i++) {
        v = (NAME(load)(turned + i * T_LANES, T_LANES) - mean) * scale + shift;
        if (affine)
            v = v * NAME(all)(gamma[i]) + NAME(all)(beta[i]);
        NAME(store)(turned + i * T_LANES, v, T_LANES, 0);
    }
}

/* Normalizes so many planes at x into adjacent planes at y. Returns 0 if one of them must go the general way. */
INLINE int NAME(normalize_turned)(const T *x, ptrdiff_t stride, const ptrdiff_t planes, ptrdiff_t inner,
                                  const int whole, const T *gamma, const T *beta, double eps, int centred, T *y,
                                  NAME(normalizing) *c) {
    T turned[BN_SHORT * T_LANES];
    NAME(turn_all)(x, stride, planes, inner, whole, turned);
    if (!(centred ? NAME(normalizing_all)(turned, inner, eps, 1, c) : NAME(normalizing_all)(turned, inner, eps, 0, c)))
        return 0;
    if (gamma)
        NAME(turned_apply)(turned, inner, c, gamma, beta, 1);
    else
        NAME(turned_apply)(turned, inner, c, NULL, NULL, 0);
    NAME(turn_back)(turned, inner, y);
    return 1;
}

static void NAME(normalize)(bn_part p, bn_array x, bn_array y, const char *gamma_, const char *beta_, double eps,
                            int centred, int past_cache, double *mean, double *mean_lo, double *m2, unsigned char *done) {
    const T *from = (const T *)x.data, *gamma = (const T *)gamma_, *beta = (const T *)beta_;
    const int adjacent = y.channel == p.inner;
    T waiting[CONVERTED + T_LANES];
    NAME(normalizing) c;
    ptrdiff_t first, planes, k, n_waiting = 0;
    for (first = 0; first < p.channels; first += planes) {
        T *to = (T *)y.data + first * y.channel;
        int fits;
        planes = p.channels - first < T_LANES ? p.channels - first : T_LANES;
        if (x.channel >= p.inner && first + 2 * T_LANES <= p.channels)
            fits = NAME(normalize_turned)(from + first * x.channel, x.channel, T_LANES, p.inner, 1, gamma, beta, eps,
                                          centred, waiting + n_waiting, &c);
        else
            fits = NAME(normalize_turned)(from + first * x.channel, x.channel, planes, p.inner, 0, gamma, beta, eps,
                                          centred, waiting + n_waiting, &c);
        if (mean)
            for (k = 0; k < planes; k++) {
                mean[first + k] = c.mean[k];
                mean_lo[first + k] = c.mean_lo[k];
                m2[first + k] = c.m2[k];
            }
        for (k = 0; k < planes; k++)
            done[first + k] = (unsigned char)fits;
        if (fits && !adjacent)
            for (k = 0; k < planes; k++)
                memcpy(to + k * y.channel, waiting + k * p.inner, p.inner * sizeof(T));
        else if (fits)
            n_waiting += planes * p.inner;
        /* Results wait, and are written together: when there is no more room, before a gap, and at the end. */
        if (n_waiting && (!fits || n_waiting + T_LANES * p.inner > CONVERTED || first + planes == p.channels)) {
            to += (fits ? planes * p.inner : 0) - n_waiting;
            if (past_cache)
                copy_unfenced((const char *)waiting, (char *)to, n_waiting * sizeof(T));
            else
                memcpy(to, waiting, n_waiting * sizeof(T));
            n_waiting = 0;
        }
    }
}
