/* Results of a part: of the forward pass, or gradients. Included by leaves_template.h, never alone.
 *
 * The loops are rows_apply and planes_apply, each forward and backward. */

typedef struct {
    const T *mean, *scale, *shift, *dy_scale, *x_scale, *offset;
} NAME(coefficients);

typedef struct {
    VT mean, scale, shift, dy_scale, x_scale, offset;
} NAME(registers);

/* n values, from i on, of the forward result or of dx. Returns where the forward result, before ReLU, is infinite; with BOTH,
 * bn_seen values. `each`: whether each value of the run counts or not, or all of them. */
INLINE VBITS NAME(result)(NAME(runs) r, const int each, ptrdiff_t i, const ptrdiff_t n, NAME(registers) k, VT *y,
                          const int how) {
    VT x = NAME(load)(r.x + i, n), centred = x - k.mean, v;
    if (!(how & BACKWARD) || how & RELU) {
        v = centred * k.scale + k.shift;
        if (how & RESIDUAL)
            v = v + NAME(load)(r.z + i, n);
    }
    if (!(how & BACKWARD)) {
        *y = how & RELU ? NAME(relu)(v) : v;
        if (how & BOTH)
            return (NAME(infinite)(x) & BN_IN_X) | (NAME(infinite)(v) & BN_IN_Y_OF_BOTH);
        return NAME(infinite)(v);
    }
    VT dy = NAME(load)(r.dy + i, n);
    if (how & RELU)
        dy = NAME(where_above_0)(v, dy);
    if (how & RESIDUAL)
        NAME(store)(r.dz + i, dy, n, 0);
    v = centred * k.x_scale + k.offset;
    if (how & COUNTED)
        v = each ? NAME(counted)(r.counted + i, v, n) : *r.counted ? v : NAME(all)(0);
    *y = v + dy * k.dy_scale;
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
                              const NAME(registers) *k, const int each, const int step, const int how) {
    VBITS infinite = (VBITS){0};
    VT v[4][LINE_REGISTERS];
    int u, h;
    if (how & PAST_CACHE && step == 1 && n == LINE) {
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
                infinite |= NAME(result)(NAME(run)(a, o + u, c, how), each, i + h * T_LANES,
                                         NAME(in_register)(n, h), k[h], &v[u][h], how);
    UNROLL
    for (u = 0; u < step; u++)
        UNROLL
        for (h = 0; h < LINE_REGISTERS; h++)
            if (n > h * T_LANES)
                NAME(store)(NAME(run)(a, o + u, c, how).y + i + h * T_LANES, v[u][h], NAME(in_register)(n, h),
                            n == LINE && how & PAST_CACHE);
    return infinite;
}

/* The number of elements up to the next line of the cache, where stores past the cache may begin. */
INLINE ptrdiff_t NAME(peel)(const T *y, ptrdiff_t n, const int how) {
    ptrdiff_t head = how & PAST_CACHE && HAS_STORES_PAST_CACHE ? (ptrdiff_t)(-(uintptr_t)y % 64 / sizeof(T)) : 0;
    return head < n ? head : n;
}

/* Whether four outer positions, from o on, are written together. With stores past the cache only if four streams are wanted,
 * and the lines of all four begin at the same element. */
INLINE int NAME(together)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t outer, int streams, const int how) {
    return o + 4 <= outer && (!(how & PAST_CACHE) || (streams == 4 && a.y.outer * (ptrdiff_t)sizeof(T) % 64 == 0));
}

