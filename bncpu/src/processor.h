/* Which processor this is. */
#ifndef BNCPU_PROCESSOR_H
#define BNCPU_PROCESSOR_H

#include "leaves.h"

#ifdef BN_X86_VARIANTS
#include <cpuid.h>
#include <string.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

/* The maker of the processor, such as GenuineIntel, and its number for the family, which is returned. An empty name and 0 if
 * unknown. */
static inline int bn_processor(char name[13]) {
    name[0] = 0;
#ifdef BN_X86_VARIANTS
    unsigned most, words[3], version, b, c, d;
    if (__get_cpuid(0, &most, &words[0], &words[2], &words[1]) && __get_cpuid(1, &version, &b, &c, &d)) {
        memcpy(name, words, 12);
        name[12] = 0;
        /* If all bits of the family are set, the extended family is added. */
        return (version >> 8 & 15) < 15 ? version >> 8 & 15 : 15 + (version >> 20 & 255);
    }
#endif
    return 0;
}

/* Bytes of the second-level cache, which each core has to itself; 0 if unknown. */
static inline long bn_second_level_cache(void) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    return sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
    return 0;
#endif
}

#endif
