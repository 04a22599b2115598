// A disk that becomes full, or a process that is killed, at a chosen write below a directory: for LD_PRELOAD (forks.py).

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char place[PATH_MAX];
static long after = -1, seen;
static int kills;

// after: how many writes go well; -1 for all. kills: end the process there; otherwise all that need room fail from there on.
void faults_arm(const char *where, long allowed, int how) {
  snprintf(place, sizeof place, "%s", where);
  after = allowed, kills = how, seen = 0;
}
long faults_seen(void) { return seen; }

static int below(const char *path) { return place[0] && !strncmp(path, place, strlen(place)); }

static int strike(const char *path, int needs_room) {
  if (!below(path)) return 0;
  long now = __sync_add_and_fetch(&seen, 1);
  if (after < 0 || now <= after) return 0;
  if (kills) kill(getpid(), SIGKILL);
  if (!needs_room) return 0;
  errno = ENOSPC;
  return 1;
}
static int strike_at(int folder, const char *path, int needs_room) {
  char whole[PATH_MAX], base[PATH_MAX], link[64];
  if (!place[0]) return 0;
  if (path[0] == '/') return strike(path, needs_room);
  if (folder == AT_FDCWD) {
    if (!getcwd(base, sizeof base)) return 0;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, base, sizeof base - 1);
    if (size < 0) return 0;
    base[size] = 0;
  }
  if (snprintf(whole, sizeof whole, "%s/%s", base, path) >= (int)sizeof whole) return 0;
  return strike(whole, needs_room);
}
static int strike_file(int file, int needs_room) {
  char link[64], path[PATH_MAX];
  if (!place[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return strike(path, needs_room);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *data, size_t size) {
  return strike_file(file, 1) ? -1 : REAL(write)(file, data, size);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  return strike_file(file, 1) ? -1 : REAL(pwrite)(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
  return strike_file(file, 1) ? -1 : REAL(pwrite64)(file, data, size, at);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
  return strike_file(file, 1) ? -1 : REAL(writev)(file, parts, count);
}
int fsync(int file) { return strike_file(file, 1) ? -1 : REAL(fsync)(file); }
int mkdir(const char *path, mode_t mode) { return strike_at(AT_FDCWD, path, 1) ? -1 : REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return strike_at(AT_FDCWD, to, 0) ? -1 : REAL(rename)(from, to); }
int unlink(const char *path) { return strike_at(AT_FDCWD, path, 0) ? -1 : REAL(unlink)(path); }
int rmdir(const char *path) { return strike_at(AT_FDCWD, path, 0) ? -1 : REAL(rmdir)(path); }

#define OPEN(name, ...)                                                \
  mode_t mode = 0;                                                     \
  if (flags & (O_CREAT | __O_TMPFILE)) {                               \
    va_list rest;                                                      \
    va_start(rest, flags);                                             \
    mode = va_arg(rest, mode_t);                                       \
    va_end(rest);                                                      \
  }
#define NEW(folder) ((flags & O_CREAT) && faccessat(folder, path, F_OK, 0) && strike_at(folder, path, 1))

int open(const char *path, int flags, ...) {
  OPEN(open)
  return NEW(AT_FDCWD) ? -1 : REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  OPEN(open64)
  return NEW(AT_FDCWD) ? -1 : REAL(open64)(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
  OPEN(openat)
  return NEW(folder) ? -1 : REAL(openat)(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
  OPEN(openat64)
  return NEW(folder) ? -1 : REAL(openat64)(folder, path, flags, mode);
}
