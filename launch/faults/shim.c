/* A disk that fails or is slow, for a process that is started with this in LD_PRELOAD.

   TESSERA_EIO_PATH, TESSERA_EIO_FLAG: while the file FLAG is there, opening a file whose path holds
   PATH fails with EIO, and FLAG.hit appears. TESSERA_SLOW_PATH, TESSERA_SLOW_FLAG, TESSERA_SLOW_MSEC: while FLAG is there,
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

static void take_time(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    if (!is_on("TESSERA_SLOW_PATH", "TESSERA_SLOW_FLAG", path)) return;
    const char *milliseconds = getenv("TESSERA_SLOW_MSEC");
    pthread_mutex_lock(&turn);
    usleep(1000 * (milliseconds ? atoi(milliseconds) : 0));
    pthread_mutex_unlock(&turn);
}

#define WRITE(name, type, call, ...)                                        \
    ssize_t name(int file, __VA_ARGS__) {                                   \
        static ssize_t (*next)(int, type);                                  \
        if (!next) next = (ssize_t(*)(int, type))dlsym(RTLD_NEXT, #name);   \
        take_time(file);                                                    \
        return next call;                                                   \
    }
#define COMMA ,

WRITE(write, const void * COMMA size_t, (file, from, size), const void *from, size_t size)
WRITE(pwrite, const void * COMMA size_t COMMA off_t, (file, from, size, at), const void *from,
      size_t size, off_t at)
WRITE(pwrite64, const void * COMMA size_t COMMA off64_t, (file, from, size, at), const void *from,
      size_t size, off64_t at)
WRITE(writev, const struct iovec * COMMA int, (file, parts, num), const struct iovec *parts, int num)
WRITE(pwritev, const struct iovec * COMMA int COMMA off_t, (file, parts, num, at),
      const struct iovec *parts, int num, off_t at)
WRITE(pwritev64, const struct iovec * COMMA int COMMA off64_t, (file, parts, num, at),
      const struct iovec *parts, int num, off64_t at)
