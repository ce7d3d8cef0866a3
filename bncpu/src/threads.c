#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include "threads.h"

#ifndef _OPENMP

int bn_openmp_version(void) { return 0; }
int bn_max_threads(void) { return 1; }
void bn_pause_threads(void) {}
void bn_set_machine(int processors, int usable, const char *loadavg, double long_wait) {
    (void)processors, (void)usable, (void)loadavg, (void)long_wait;
}
int bn_idle_threads(int most) { return most < 1 ? most : 1; }

void bn_for_each(ptrdiff_t start, ptrdiff_t stop, bn_task step, void *job, int n_threads) {
    (void)n_threads;
    for (ptrdiff_t task = start; task < stop; task++)
        step(job, task);
}

#else

#include <omp.h>

#ifdef _MSC_VER
#define PER_THREAD static __declspec(thread)
#else
#define PER_THREAD static __thread
#endif

int bn_openmp_version(void) { return _OPENMP; }
int bn_max_threads(void) { return omp_get_max_threads(); }

void bn_pause_threads(void) {
#if (defined(__GNUC__) && __GNUC__ >= 9) || defined(__clang__)
    omp_pause_resource_all(omp_pause_soft);
#endif
}

/* A loop ends when all of its threads have ended. If another program occupies the processor of one, the others wait for a
   time slice: milliseconds, where the loop itself may take a tenth of one. So a loop takes no more threads than processors
   are idle. Linux tells how many tasks run. Other systems do not, and the number may mislead (a busy program on the same
   few of many processors; a virtual machine whose own processors wait). Then a loop that waited long is followed by loops
   of one thread, for so much longer that waiting stays a small part of the time. */

static int n_processors = 1, n_usable = 1;
static const char *running_file = "";

/* Waiting is long if it takes more than so many seconds, and more than half as long as the thread's own part of the work. */
static double least_long_wait;

void bn_set_machine(int processors, int usable, const char *loadavg, double long_wait) {
    n_processors = processors;
    n_usable = usable;
    running_file = loadavg;
    least_long_wait = long_wait;
}

/* The calling thread then works alone, for so many times as long as it waited. */
#define ALONE_FACTOR 20

PER_THREAD double alone_until;

#ifdef __linux__

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* OpenMP's threads stay awake for some milliseconds to wait for the next loop, and count as running tasks though we can
   use them. For each thread of the last loop: the processor time it had used at the end, and when that was. */
typedef struct {
    clockid_t clock;
    double used, when;
} bn_worker;

enum { MOST_WORKERS = 256 };

PER_THREAD bn_worker workers[MOST_WORKERS];
PER_THREAD int n_workers;

/* A thread that was awake ever since has used all of that time, but for so many seconds. */
#define INTERRUPTED 0.0001

static double seconds_of(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) ? -1 : (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void worker_is_done(bn_worker *worker) {
    if (pthread_getcpuclockid(pthread_self(), &worker->clock) == 0)
        worker->used = seconds_of(worker->clock);
    worker->when = omp_get_wtime();
}

static int waiting_workers(void) {
    int n = 0;
    for (int i = 0; i < n_workers; i++) {
        const bn_worker *worker = &workers[i];
        double used = worker->used < 0 ? -1 : seconds_of(worker->clock); /* also -1 if the thread has ended */
        n += used >= 0 && omp_get_wtime() - worker->when - (used - worker->used) < INTERRUPTED;
    }
    return n;
}

/* Tasks of the whole machine that run or wait for a processor, the caller included; 0 if unknown. */
static int running_tasks(void) {
    char text[128];
    int running = 0, file = open(running_file, O_RDONLY | O_CLOEXEC);
    ssize_t n;
    if (file < 0)
        return 0;
    n = read(file, text, sizeof text - 1);
    close(file);
    text[n > 0 ? n : 0] = 0;
    return sscanf(text, "%*s %*s %*s %d/", &running) == 1 ? running : 0;
}

#else

static int running_tasks(void) { return 0; }
static int waiting_workers(void) { return 0; }

#endif

int bn_idle_threads(int most) {
    int usable, others, idle;
    if (most < 2 || omp_get_wtime() < alone_until) /* small calls skip the rest */
        return 1;
    usable = omp_get_num_procs();
    usable = usable < n_usable ? usable : n_usable;
    most = most < usable ? most : usable;
    others = running_tasks() - 1;
    if (others > 0)
        others -= waiting_workers();
    idle = others > 0 ? n_processors - others : n_processors;
    return idle < 1 ? 1 : idle < most ? idle : most;
}

void bn_for_each(ptrdiff_t start, ptrdiff_t stop, bn_task step, void *job, int n_threads) {
    double begin, own = 0, waited;
    if (n_threads < 2) {
        for (ptrdiff_t task = start; task < stop; task++)
            step(job, task);
        return;
    }
    begin = omp_get_wtime();
#ifdef __linux__
    bn_worker *const records = workers; /* the calling thread's records: `workers` is another array in each thread */
    n_workers = n_threads - 1 < MOST_WORKERS ? n_threads - 1 : MOST_WORKERS;
    for (int i = 0; i < n_workers; i++)
        records[i].used = -1; /* OpenMP may start fewer threads than asked for */
#endif
#pragma omp parallel num_threads(n_threads)
    {
        ptrdiff_t task;
        int i = omp_get_thread_num();
#pragma omp for schedule(static) nowait
        for (task = start; task < stop; task++)
            step(job, task);
        if (i == 0)
            own = omp_get_wtime();
#ifdef __linux__
        else if (i <= MOST_WORKERS)
            worker_is_done(&records[i - 1]);
#endif
    }
    waited = omp_get_wtime() - own;
    if (waited > least_long_wait && waited > 0.5 * (own - begin))
        alone_until = own + waited + ALONE_FACTOR * waited;
}

#endif
