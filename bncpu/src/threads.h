/* Threads: by OpenMP if the build found it, else one thread. And how many threads would find a processor idle now. */
#ifndef BNCPU_THREADS_H
#define BNCPU_THREADS_H

#include <stddef.h>
#if !defined(__GNUC__) && !defined(__clang__)
#include <intrin.h>
#endif

typedef void (*bn_task)(void *job, ptrdiff_t task);

/* Date of the OpenMP specification built against; 0 without OpenMP. */
int bn_openmp_version(void);

/* Threads OpenMP allows now. */
int bn_max_threads(void);

/* Ends the idle worker threads, before a fork: the child does not have them, and would wait for them for ever. */
void bn_pause_threads(void);

/* Sets how many processors the machine has, how many of them this process may use at most, the file whose fourth word is
   the number of running tasks, and how many seconds of waiting for another thread are long. */
void bn_set_machine(int processors, int usable, const char *loadavg, double long_wait);

/* The number of threads, up to `most`, that would find a processor idle now. */
int bn_idle_threads(int most);

/* Calls `step` for every task from `start` to `stop`, in about equal shares of adjacent tasks. */
void bn_for_each(ptrdiff_t start, ptrdiff_t stop, bn_task step, void *job, int n_threads);

/* Threads may raise flags, bits of a number, at once. */
static inline void bn_raise_flags(int *flags, int bits) {
#if defined(__GNUC__) || defined(__clang__)
    __atomic_fetch_or(flags, bits, __ATOMIC_RELAXED);
#else
    _InterlockedOr((volatile long *)flags, bits);
#endif
}

#endif
