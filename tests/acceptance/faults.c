/* Preloaded into the processes of the protocol: numbers the calls that make a file durable, below one folder, and at a
   chosen one kills the process or refuses the call. Calls are told apart by name and path, so that threads that run
   side by side do not change which call is the n-th. Does nothing until it is armed. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static char root[PATH_MAX], wanted_name[32], wanted_path[PATH_MAX];
static int wanted_number, refusal, log_handle = -1;
static atomic_int seen;

/* name "" only logs; number counts from 1; error 0 kills. */
void faults_arm(const char *folder, int log, const char *name, const char *path, int number, int error) {
    log_handle = log;
    wanted_number = number;
    refusal = error;
    snprintf(wanted_name, sizeof wanted_name, "%s", name);
    snprintf(wanted_path, sizeof wanted_path, "%s", path);
    snprintf(root, sizeof root, "%s", folder);
}

/* Whether this call is to be refused. Names that safetensors draws at random count as one. */
static int refused(const char *name, const char *path) {
    char line[PATH_MAX + 64], known[PATH_MAX];
    if (!root[0] || strncmp(path, root, strlen(root)) != 0)
        return 0;
    snprintf(known, sizeof known, "%s", path);
    char *last = strrchr(known, '/');
    if (last && strncmp(last, "/.tmp", 5) == 0)
        last[5] = 0;
    if (log_handle >= 0) {
        int length = snprintf(line, sizeof line, "%s\t%s\n", name, known);
        syscall(SYS_write, log_handle, line, (size_t)length);
    }
    if (strcmp(name, wanted_name) != 0 || strcmp(known, wanted_path) != 0)
        return 0;
    if (atomic_fetch_add(&seen, 1) + 1 != wanted_number)
        return 0;
    if (refusal == 0) {
        syscall(SYS_kill, getpid(), SIGKILL);
        pause();
    }
    errno = refusal;
    return 1;
}

static int handle_refused(const char *name, int handle) {
    char link[64], path[PATH_MAX];
    if (!root[0])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return refused(name, path);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int fsync(int handle) {
    REAL(fsync);
    return handle_refused("fsync", handle) ? -1 : real(handle);
}

int fdatasync(int handle) {
    REAL(fdatasync);
    return handle_refused("fdatasync", handle) ? -1 : real(handle);
}

ssize_t write(int handle, const void *content, size_t size) {
    REAL(write);
    return handle_refused("write", handle) ? -1 : real(handle, content, size);
}

ssize_t pwrite64(int handle, const void *content, size_t size, off64_t offset) {
    REAL(pwrite64);
    return handle_refused("write", handle) ? -1 : real(handle, content, size, offset);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return refused("rename", to) ? -1 : real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    return refused("rename", to) ? -1 : real(from_folder, from, to_folder, to);
}
