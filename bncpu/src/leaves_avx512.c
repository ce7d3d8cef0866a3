/* AVX-512 (F, BW, DQ, VL: every AVX-512 server since 2017). */
#include "leaves.h"
#ifdef BN_X86_VARIANTS
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define REGISTERS "registers_avx512.h"
#define VARIANT avx512
#include "leaves_unit.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
