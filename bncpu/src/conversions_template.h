/* Values of other types, from and to T. Included by leaves_template.h, never alone.
 *
 * Every loop is one that a compiler turns into instructions for whole registers: no branches.
 */

#define FROM(type, value)                                                                                             \
    static void NAME(from_##type)(const void *from, T *to, ptrdiff_t n) {                                             \
        const type *v = (const type *)from;                                                                           \
        ptrdiff_t i;                                                                                                  \
        for (i = 0; i < n; i++)                                                                                       \
            to[i] = (T)(value);                                                                                       \
    }
#define TO(type, value)                                                                                               \
    static void NAME(to_##type)(const T *v, void *to_, ptrdiff_t n) {                                                 \
        type *to = (type *)to_;                                                                                       \
        ptrdiff_t i;                                                                                                  \
        for (i = 0; i < n; i++)                                                                                       \
            to[i] = value;                                                                                            \
    }

FROM(float, v[i])
FROM(float16_bits, float_of_half(v[i].bits))
FROM(bfloat16_bits, float_of_bits((uint32_t)v[i].bits << 16))
FROM(uint8_t, v[i])
FROM(int8_t, v[i])
FROM(uint16_t, v[i])
FROM(int16_t, v[i])
FROM(uint32_t, v[i])
FROM(int32_t, v[i])
FROM(uint64_t, v[i])
FROM(int64_t, v[i])
TO(float, (float)v[i])
TO(float16_bits, (float16_bits){half_of_float((float)v[i])})
TO(bfloat16_bits, (bfloat16_bits){bfloat_of_float((float)v[i])})

#undef FROM
#undef TO

/* By bn_type. Missing entries are never used: float32 does not hold all values of the type, or no result is of the type. */
static void (*const NAME(from)[])(const void *, T *, ptrdiff_t) = {
    NULL,
    NAME(from_float),
    NAME(from_float16_bits),
    NAME(from_bfloat16_bits),
    NAME(from_uint8_t),
    NAME(from_int8_t),
    NAME(from_uint16_t),
    NAME(from_int16_t),
    NAME(from_uint32_t),
    NAME(from_int32_t),
    NAME(from_uint64_t),
    NAME(from_int64_t),
};
static void (*const NAME(to)[])(const T *, void *, ptrdiff_t) = {NULL, NAME(to_float), NAME(to_float16_bits), NAME(to_bfloat16_bits)};

/* Bytes of a value. */
INLINE ptrdiff_t NAME(size)(bn_type type) {
    static const unsigned char sizes[] = {sizeof(T), 4, 2, 2, 1, 1, 2, 2, 4, 4, 8, 8};
    return sizes[type];
}

/* Whether a value is larger than the largest of a float type. */
INLINE int NAME(exceeds)(const T *values, ptrdiff_t n, bn_type type) {
    static const T largest[] = {0, (T)0x1.fffffep127, 65504, (T)0x1.fep127};
    const T most = largest[type];
    ptrdiff_t i;
    int any = 0;
    for (i = 0; i < n; i++)
        any |= (values[i] > most) | (values[i] < -most);
    return any;
}

INLINE char *NAME(at)(bn_array a, ptrdiff_t o, ptrdiff_t c, ptrdiff_t i) {
    return a.data + (o * a.outer + c * a.channel + i) * NAME(size)(a.type);
}

/* Values converted at a time: their 16 KiB stay in the first-level cache. A multiple of SUM_LANES. */
#undef CONVERTED
#define CONVERTED ((ptrdiff_t)(16384 / sizeof(T)))

/* Copies and converts the values of a part between `a` and the packed array `values`, past the cache if so asked. */
static void NAME(convert)(bn_part p, bn_array a, T *values, int to, int past_cache) {
    ptrdiff_t run = p.inner, channels = p.channels, outer = p.outer, o, c;
    T stored[CONVERTED];
    if (a.channel == run) {
        run *= channels;
        channels = 1;
    }
    if (channels == 1 && a.outer == run) {
        run *= outer;
        outer = 1;
    }
    for (o = 0; o < outer; o++)
        for (c = 0; c < channels; c++, values += run) {
            char *at = NAME(at)(a, o, c, 0);
            if (!to)
                NAME(from)[a.type](at, values, run);
            else if (!past_cache)
                NAME(to)[a.type](values, at, run);
            else {
                NAME(to)[a.type](values, stored, run);
                copy_unfenced((const char *)stored, at, run * NAME(size)(a.type));
            }
        }
}

INLINE bn_array NAME(packed)(bn_part p, T *values) {
    bn_array a = {(char *)values, p.channels * p.inner, p.inner, BN_COMPUTED};
    return a;
}
