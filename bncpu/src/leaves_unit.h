/* One variant: the leaves of float32 and float64 with the registers of REGISTERS, and their table, named VARIANT. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "leaves.h"

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 16")
#define PREFETCH(p) __builtin_prefetch(p)
#define UNROLL4 _Pragma("GCC unroll 4")
#else
#define INLINE static __forceinline
#define NOINLINE static __declspec(noinline)
#define UNROLL
#define UNROLL4
#define PREFETCH(p) ((void)(p))
#endif

#include "halves.h"

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define STRING2(a) #a
#define STRING(a) STRING2(a)

/* All that differs between instruction sets; registers_c.h explains the operations. */
#include REGISTERS

INLINE vdouble vdouble_all(double value) { return all_f64(value); }
INLINE vdouble vdouble_load(const double *p) { return load_f64(p, LANES); }
INLINE vdouble vdouble_load_first(const double *p, ptrdiff_t n) {
    return n < LANES ? load_f64(p, n) : load_f64(p, LANES);
}
INLINE void vdouble_store(double *p, vdouble v) { store_f64(p, v, LANES, 0); }

INLINE vdouble absolute(vdouble v) { return where(v < 0, -v, v); }

INLINE int any(vbits_f64 v) {
    int64_t lanes[LANES], found = 0;
    int k;
    memcpy(lanes, &v, sizeof lanes);
    for (k = 0; k < LANES; k++)
        found |= lanes[k];
    return found != 0;
}

/* Sums along a plane run in this many lanes, in every variant. */
#define SUM_LANES 16
#define SUM_REGISTERS (SUM_LANES / LANES)

/* The sum of SUM_LANES lanes, pairwise: the first half plus the second, and so on. Overwrites the registers. */
INLINE double sum_of_lanes(vdouble *v) {
    int u, half;
    for (half = SUM_REGISTERS / 2; half; half /= 2) {
        UNROLL
        for (u = 0; u < half; u++)
            v[u] = v[u] + v[u + half];
    }
    return sum_of_register(*v);
}

/* The weight of all positions of a part: element i of a run in lane i % SUM_LANES. */
static double sum_of_weights(bn_part p, const double *weights, ptrdiff_t stride) {
    ptrdiff_t n = stride == p.inner ? p.outer * p.inner : p.inner, o, i;
    vdouble v[SUM_REGISTERS];
    int u;
    for (u = 0; u < SUM_REGISTERS; u++)
        v[u] = vdouble_all(0.0);
    for (o = 0; o < (stride == p.inner ? 1 : p.outer); o++, weights += stride) {
        for (i = 0; i + SUM_LANES <= n; i += SUM_LANES) {
            UNROLL
            for (u = 0; u < SUM_REGISTERS; u++)
                v[u] = v[u] + vdouble_load(weights + i + u * LANES);
        }
        for (u = 0; u < SUM_REGISTERS && i + u * LANES < n; u++)
            v[u] = v[u] + vdouble_load_first(weights + i + u * LANES, n - i - u * LANES);
    }
    return sum_of_lanes(v);
}

/* The position of the largest weight, the first of several. Floats that are not negative compare as their bits do as
 * integers, whose maximum a compiler can vectorize. */
static void largest_weight(bn_part p, const double *weights, ptrdiff_t stride, ptrdiff_t *outer, ptrdiff_t *inner) {
    ptrdiff_t run = stride == p.inner ? p.outer * p.inner : p.inner, runs = stride == p.inner ? 1 : p.outer, o, i;
    int64_t largest = INT64_MIN, bits;
    for (o = 0; o < runs; o++)
        for (i = 0; i < run; i++) {
            memcpy(&bits, weights + o * stride + i, sizeof bits);
            largest = bits > largest ? bits : largest;
        }
    for (o = 0; o < runs; o++)
        for (i = 0; i < run; i++) {
            memcpy(&bits, weights + o * stride + i, sizeof bits);
            if (bits == largest) {
                *outer = o + i / p.inner;
                *inner = i % p.inner;
                return;
            }
        }
}

/* The byte of a value, in an array of bytes. */
INLINE const unsigned char *byte_at(bn_array a, ptrdiff_t o, ptrdiff_t c) {
    return (const unsigned char *)a.data + o * a.outer + c * a.channel;
}

