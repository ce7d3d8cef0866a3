/* The variants this processor can run, fastest first. */
#ifndef BNCPU_VARIANTS_H
#define BNCPU_VARIANTS_H

#include "leaves.h"

static inline int bn_variants(bn_leaves **found) {
    int n = 0;
#ifdef BN_X86_VARIANTS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found[n++] = (bn_leaves *)&bn_leaves_avx512;
    if (__builtin_cpu_supports("avx2"))
        found[n++] = (bn_leaves *)&bn_leaves_avx2;
#endif
#ifdef BN_ARM_VARIANTS
    found[n++] = (bn_leaves *)&bn_leaves_neon; /* part of the architecture */
#endif
    found[n++] = (bn_leaves *)&bn_leaves_c;
    return n;
}

#endif
