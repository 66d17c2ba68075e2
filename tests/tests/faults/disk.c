/* Makes the Nth call that changes anything below a folder fail, as a full or a failing disk would: loaded before libc with
 * LD_PRELOAD into `episteme`, and with its environment into its stages. One page of shared memory counts for all processes.
 *
 *   FAULT_UNDER    the folder
 *   FAULT_PAGE     a file of 4096 zero bytes: calls, faults, then the first fault's call and path (see `Page` in disk.rs)
 *   FAULT_AT       which call fails, from 1; 0: none, they are only counted
 *   FAULT_ERRNO    with what
 *   FAULT_LASTING  1: from then on every call that needs space fails; the first may write half of its bytes, as a full disk lets it
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct page {
    atomic_ulong calls, faults;
    char call[32], path[1024];
};

static struct page *page;
static const char *under;
static size_t under_length;
static unsigned long at;
static int code, lasting;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("FAULT_PAGE");
    under = getenv("FAULT_UNDER");
    if (!file || !under) return;
    under_length = strlen(under);
    at = strtoul(getenv("FAULT_AT"), 0, 10);
    code = atoi(getenv("FAULT_ERRNO"));
    lasting = atoi(getenv("FAULT_LASTING"));
    int fd = open(file, O_RDWR | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED : mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (map != MAP_FAILED) page = map;
}

enum { FREE, NEEDS_SPACE };
enum { GOES_ON, FAILS, FAILS_HALF_WAY };

/* Whether this call is to fail. */
static int fate(const char *call, int needs, const char *path) {
    if (!page || strncmp(path, under, under_length)) return GOES_ON;
    unsigned long n = atomic_fetch_add(&page->calls, 1) + 1;
    if (!at || n < at || (n > at && !(lasting && needs == NEEDS_SPACE))) return GOES_ON;
    if (!atomic_fetch_add(&page->faults, 1)) {
        strncpy(page->call, call, sizeof page->call - 1);
        strncpy(page->path, path + under_length, sizeof page->path - 1);
        if (lasting) return FAILS_HALF_WAY;
    }
    errno = code;
    return FAILS;
}

/* The path that a descriptor was opened by; empty if it is no file. */
static const char *of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *within(int folder, const char *name, char *path) {
    if (*name == '/' || folder == AT_FDCWD) return name;
    of(folder, path);
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
    return path;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
/* A call that fails, or is passed on. What can be done half-way fails in these as well. */
#define ON_PATH(type, name, declared, passed, needs, path_of)                                                                    \
    type name declared {                                                                                                         \
        char path[PATH_MAX];                                                                                                     \
        (void)path;                                                                                                              \
        if (fate(#name, needs, path_of) != GOES_ON) return errno = code, -1;                                                     \
        return REAL(name) passed;                                                                                                \
    }

ON_PATH(int, fsync, (int fd), (fd), FREE, of(fd, path))
ON_PATH(int, fdatasync, (int fd), (fd), FREE, of(fd, path))
ON_PATH(int, syncfs, (int fd), (fd), FREE, of(fd, path))
ON_PATH(int, ftruncate, (int fd, off_t size), (fd, size), NEEDS_SPACE, of(fd, path))
ON_PATH(int, ftruncate64, (int fd, off64_t size), (fd, size), NEEDS_SPACE, of(fd, path))
ON_PATH(int, mkdir, (const char *name, mode_t mode), (name, mode), NEEDS_SPACE, name)
ON_PATH(int, mkdirat, (int folder, const char *name, mode_t mode), (folder, name, mode), NEEDS_SPACE, within(folder, name, path))
ON_PATH(int, rename, (const char *from, const char *to), (from, to), FREE, to)
ON_PATH(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), FREE, within(b, to, path))
ON_PATH(int, chmod, (const char *name, mode_t mode), (name, mode), FREE, name)
ON_PATH(int, fchmod, (int fd, mode_t mode), (fd, mode), FREE, of(fd, path))
ON_PATH(int, unlink, (const char *name), (name), FREE, name)
ON_PATH(int, rmdir, (const char *name), (name), FREE, name)
ON_PATH(int, unlinkat, (int folder, const char *name, int flags), (folder, name, flags), FREE, within(folder, name, path))
ON_PATH(ssize_t, copy_file_range, (int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags),
        (in, from, out, to, size, flags), NEEDS_SPACE, of(out, path))
ON_PATH(ssize_t, sendfile, (int out, int in, off_t *from, size_t size), (out, in, from, size), NEEDS_SPACE, of(out, path))
ON_PATH(ssize_t, sendfile64, (int out, int in, off64_t *from, size_t size), (out, in, from, size), NEEDS_SPACE, of(out, path))
ON_PATH(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), NEEDS_SPACE, of(fd, path))

#define WRITES(name, declared, passed, half)                                                                                     \
    ssize_t name declared {                                                                                                      \
        char path[PATH_MAX];                                                                                                     \
        switch (fate(#name, NEEDS_SPACE, of(fd, path))) {                                                                        \
        case GOES_ON: return REAL(name) passed;                                                                                  \
        case FAILS_HALF_WAY: if (size > 1) return REAL(name) half; /* else it fails */                                           \
        default: return errno = code, -1;                                                                                        \
        }                                                                                                                        \
    }

WRITES(write, (int fd, const void *bytes, size_t size), (fd, bytes, size), (fd, bytes, size / 2))
WRITES(pwrite, (int fd, const void *bytes, size_t size, off_t at), (fd, bytes, size, at), (fd, bytes, size / 2, at))
WRITES(pwrite64, (int fd, const void *bytes, size_t size, off64_t at), (fd, bytes, size, at), (fd, bytes, size / 2, at))

/* Opening counts where it may make a file. */
#define OPENS(name, declared, passed, path_of)                                                                                   \
    int name declared {                                                                                                          \
        mode_t mode = 0;                                                                                                         \
        char path[PATH_MAX];                                                                                                     \
        (void)path;                                                                                                              \
        if (flags & O_CREAT) {                                                                                                   \
            va_list rest;                                                                                                        \
            va_start(rest, flags);                                                                                               \
            mode = va_arg(rest, mode_t);                                                                                         \
            va_end(rest);                                                                                                        \
            if (fate(#name, NEEDS_SPACE, path_of) != GOES_ON) return errno = code, -1;                                           \
        }                                                                                                                        \
        return REAL(name) passed;                                                                                                \
    }

OPENS(open, (const char *name, int flags, ...), (name, flags, mode), name)
OPENS(open64, (const char *name, int flags, ...), (name, flags, mode), name)
OPENS(openat, (int folder, const char *name, int flags, ...), (folder, name, flags, mode), within(folder, name, path))
OPENS(openat64, (int folder, const char *name, int flags, ...), (folder, name, flags, mode), within(folder, name, path))