/* Finds the first value of a channel that counts; if there is none, the first value. Returns whether there is one. */
static int first_counted(bn_part p, bn_array counted, ptrdiff_t c, ptrdiff_t *outer, ptrdiff_t *inner) {
    ptrdiff_t o, i;
    *outer = *inner = 0;
    for (o = 0; o < p.outer; o++)
        for (i = 0; i < p.inner; i++)
            if (byte_at(counted, o, c)[i]) {
                *outer = o;
                *inner = i;
                return 1;
            }
    return 0;
}

/* How many values of each channel count. */
static void n_counted(bn_part p, bn_array counted, double *n) {
    ptrdiff_t o, i, c;
    for (c = 0; c < p.channels; c++) {
        if (c && !counted.channel) {
            n[c] = n[0];
            continue;
        }
        n[c] = 0;
        if (p.inner == 1) {
            ptrdiff_t all = 0;
            for (o = 0; o < p.outer; o++)
                all += *byte_at(counted, o, c) != 0;
            n[c] = (double)all;
            continue;
        }
        for (o = 0; o < p.outer; o++) {
            const unsigned char *run = byte_at(counted, o, c);
            for (i = 0; i < p.inner; i += 192) { /* a byte holds the sum; a wider one would take more registers */
                ptrdiff_t end = p.inner - i < 192 ? p.inner : i + 192, k;
                unsigned char some = 0;
                for (k = i; k < end; k++)
                    some += run[k] != 0;
                n[c] += (double)some;
            }
        }
    }
}

/* How many adjacent rows are summed as one row: up to NARROW columns in all, or up to JOINED if fewer would not fill whole
 * registers of every variant. */
#define NARROW 64
#define JOINED 512
/* The number of streams in which rows are summed. */
#define SUM_STREAMS 4
INLINE ptrdiff_t rows_joined(ptrdiff_t channels) {
    ptrdiff_t whole = 8, odd = channels, joined;
    for (; whole > 1 && odd % 2 == 0; odd /= 2)
        whole /= 2;
    joined = NARROW / (whole * channels) * whole;
    return joined ? joined : whole * channels <= JOINED ? whole : 1;
}

/* The most rows in a list. */
#define LISTED 1024

/* Values that are written together: a line of the cache, where stores go past it. */
#define LINE (LINE_REGISTERS * T_LANES)

/* Flags for what a loop does besides its plain form. Every combination in use is compiled separately, into a function of its
 * own: some passes of gcc take the square of a function's size, and with all combinations in one it takes twice as long. */
enum {
    WEIGHTED = 1,
    MASKED = 2,   /* NaN is left out */
    BACKWARD = 4, /* dy comes with x */
    RELU = 8,
    RESIDUAL = 16,
    PAST_CACHE = 32,  /* stores past the cache */
    COUNTED = 64, /* some values do not count */
    BY_ROW = 128, /* only some rows are summed: those in a list */
    BOTH = 256    /* says of x and of the result whether they are infinite */
};

/* The weights of n values of a plane, from i on. */
INLINE vdouble weights_at(const double *weights, ptrdiff_t i, const ptrdiff_t n, const int how) {
    return how & WEIGHTED ? vdouble_load_first(weights + i, n) : vdouble_all(1.0);
}

static void copy_unfenced(const char *from, char *to, ptrdiff_t n_bytes);

#define T float
#define NAME(x) PASTE(x, f32)
#include "leaves_template.h"
#undef T
#undef NAME

#define T double
#define NAME(x) PASTE(x, f64)
#include "leaves_template.h"

static void fence(void) { fence_stores(); }

/* ---- the yardsticks: the fastest passes over memory; which way is fastest depends on the processor ---- */