INLINE VBITS NAME(rows_apply_line)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t j, const ptrdiff_t n, NAME(coefficients) c,
                                   const int step, const int how) {
    NAME(registers) k[LINE_REGISTERS];
    int h;
    UNROLL
    for (h = 0; h < LINE_REGISTERS; h++)
        if (n > h * T_LANES)
            k[h] = NAME(of_columns)(c, j + h * T_LANES, NAME(in_register)(n, h), how);
    return NAME(apply_line)(a, o, 0, j, n, k, a.counted.channel != 0, step, how);
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

/* The bytes of the line at i, for `step` outer positions. It crosses from a plane, which goes to `end`, into the next one, and
 * the two share their bytes. */
INLINE bn_array NAME(crossing)(bn_array counted, ptrdiff_t o, ptrdiff_t i, ptrdiff_t end, ptrdiff_t inner, const int step,
                               unsigned char *to) {
    int u;
    for (u = 0; u < step; u++) {
        const unsigned char *run = byte_at(counted, o + u, 0);
        memcpy(to + u * LINE, run + i, end - i);
        memcpy(to + u * LINE + (end - i), run + end - inner, LINE - (end - i));
    }
    counted.data = (char *)to - o * LINE - i;
    counted.outer = LINE;
    return counted;
}

/* Adjacent planes, of at least a line each, are written as one run. A line that crosses from a plane into the next takes its
 * parameters from both. */
INLINE VBITS NAME(planes_apply)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t channel, ptrdiff_t planes, ptrdiff_t inner,
                                NAME(coefficients) c, const int step, const int how) {
    VBITS infinite = (VBITS){0};
    NAME(registers) k[LINE_REGISTERS], next;
    ptrdiff_t i = NAME(peel)(NAME(run)(a, o, channel, how).y, inner, how), end = inner, plane = channel;
    const int shared = how & COUNTED && !a.counted.channel; /* i goes on over planes, but bytes begin again */
    int h;
    next = NAME(of_plane)(c, plane, how);
    UNROLL
    for (h = 0; h < LINE_REGISTERS; h++)
        k[h] = next;
    if (i)
        infinite |= NAME(apply_line)(a, o, channel, 0, i, k, 1, step, how);
    for (;; end += inner) {
        for (; i + LINE <= end; i += LINE)
            infinite |= NAME(apply_line)(a, o, channel, i, LINE, k, 1, step, how);
        if (++plane == channel + planes)
            break;
        next = NAME(of_plane)(c, plane, how);
        if (i < end) {
            UNROLL
            for (h = 0; h < LINE_REGISTERS; h++)
                k[h] = NAME(joined)(k[h], next, end - i - h * T_LANES, how);
            if (shared) {
                NAME(arrays) both = a;
                unsigned char bytes[4 * LINE];
                both.counted = NAME(crossing)(a.counted, o, i, end, inner, step, bytes);
                infinite |= NAME(apply_line)(both, o, channel, i, LINE, k, 1, step, how);
            } else
                infinite |= NAME(apply_line)(a, o, channel, i, LINE, k, 1, step, how);
            i += LINE;
        }
        if (shared)
            a.counted.data -= inner;
        UNROLL
        for (h = 0; h < LINE_REGISTERS; h++)
            k[h] = next;
    }
    if (i < end)
        infinite |= NAME(apply_line)(a, o, channel, i, end - i, k, 1, step, how);
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
        NAME(are_adjacent)(p, a.dy) && NAME(are_adjacent)(p, a.y) && NAME(are_adjacent)(p, a.dz) &&
        (!a.counted.channel || NAME(are_adjacent)(p, a.counted)))
        planes = p.channels;
    while (o < p.outer)
        if (NAME(together)(a, o, p.outer, streams, how)) {
            infinite |= NAME(outer_apply)(p, a, o, planes, k, 4, how);
            o += 4;
        } else
            infinite |= NAME(outer_apply)(p, a, o++, planes, k, 1, how);
    for (byte = 0; byte < sizeof(infinite); byte++)
        any |= ((const unsigned char *)&infinite)[byte];
    return how & BOTH ? any : any ? BN_IN_Y : 0;
}

