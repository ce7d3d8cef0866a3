/* Large blocks of memory, kept for the next result of about the same size.

   The pages of fresh memory cost more than the work done in them. So a block that is given back waits in a list, the last
   one first, for a request that it fits. The list is bounded: by bytes, and by the number of later requests that did not
   use a block. A block in use is not in the list, and belongs to one array alone.

   Nothing here calls Python, as blocks come back when arrays die, at exit too. Callers hold the GIL; where there is none,
   the lock below takes its place. */
#ifndef BNCPU_BLOCKS_H
#define BNCPU_BLOCKS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <malloc.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#ifndef BN_LOCK /* a test may bring its own */
#ifdef Py_GIL_DISABLED
static PyMutex bn_mutex;
#define BN_LOCK() PyMutex_Lock(&bn_mutex)
#define BN_UNLOCK() PyMutex_Unlock(&bn_mutex)
#else
#define BN_LOCK() ((void)0)
#define BN_UNLOCK() ((void)0)
#endif
#endif

enum {
    BN_HEADER = 64,           /* bytes before the data, so that these start on a cache line */
    BN_HUGE_PAGE = 2 << 20,
    BN_PATIENCE = 8,          /* after so many requests that did not use it, a waiting block is freed */
    BN_SLACK = 8              /* at most 1/8 of a block may be left unused by a request */
};

typedef struct bn_block {
    struct bn_block *next;
    size_t capacity;
    uint64_t since;     /* `bn_pool.requests` when it was given back */
    unsigned generation; /* `bn_pool.generation` when it was made */
} bn_block;

static struct {
    bn_block *waiting;   /* the last one first */
    size_t limit;        /* bytes that may wait */
    size_t least;        /* smaller blocks are not kept: malloc reuses them by itself, as quickly */
    uint64_t requests;
    unsigned generation; /* how many forks lie between this process and the first */
} bn_pool = {NULL, (size_t)256 << 20, (size_t)1 << 20, 0, 0};

static bn_block *bn_block_at(void *data) { return (bn_block *)((char *)data - BN_HEADER); }
static void *bn_block_data(bn_block *block) { return (char *)block + BN_HEADER; }
static int bn_block_fits(const bn_block *block, size_t size) {
    return size <= block->capacity && block->capacity - size <= block->capacity / BN_SLACK;
}

static bn_block *bn_system_new(size_t size) {
    void *block = NULL;
    if (size > SIZE_MAX - BN_HEADER) return NULL;
#ifdef _WIN32
    block = _aligned_malloc(size + BN_HEADER, BN_HEADER);
#else
    if (posix_memalign(&block, size < BN_HUGE_PAGE ? BN_HEADER : BN_HUGE_PAGE, size + BN_HEADER)) return NULL;
#endif
#ifdef MADV_HUGEPAGE
    if (size >= BN_HUGE_PAGE) (void)madvise(block, size + BN_HEADER, MADV_HUGEPAGE);
#endif
    return (bn_block *)block;
}

/* Returns the bytes freed. */
static size_t bn_system_free(bn_block *block) {
    size_t freed = 0;
    while (block != NULL) {
        bn_block *next = block->next;
        freed += block->capacity;
#ifdef _WIN32
        _aligned_free(block);
#else
        free(block);
#endif
        block = next;
    }
    return freed;
}

/* Takes blocks out of the list: those beyond `limit` bytes, and those given back before request `oldest`. Returns them.
   The caller holds the lock. */
static bn_block *bn_pool_cut(size_t limit, uint64_t oldest) {
    bn_block **link = &bn_pool.waiting, *rest;
    while (*link != NULL && (*link)->capacity <= limit && (*link)->since >= oldest) {
        limit -= (*link)->capacity;
        link = &(*link)->next;
    }
    rest = *link;
    *link = NULL;
    return rest;
}

/* ---- the pool, for _buffers.pyx ---- */

static size_t bn_pool_waiting(void) {
    size_t total = 0;
    BN_LOCK();
    for (const bn_block *block = bn_pool.waiting; block != NULL; block = block->next) total += block->capacity;
    BN_UNLOCK();
    return total;
}

