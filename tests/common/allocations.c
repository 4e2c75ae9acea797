/* Counts allocations, for tests/memory.rs: compiled there, preloaded into llmopt (glibc). At exit "count bytes" is written to the file
 * that ALLOCATIONS names. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static atomic_ulong count, bytes;

static void add(size_t size) {
    count++;
    bytes += size;
}

void *malloc(size_t size) {
    add(size);
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size) {
    add(n * size);
    return __libc_calloc(n, size);
}

void *realloc(void *old, size_t size) {
    add(size);
    return __libc_realloc(old, size);
}

int posix_memalign(void **out, size_t align, size_t size) {
    add(size);
    *out = __libc_memalign(align, size);
    return *out ? 0 : ENOMEM;
}

__attribute__((destructor)) static void tell(void) {
    unsigned long counted = count, sum = bytes;
    FILE *file = fopen(getenv("ALLOCATIONS"), "w");
    if (file) fprintf(file, "%lu %lu", counted, sum), fclose(file);
}
