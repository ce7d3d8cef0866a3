/* The leaves for one element type T of one instruction set. Included by leaves_unit.h, never alone.
 *
 * Four loops go over the data, each forward and backward: rows_sums and plane_sums (sums_template.h), rows_apply and
 * planes_apply (results_template.h). One more is for short rows (short_template.h). `how` is a constant at every call, so each combination of its flags is compiled
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
    const unsigned char *counted;
    T *y, *dz;
} NAME(runs);

/* converted: for sums, room for some values of x if x is of another type. joined: for sums, how many rows are taken as one row.
 * channels: of one of these rows. ahead: for results, how many bytes ahead of a single stream past the cache are fetched. rows: for
 * sums, those that count. */
typedef struct {
    bn_array x, z, dy, y, dz, counted;
    T *converted;
    ptrdiff_t joined, channels;
    ptrdiff_t ahead;
    const ptrdiff_t *rows;
} NAME(arrays);

INLINE NAME(runs) NAME(run)(NAME(arrays) a, ptrdiff_t o, ptrdiff_t c, const int how) {
    NAME(runs) r = {(const T *)a.x.data + o * a.x.outer + c * a.x.channel, NULL, NULL, NULL, NULL, NULL};
    if (how & RESIDUAL)
        r.z = (const T *)a.z.data + o * a.z.outer + c * a.z.channel;
    if (how & BACKWARD)
        r.dy = (const T *)a.dy.data + o * a.dy.outer + c * a.dy.channel;
    if (how & COUNTED)
        r.counted = byte_at(a.counted, o, c);
    if (a.y.data)
        r.y = (T *)a.y.data + o * a.y.outer + c * a.y.channel;
    if (a.dz.data)
        r.dz = (T *)a.dz.data + o * a.dz.outer + c * a.dz.channel;
    return r;
}

INLINE int NAME(is_rows)(bn_part p, bn_array x) { return p.inner == 1 && x.channel == 1; }

#include "sums_template.h"

#include "results_template.h"

#include "short_template.h"

#undef VT
#undef VBITS
#undef HT
#undef T_LANES