INLINE vbits_f64 vbits_load(const char *p) {
    vbits_f64 v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Reads `streams` runs in turn, into registers that do not wait for one another. Exclusive or is one instruction for any
 * type, and has the same result in any order. */
#define READ_REGISTERS 8
INLINE int64_t read_in(const char *from, ptrdiff_t n_bytes, const int streams) {
    const ptrdiff_t size = sizeof(vbits_f64), each = READ_REGISTERS / streams, step = each * size;
    const ptrdiff_t run = n_bytes / (streams * step) * step;
    vbits_f64 all[READ_REGISTERS];
    int64_t words[sizeof(vbits_f64) / sizeof(int64_t)], found = 0;
    ptrdiff_t i, k;
    int h;
    UNROLL
    for (k = 0; k < READ_REGISTERS; k++)
        all[k] = (vbits_f64){0};
    for (i = 0; i < run; i += step) {
        UNROLL
        for (h = 0; h < streams; h++) {
            UNROLL
            for (k = 0; k < each; k++)
                all[h * each + k] ^= vbits_load(from + h * run + i + k * size);
        }
    }
    UNROLL
    for (k = 1; k < READ_REGISTERS; k++)
        all[0] ^= all[k];
    memcpy(words, all, sizeof words);
    for (k = 0; k < (ptrdiff_t)(sizeof words / sizeof *words); k++)
        found ^= words[k];
    for (i = streams * run; i < n_bytes; i += sizeof *words) {
        words[0] = 0;
        memcpy(words, from + i, n_bytes - i < (ptrdiff_t)sizeof *words ? n_bytes - i : (ptrdiff_t)sizeof *words);
        found ^= words[0];
    }
    return found;
}

static int64_t read_all(const char *from, ptrdiff_t n_bytes, int streams) {
    if (streams == 4)
        return read_in(from, n_bytes, 4);
    return streams == 2 ? read_in(from, n_bytes, 2) : read_in(from, n_bytes, 1);
}

/* Writes a line of the cache: x, or the exclusive or of x and y if there is a y. */
INLINE void write_line(const char *x, const char *y, char *to, const int past) {
    ptrdiff_t k;
    UNROLL
    for (k = 0; k < 64; k += sizeof(vbits_f64)) {
        vbits_f64 v = vbits_load(x + k);
        if (y)
            v ^= vbits_load(y + k);
        if (past && HAS_STORES_PAST_CACHE)
            store_f64((double *)(to + k), (vt_f64)v, LANES, 1);
        else
            memcpy(to + k, &v, sizeof v);
    }
}

/* The same for n_bytes, in so many streams, a page apart; past the cache or with plain stores. */
INLINE void write_in(const char *x, const char *y, char *to, ptrdiff_t n_bytes, const int streams, const int past) {
    const ptrdiff_t run = streams == 1 ? 64 : 4096;
    ptrdiff_t i = 0, k, head = (ptrdiff_t)(-(uintptr_t)to % 64);
    int s;
    for (; i < head && i < n_bytes; i++)
        to[i] = y ? x[i] ^ y[i] : x[i];
    for (; i + streams * run <= n_bytes; i += streams * run) {
        for (k = i; k < i + run; k += 64) {
            UNROLL
            for (s = 0; s < streams; s++)
                write_line(x + k + s * run, y ? y + k + s * run : y, to + k + s * run, past);
        }
    }
    for (; i + 64 <= n_bytes; i += 64)
        write_line(x + i, y ? y + i : y, to + i, past);
    for (; i < n_bytes; i++)
        to[i] = y ? x[i] ^ y[i] : x[i];
}

/* For results that are converted first, and then stored past the cache. */
static void copy_unfenced(const char *from, char *to, ptrdiff_t n_bytes) { write_in(from, NULL, to, n_bytes, 1, 1); }

static void copy(const char *x, char *to, ptrdiff_t n_bytes, int streams) {
    if (streams == 4)
        write_in(x, NULL, to, n_bytes, 4, 1);
    else if (streams)
        write_in(x, NULL, to, n_bytes, 1, 1);
    else
        memcpy(to, x, n_bytes);
    if (streams)
        fence();
}

static void triad(const char *x, const char *y, char *to, ptrdiff_t n_bytes, int streams) {
    if (streams == 4)
        write_in(x, y, to, n_bytes, 4, 1);
    else if (streams)
        write_in(x, y, to, n_bytes, 1, 1);
    else
        write_in(x, y, to, n_bytes, 1, 0);
    if (streams)
        fence();
}

const bn_leaves PASTE(bn_leaves, VARIANT) = {
    STRING(VARIANT),
    fence,
    read_all,
    copy,
    triad,
    {moments_f32, moments_f64},
    {apply_f32, apply_f64},
    {backward_sums_f32, backward_sums_f64},
    {backward_apply_f32, backward_apply_f64},
    {normalize_f32, normalize_f64},
};
