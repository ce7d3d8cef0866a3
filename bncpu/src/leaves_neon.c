/* NEON, part of every 64-bit ARM processor. Fused multiply-add is left out, as in leaves_avx2.c. */
#include "leaves.h"
#ifdef BN_ARM_VARIANTS
#include <arm_neon.h>
#define VARIANT neon
#define REGISTERS "registers_neon.h"
#include "leaves_unit.h"
#endif
