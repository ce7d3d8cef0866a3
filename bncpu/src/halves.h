/* float16 and bfloat16, converted by integer operations on their bits. There are no branches, so compilers can vectorize
 * loops over them, and no instruction set is needed beyond that of the variant. Rounding is to the nearest, ties to even;
 * values beyond the largest become infinity; NaN stays NaN.
 */
#ifndef BNCPU_HALVES_H
#define BNCPU_HALVES_H

#include <stdint.h>
#include <string.h>

typedef struct {
    uint16_t bits;
} float16_bits;

typedef struct {
    uint16_t bits;
} bfloat16_bits;

INLINE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* All bits set, or none. */
INLINE uint32_t mask(int condition) { return -(uint32_t)(condition != 0); }

/* 5 bits of exponent and 10 of mantissa become 8 and 23; infinity and NaN keep the highest exponent. Below the smallest normal
 * value, 2**-14, the mantissa is that of 2**-14 + value, which is then taken off: exact. */
INLINE float float_of_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    uint32_t exponent = rest & 0x0f800000, is_small = mask(exponent == 0);
    uint32_t normal = rest + ((127 - 15) << 23) + (mask(exponent == 0x0f800000) & ((255 - 127 - 16) << 23));
    uint32_t small = bits_of_float(float_of_bits(rest + (113u << 23)) - float_of_bits(113u << 23));
    return float_of_bits(sign | (small & is_small) | (normal & ~is_small));
}

/* Added to 0.5, whose last digit is 2**-24 as that of the smallest halves is, a float is rounded as they are. */
INLINE uint16_t half_of_float(float value) {
    uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t normal = (size - ((127 - 15) << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    uint32_t small = bits_of_float(float_of_bits(size) + 0.5f) - (126u << 23);
    uint32_t is_small = mask(size < (113u << 23)), is_large = mask(size >= (143u << 23)); /* 2**16 and above */
    uint32_t infinite = 0x7c00 | (mask(size > 0x7f800000) & (0x200 | (size >> 13 & 0x3ff)));
    return (uint16_t)(sign | (small & is_small) | (normal & ~is_small & ~is_large) | (infinite & is_large));
}

INLINE uint16_t bfloat_of_float(float value) {
    uint32_t bits = bits_of_float(value), rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16);
}

#endif
