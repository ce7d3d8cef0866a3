/* AVX2. FMA is left out on purpose: a fused multiply-add rounds once, and the other variants round twice. */
#include "leaves.h"
#ifdef BN_X86_VARIANTS
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define REGISTERS "registers_avx2.h"
#define VARIANT avx2
#include "leaves_unit.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
