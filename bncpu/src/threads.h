/* OpenMP where the build found it, one thread where it did not. */
#ifndef BNCPU_THREADS_H
#define BNCPU_THREADS_H

#ifdef _OPENMP
#include <omp.h>

static inline int bn_openmp_version(void) { return _OPENMP; }
static inline int bn_max_threads(void) { return omp_get_max_threads(); }

/* Ends the idle worker threads. A forked child has none of them, and would wait for them for ever. */
static inline void bn_pause_threads(void) {
#if (defined(__GNUC__) && __GNUC__ >= 9) || defined(__clang__)
    omp_pause_resource_all(omp_pause_soft);
#endif
}
#else
static inline int bn_openmp_version(void) { return 0; }
static inline int bn_max_threads(void) { return 1; }
static inline void bn_pause_threads(void) {}
#endif

/* Threads may raise the same flag at once. */
static inline void bn_raise_flag(int *flag) {
#if defined(__GNUC__) || defined(__clang__)
    __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
#else
    *(volatile int *)flag = 1;
#endif
}

#endif
