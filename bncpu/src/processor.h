/* Which processor this is. */
#ifndef BNCPU_PROCESSOR_H
#define BNCPU_PROCESSOR_H

#include "leaves.h"

#ifdef BN_X86_VARIANTS
#include <cpuid.h>
#include <string.h>
#endif

/* The maker's name for itself, such as GenuineIntel, or nothing where processors do not say. */
static inline void bn_processor_vendor(char name[13]) {
    name[0] = 0;
#ifdef BN_X86_VARIANTS
    unsigned most, words[3];
    if (__get_cpuid(0, &most, &words[0], &words[2], &words[1])) {
        memcpy(name, words, 12);
        name[12] = 0;
    }
#endif
}

#endif
