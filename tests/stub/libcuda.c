/* A CUDA driver without a device, so that the real numba-cuda can compile, link and launch anywhere.
 *
 * Device memory is memory of this process. Nothing runs: a launch becomes a line in the file $CUDA_STUB_LOG, with grid,
 * block, stream and the first $CUDA_STUB_ARGUMENTS arguments, each of 8 bytes. Functions that are not here do nothing, and
 * succeed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default"))) int
#define MAX_ARGUMENTS 64

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201 };

static char context; /* its address is the only context */
static __thread void *current;

static int handle(void **made) {
    static uintptr_t last = 0x5000;
    *made = (void *)(last += 16);
    return OK;
}

API cuInit(unsigned flags) { return OK; }
API cuDriverGetVersion(int *version) { return *version = 13000, OK; }

/* ---- the device ---- */

API cuDeviceGetCount(int *n) { return *n = 1, OK; }
API cuDeviceGet(int *device, int ordinal) { return *device = ordinal, OK; }
API cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "stub"), OK; }
API cuDeviceGetUuid_v2(char *uuid, int device) { return memset(uuid, 1, 16), OK; }
API cuDeviceTotalMem_v2(size_t *n_bytes, int device) { return *n_bytes = (size_t)1 << 36, OK; }
API cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: return *value = 1024, OK;     /* threads of a block */
    case 2: case 3: return *value = 1024, OK;
    case 4: return *value = 64, OK;
    case 5: return *value = 0x7fffffff, OK; /* blocks of a grid */
    case 6: case 7: return *value = 65535, OK;
    case 8: return *value = 49152, OK;    /* bytes of shared memory */
    case 10: return *value = 32, OK;      /* threads of a warp */
    case 16: return *value = 132, OK;     /* multiprocessors */
    case 75: return *value = 9, OK;       /* compute capability */
    case 76: case 115: return *value = 0, OK;
    default: return *value = 1, OK;
    }
}

/* ---- contexts and streams ---- */

API cuDevicePrimaryCtxRetain(void **made, int device) { return *made = &context, OK; }
API cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, OK; }
API cuCtxGetCurrent(void **found) { return *found = current, OK; }
API cuCtxSetCurrent(void *given) { return current = given, OK; }
API cuCtxPushCurrent_v2(void *given) { return current = given, OK; }
API cuCtxPopCurrent_v2(void **found) {
    if (found)
        *found = current;
    return current = NULL, OK;
}
API cuCtxGetDevice(int *device) { return *device = 0, current ? OK : INVALID_CONTEXT; }
API cuCtxGetId(void *given, unsigned long long *id) { return *id = 1, OK; }
API cuStreamGetCtx(void *stream, void **found) { return *found = &context, OK; }
API cuStreamGetCtx_v2(void *stream, void **found, void **green) {
    if (green)
        *green = NULL;
    return *found = &context, OK;
}
API cuStreamCreate(void **made, unsigned flags) { return handle(made); }
API cuStreamIsCapturing(void *stream, int *status) { return *status = 0, OK; }
API cuEventCreate(void **made, unsigned flags) { return handle(made); }

/* ---- memory ---- */

API cuMemGetInfo_v2(size_t *n_free, size_t *total) { return *n_free = *total = (size_t)1 << 36, OK; }
API cuMemAlloc_v2(uintptr_t *made, size_t n_bytes) {
    void *memory = n_bytes < (size_t)1 << 31 ? aligned_alloc(512, (n_bytes + 511) / 512 * 512) : NULL;
    return *made = (uintptr_t)memory, memory ? OK : OUT_OF_MEMORY;
}
API cuMemFree_v2(uintptr_t memory) { return free((void *)memory), OK; }
API cuMemcpyHtoD_v2(uintptr_t to, const void *from, size_t n) { return memcpy((void *)to, from, n), OK; }
API cuMemcpyDtoH_v2(void *to, uintptr_t from, size_t n) { return memcpy(to, (void *)from, n), OK; }
API cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t n, void *stream) { return memcpy((void *)to, from, n), OK; }
API cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t n, void *stream) { return memcpy(to, (void *)from, n), OK; }
API cuPointerGetAttribute(void *value, int attribute, uintptr_t memory) {
    if (attribute == 2) /* of which kind the memory is: a device's */
        return *(int *)value = 2, OK;
    return *(uintptr_t *)value = memory, OK;
}

/* ---- code ---- */

API cuLibraryLoadData(void **made, const void *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m) {
    return handle(made);
}
API cuLibraryGetKernel(void **made, void *library, const char *name) { return handle(made); }
API cuLibraryGetModule(void **module, void *library) { return *module = library, OK; }
API cuModuleLoadDataEx(void **made, const void *image, unsigned n, void *options, void *values) { return handle(made); }
API cuModuleGetFunction(void **made, void *module, const char *name) { return handle(made); }
API cuKernelGetFunction(void **function, void *kernel) { return *function = kernel, OK; }
API cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) { return *value = 0, OK; }
API cuKernelGetParamInfo(void *kernel, size_t i, size_t *offset, size_t *size) {
    if (i >= MAX_ARGUMENTS)
        return INVALID_VALUE;
    *offset = 8 * i;
    if (size)
        *size = 8;
    return OK;
}

typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream, *attributes;
    unsigned n_attributes;
} launch_config;

API cuLaunchKernelEx(const launch_config *c, void *function, void **arguments, void **extra) {
    const char *path = getenv("CUDA_STUB_LOG"), *n_arguments = getenv("CUDA_STUB_ARGUMENTS");
    FILE *log = path ? fopen(path, "a") : NULL;
    int i, n = n_arguments ? atoi(n_arguments) : 0;
    if (!log)
        return OK;
    fprintf(log, "%u %u %u %u %llu", c->grid[0], c->grid[1], c->block[0], c->block[1], (unsigned long long)(uintptr_t)c->stream);
    for (i = 0; i < n; i++)
        fprintf(log, " %lld", *(long long *)arguments[i]);
    fprintf(log, "\n");
    return fclose(log), OK;
}

/* ---- names ---- */

API cuGetErrorName(int error, const char **name) { return *name = "CUDA_ERROR", OK; }
API cuGetErrorString(int error, const char **text) { return *text = "an error of the stub", OK; }
static int nothing(void) { return OK; }
API cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status) {
    Dl_info here;
    char newer[256];
    void *self, *at = NULL;
    dladdr((void *)cuInit, &here);
    self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    snprintf(newer, sizeof newer, "%s_v2", name);
    at = dlsym(self, newer);
    at = at ? at : dlsym(self, name);
    *found = at ? at : (void *)nothing;
    if (status)
        *status = 0;
    return OK;
}
API cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, NULL);
}