static size_t bn_pool_release(void) {
    BN_LOCK();
    bn_block *all = bn_pool_cut(0, UINT64_MAX);
    BN_UNLOCK();
    return bn_system_free(all);
}

static size_t bn_pool_limit(void) {
    BN_LOCK();
    size_t limit = bn_pool.limit;
    BN_UNLOCK();
    return limit;
}

/* Returns the limit before. */
static size_t bn_pool_set_limit(size_t limit) {
    BN_LOCK();
    size_t before = bn_pool.limit;
    bn_pool.limit = limit;
    bn_block *rest = bn_pool_cut(limit, 0);
    BN_UNLOCK();
    bn_system_free(rest);
    return before;
}

/* Returns the value before. For tests, which are quicker with small blocks. */
static size_t bn_pool_set_least(size_t least) {
    BN_LOCK();
    size_t before = bn_pool.least;
    bn_pool.least = least;
    BN_UNLOCK();
    return before;
}

/* Whether a block of so many bytes would be kept for reuse. */
static int bn_pool_pays(size_t size) {
    BN_LOCK();
    int pays = size >= bn_pool.least && size <= bn_pool.limit;
    BN_UNLOCK();
    return pays;
}

/* ---- around a fork, in the thread that forks: no other may hold the lock then ---- */

static void bn_pool_before_fork(void) { BN_LOCK(); }
static void bn_pool_after_fork_in_parent(void) { BN_UNLOCK(); }

/* Pages of the waiting blocks are shared with the parent; writing to one would copy it first. Fresh memory is cheaper. */
static void bn_pool_after_fork_in_child(void) {
    bn_block *all = bn_pool_cut(0, UINT64_MAX);
    bn_pool.generation++;
    BN_UNLOCK();
    bn_system_free(all);
}

/* ---- the four functions of a NumPy memory handler ---- */

static void *bn_block_new(void *context, size_t size) {
    bn_block *block = NULL, *overdue = NULL;
    (void)context;
    BN_LOCK();
    if (size >= bn_pool.least) {
        bn_block **link = &bn_pool.waiting;
        while (*link != NULL && !bn_block_fits(*link, size)) link = &(*link)->next;
        block = *link;
        if (block != NULL) *link = block->next;
        bn_pool.requests++;
        overdue = bn_pool_cut(SIZE_MAX, bn_pool.requests > BN_PATIENCE ? bn_pool.requests - BN_PATIENCE : 0);
    }
    unsigned generation = bn_pool.generation;
    BN_UNLOCK();
    bn_system_free(overdue);
    if (block == NULL) {
        block = bn_system_new(size);
        if (block == NULL && bn_pool_release() > 0) block = bn_system_new(size);
        if (block == NULL) return NULL;
        block->capacity = size;
        block->generation = generation;
    }
    return bn_block_data(block);
}

/* `size` is that of the array, which may have been resized; the block knows its own. */
static void bn_block_free(void *context, void *data, size_t size) {
    (void)context, (void)size;
    if (data == NULL) return;
    bn_block *block = bn_block_at(data), *drop = block;
    BN_LOCK();
    block->next = NULL;
    if (block->capacity >= bn_pool.least && block->generation == bn_pool.generation) {
        block->since = bn_pool.requests;
        block->next = bn_pool.waiting;
        bn_pool.waiting = block;
        drop = bn_pool_cut(bn_pool.limit, 0);
    }
    BN_UNLOCK();
    bn_system_free(drop);
}

static void *bn_block_new_zeroed(void *context, size_t n, size_t size) {
    if (size != 0 && n > SIZE_MAX / size) return NULL;
    void *data = bn_block_new(context, n * size);
    if (data != NULL) memset(data, 0, n * size);
    return data;
}

static void *bn_block_resize(void *context, void *data, size_t size) {
    if (data == NULL) return bn_block_new(context, size);
    size_t capacity = bn_block_at(data)->capacity;
    if (bn_block_fits(bn_block_at(data), size)) return data;
    void *fresh = bn_block_new(context, size);
    if (fresh == NULL) return NULL;
    memcpy(fresh, data, size < capacity ? size : capacity);
    bn_block_free(context, data, capacity);
    return fresh;
}

#endif
