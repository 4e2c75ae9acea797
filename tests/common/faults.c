/* Faults at named system calls, for tests/faults.rs: compiled there, preloaded into llmopt. The program itself knows nothing of it.
 *
 *   FAULT=point      where, see below      FAULT_AT=n       at the n-th time (1 is the first)
 *   FAULT_FILE=part  counts only descriptors whose path has this part in its last component
 *
 * Points that kill the process: before-read (positioned reads, which models are read by), before-write, mid-write (half of the bytes are written), after-write, before-sync, after-sync,
 * after-lock, at-exit. Points that fail: no-lock (every flock says ENOLCK), interrupt (every second call of each kind says EINTR),
 * clock-back (each look at the wall clock is an hour before the one that came before it). */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int is(const char *point) {
    const char *fault = getenv("FAULT");
    return fault && !strcmp(fault, point);
}

/* Whether the descriptor is the file that counts. */
static int counts(int fd) {
    const char *part = getenv("FAULT_FILE");
    char link[64], path[4096];
    if (!part) return 1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    const char *last = strrchr(path, '/');
    return strstr(last ? last : path, part) != 0;
}

/* Whether this is the n-th time. */
static int now(void) {
    static atomic_int times;
    const char *at = getenv("FAULT_AT");
    return atomic_fetch_add(&times, 1) + 1 == (at ? atoi(at) : 1);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Every second call of a kind is interrupted by a signal that never was. */
static int interrupted(atomic_int *times) {
    if (!is("interrupt") || atomic_fetch_add(times, 1) % 2) return 0;
    errno = EINTR;
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    static atomic_int times;
    if (interrupted(&times)) return -1;
    int mine = (is("before-write") || is("mid-write") || is("after-write")) && counts(fd) && now();
    if (mine && is("before-write")) die();
    if (mine && is("mid-write")) count /= 2;
    ssize_t wrote = syscall(SYS_write, fd, bytes, count);
    if (mine) die();
    return wrote;
}

ssize_t read(int fd, void *bytes, size_t count) {
    static atomic_int times;
    return interrupted(&times) ? -1 : syscall(SYS_read, fd, bytes, count);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t offset) {
    static atomic_int times;
    if (interrupted(&times)) return -1;
    if (is("before-read") && counts(fd) && now()) die();
    return syscall(SYS_pread64, fd, bytes, count, offset);
}

static int synced(int fd, long call) {
    static atomic_int times;
    if (interrupted(&times)) return -1;
    int mine = (is("before-sync") || is("after-sync")) && counts(fd) && now();
    if (mine && is("before-sync")) die();
    int result = syscall(call, fd);
    if (mine) die();
    return result;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int flock(int fd, int operation) {
    static atomic_int times;
    if (interrupted(&times)) return -1;
    if (is("no-lock")) {
        errno = ENOLCK;
        return -1;
    }
    int result = syscall(SYS_flock, fd, operation);
    if (result == 0 && is("after-lock") && counts(fd) && now()) die();
    return result;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static atomic_int times;
    int result = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME && is("clock-back")) time->tv_sec -= 3600L * atomic_fetch_add(&times, 1);
    return result;
}

__attribute__((destructor)) static void at_exit(void) {
    if (is("at-exit")) die();
}