/* The combinations of flags, each with and without stores past the cache. */
#define RESULTS(EACH)                                                                \
    EACH(apply_plain, 0)                                                             \
    EACH(apply_relu, RELU)                                                           \
    EACH(apply_residual, RESIDUAL)                                                   \
    EACH(apply_relu_residual, RELU | RESIDUAL)                                       \
    EACH(apply_backward, BACKWARD)                                                   \
    EACH(apply_backward_relu, BACKWARD | RELU)                                       \
    EACH(apply_backward_relu_residual, BACKWARD | RELU | RESIDUAL)                   \
    EACH(apply_backward_counted, BACKWARD | COUNTED)                                 \
    EACH(apply_backward_counted_relu, BACKWARD | COUNTED | RELU)                     \
    EACH(apply_backward_counted_relu_residual, BACKWARD | COUNTED | RELU | RESIDUAL)

#define FUNCTION(name, flags)                                                                                         \
    NOINLINE int NAME(name)(bn_part p, const NAME(arrays) *a, const NAME(coefficients) *k, int streams) {             \
        return NAME(part_apply)(p, *a, *k, streams, flags);                                                           \
    }
#define BOTH_WAYS(name, flags) FUNCTION(name, flags) FUNCTION(name##_past_cache, (flags) | PAST_CACHE)
RESULTS(BOTH_WAYS)
FUNCTION(apply_both, BOTH)
#undef FUNCTION
#undef BOTH_WAYS

static int NAME(any_apply)(bn_part p, NAME(arrays) a, bn_coefficients c, int past_cache, int how) {
    const int streams = past_cache % 64;
    NAME(coefficients) k = {(const T *)c.mean,     (const T *)c.scale,   (const T *)c.shift,
                            (const T *)c.dy_scale, (const T *)c.x_scale, (const T *)c.offset};
    a.ahead = past_cache - streams;
    switch (how) {
#define CASES(name, flags)                                  \
    case flags:                                             \
        return NAME(name)(p, &a, &k, streams);              \
    case (flags) | PAST_CACHE:                              \
        return NAME(name##_past_cache)(p, &a, &k, streams);
        RESULTS(CASES)
    default:
        return NAME(apply_both)(p, &a, &k, streams);
#undef CASES
    }
}
#undef RESULTS

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
                infinite |= NAME(any_apply)(part, (NAME(arrays)){as_from, {0}, {0}, as_to, {0}, {0}, NULL, 1, 0, 0, NULL}, k, streams, how);
                if (y.type) {
                    if (NAME(exceeds)(to, part.outer * part.channels * part.inner, y.type))
                        infinite |= how & BOTH ? BN_IN_Y_OF_BOTH : BN_IN_Y;
                    NAME(convert)(part, y_part, to, 1, streams);
                }
            }
    return infinite;
}

/* both: only without residual and relu. Then nothing but converted values is stored past the cache. */
static int NAME(apply)(bn_part p, bn_array x, bn_array z, bn_array y, bn_coefficients c, int relu,
                       int past_cache, int both) {
    NAME(arrays) a = {x, z, {0}, y, {0}, {0}, NULL, 1, 0, 0, NULL};
    int how = (z.data ? RESIDUAL : 0) | (relu ? RELU : 0);
    /* If y is converted, only the converted values are stored past the cache. */
    if (x.type || y.type)
        return NAME(apply_converted)(p, x, y, c, past_cache, how | (both ? BOTH : past_cache && !y.type ? PAST_CACHE : 0));
    return NAME(any_apply)(p, a, c, past_cache, how | (both ? BOTH : past_cache ? PAST_CACHE : 0));
}

static void NAME(backward_apply)(bn_part p, bn_array x, bn_array z, bn_array dy, bn_array dx,
                                 bn_array dz, bn_array counted, bn_coefficients c, int relu, int past_cache) {
    NAME(arrays) a = {x, z, dy, dx, dz, counted, NULL, 1, 0, 0, NULL};
    NAME(any_apply)(p, a, c, past_cache,
                    BACKWARD | (z.data ? RESIDUAL : 0) | (counted.data ? COUNTED : 0) | (relu ? RELU : 0) |
                        (past_cache ? PAST_CACHE : 0));
}
