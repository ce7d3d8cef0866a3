/* NEON, part of every 64-bit ARM processor. Its fused multiply-add is left out, as that of AVX2. */
#include "leaves.h"
#ifdef BN_ARM_VARIANTS
#include <arm_neon.h>
#define VARIANT neon
#define REGISTERS "registers_neon.h"
#include "leaves_unit.h"
#endif
