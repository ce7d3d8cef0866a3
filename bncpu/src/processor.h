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

/* The maker's name for itself, such as GenuineIntel, and the maker's number of the family; nothing and 0 where processors
 * do not say. */
static inline int bn_processor(char name[13]) {
    name[0] = 0;
#ifdef BN_X86_VARIANTS
    unsigned most, words[3], version, b, c, d;
    if (__get_cpuid(0, &most, &words[0], &words[2], &words[1]) && __get_cpuid(1, &version, &b, &c, &d)) {
        memcpy(name, words, 12);
        name[12] = 0;
        /* The extended family is to be added where the family is all ones. */
        return (version >> 8 & 15) < 15 ? version >> 8 & 15 : 15 + (version >> 20 & 255);
    }
#endif
    return 0;
}

/* Bytes of the cache that each core has to itself; 0 if that is not told. */
static inline long bn_second_level_cache(void) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    return sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
    return 0;
#endif
}

#endif
