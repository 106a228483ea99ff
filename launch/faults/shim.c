/* A disk that fails or is slow, for a process that is started with this in LD_PRELOAD.

   TESSERA_EIO_PATH, TESSERA_EIO_FLAG: while the file FLAG is there, opening a file whose path holds
   PATH fails with EIO, and FLAG.hit appears. TESSERA_EIO_READ, TESSERA_EIO_TIMES: so many reads of a
   file whose path holds READ fail with EIO. TESSERA_FLOCK: flock fails with this errno. TESSERA_SLOW_PATH, TESSERA_SLOW_FLAG, TESSERA_SLOW_MSEC: while FLAG is there,
   each write to a file whose path holds PATH takes so long, and they take turns. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static int is_on(const char *path_name, const char *flag_name, const char *path) {
    const char *part = getenv(path_name), *flag = getenv(flag_name);
    return part && flag && strstr(path, part) && access(flag, F_OK) == 0;
}

static void mark_hit(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s.hit", getenv("TESSERA_EIO_FLAG"));
    FILE *hit = fopen(path, "w");
    if (hit) fclose(hit);
}

#define OPEN(name)                                                                  \
    int name(const char *path, int flags, ...) {                                    \
        static int (*next)(const char *, int, ...);                                 \
        if (!next) next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        va_list more;                                                               \
        va_start(more, flags);                                                      \
        mode_t mode = va_arg(more, mode_t);                                         \
        va_end(more);                                                               \
        if (is_on("TESSERA_EIO_PATH", "TESSERA_EIO_FLAG", path)) {                  \
            mark_hit();                                                             \
            errno = EIO;                                                            \
            return -1;                                                              \
        }                                                                           \
        return next(path, flags, mode);                                             \
    }

OPEN(open)
OPEN(open64)

static int path_of(int file, char path[4096]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, 4095);
    if (length <= 0) return 0;
    path[length] = 0;
    return 1;
}

static int read_fails(int file) {
    const char *part = getenv("TESSERA_EIO_READ"), *times = getenv("TESSERA_EIO_TIMES");
    static int number = 0;
    char path[4096];
    if (!part || !times || !path_of(file, path) || !strstr(path, part)) return 0;
    if (__sync_fetch_and_add(&number, 1) >= atoi(times)) return 0;
    errno = EIO;
    return 1;
}

static void take_time(int file) {
    char path[4096];
    if (!path_of(file, path) || !is_on("TESSERA_SLOW_PATH", "TESSERA_SLOW_FLAG", path)) return;
    const char *milliseconds = getenv("TESSERA_SLOW_MSEC");
    pthread_mutex_lock(&turn);
    usleep(1000 * (milliseconds ? atoi(milliseconds) : 0));
    pthread_mutex_unlock(&turn);
}

int flock(int file, int how) {
    static int (*next)(int, int);
    if (!next) next = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    const char *number = getenv("TESSERA_FLOCK");
    if (!number) return next(file, how);
    errno = atoi(number);
    return -1;
}

#define CALL(name, before, type, call, ...)                               \
    ssize_t name(int file, __VA_ARGS__) {                                 \
        static ssize_t (*next)(int, type);                                \
        if (!next) next = (ssize_t(*)(int, type))dlsym(RTLD_NEXT, #name); \
        before;                                                           \
        return next call;                                                 \
    }
#define FAIL if (read_fails(file)) return -1
#define WAIT take_time(file)
#define COMMA ,

CALL(read, FAIL, void * COMMA size_t, (file, to, size), void *to, size_t size)
CALL(pread, FAIL, void * COMMA size_t COMMA off_t, (file, to, size, at), void *to, size_t size,
     off_t at)
CALL(pread64, FAIL, void * COMMA size_t COMMA off64_t, (file, to, size, at), void *to, size_t size,
     off64_t at)
CALL(write, WAIT, const void * COMMA size_t, (file, from, size), const void *from, size_t size)
CALL(pwrite, WAIT, const void * COMMA size_t COMMA off_t, (file, from, size, at), const void *from,
     size_t size, off_t at)
CALL(pwrite64, WAIT, const void * COMMA size_t COMMA off64_t, (file, from, size, at),
     const void *from, size_t size, off64_t at)
CALL(writev, WAIT, const struct iovec * COMMA int, (file, parts, num), const struct iovec *parts,
     int num)
CALL(pwritev, WAIT, const struct iovec * COMMA int COMMA off_t, (file, parts, num, at),
     const struct iovec *parts, int num, off_t at)
CALL(pwritev64, WAIT, const struct iovec * COMMA int COMMA off64_t, (file, parts, num, at),
     const struct iovec *parts, int num, off64_t at)
