/* To be preloaded: lets the calls that change files fail, fall short, tear or kill, the first, the second, and so on;
   or writes down what they change.

   Counted are the calls on paths below a prefix.  Whoever wants faults calls shim_arm() in the process that is to
   suffer; nothing happens before.  What happened is told in memory of the caller, which may be shared, so that it
   outlives the process.  Whoever wants to know what is changed, with all data, calls shim_trace(). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS, KILL, FAIL, SHORT, TEAR };  /* half a write: SHORT says so, TEAR dies of it */
enum { OPEN = 1, WRITE = 2, SYNC = 4, NAME = 8, REMOVE = 16, CUT = 32, GROW = 64 };

struct report {
  long count;    /* calls that were counted */
  long hits;     /* calls that suffered */
  char first[8192]; /* the first that suffered: its name, and on what */
};

static struct {
  char prefix[4096];
  long at;
  int action, code, lasting;
  unsigned kinds;
  struct report *report;
} plan;

void shim_arm(const char *prefix, long at, int action, int code, int lasting, unsigned kinds, struct report *report) {
  snprintf(plan.prefix, sizeof plan.prefix, "%s", prefix);
  plan.at = at;
  plan.action = action;
  plan.code = code;
  plan.lasting = lasting;
  plan.kinds = kinds;
  plan.report = report;
}

void shim_disarm(void) { plan.report = NULL; }

static void name_of(int fd, char *name, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, name, size - 1);
  name[length < 0 ? 0 : length] = 0;
}

static void full_path(int folder, const char *path, char *name, size_t size) {
  if (path[0] == '/') {
    snprintf(name, size, "%s", path);
    return;
  }
  if (folder == AT_FDCWD) {
    if (!getcwd(name, size)) name[0] = 0;
  } else {
    name_of(folder, name, size);
  }
  size_t used = strlen(name);
  snprintf(name + used, size - used, "/%s", path);
}

/* What is to be done with a call; it does not return if the process is to die before it.  What is lasting fails from
   the second on: after a write that fell short, none succeeds. */
static int verdict(const char *call, unsigned kind, int folder, const char *path) {
  struct report *report = plan.report;
  if (!report || !(plan.kinds & kind)) return PASS;
  char name[4096];
  int saved = errno;
  if (path)
    full_path(folder, path, name, sizeof name);
  else
    name_of(folder, name, sizeof name);
  errno = saved;
  if (strncmp(name, plan.prefix, strlen(plan.prefix))) return PASS;
  report->count++;
  if (report->count != plan.at && !(plan.lasting && report->count > plan.at)) return PASS;
  if (!report->hits++) snprintf(report->first, sizeof report->first, "%s %s", call, name);
  if (plan.action == KILL) raise(SIGKILL);
  if (plan.action == FAIL || report->hits > 1) {
    errno = plan.code;
    return FAIL;
  }
  return plan.action;
}

/* What was done, after it was done. */

static struct {
  char prefix[4096];
  int fd;
} trace = {.fd = -1};

struct entry {
  char call[16];
  long flags;  /* of the open file, or with which it was opened */
  long at;     /* where it was written, or allocated from */
  long length; /* of the data that follow the name */
  long size;   /* of the file now, or of what was allocated */
  long name;   /* length of the name */
};

void shim_trace(const char *prefix, int fd) {
  snprintf(trace.prefix, sizeof trace.prefix, "%s", prefix);
  trace.fd = fd;
}

static void told(const char *call, int folder, const char *path, long flags, long at, const struct iovec *parts,
                 int count, long length) {
  if (trace.fd < 0) return;
  char name[4096];
  struct stat status = {0};
  int saved = errno;
  if (path)
    full_path(folder, path, name, sizeof name);
  else
    name_of(folder, name, sizeof name);
  if (!strncmp(name, trace.prefix, strlen(trace.prefix))) {
    if (path ? stat(name, &status) : fstat(folder, &status)) status.st_size = -1;
    struct entry entry = {"", flags, at, length, status.st_size, strlen(name)};
    snprintf(entry.call, sizeof entry.call, "%s", call);
    syscall(SYS_write, trace.fd, &entry, sizeof entry);
    syscall(SYS_write, trace.fd, name, entry.name);
    for (int number = 0; number < count && length > 0; number++) {
      long size = parts[number].iov_len < (size_t)length ? (long)parts[number].iov_len : length;
      syscall(SYS_write, trace.fd, parts[number].iov_base, size);
      length -= size;
    }
  }
  errno = saved;
}

static off_t place_of(int fd) { return trace.fd < 0 ? 0 : lseek(fd, 0, SEEK_CUR); }

static ssize_t wrote(const char *call, int fd, off_t at, const struct iovec *parts, int count, ssize_t written) {
  if (trace.fd >= 0 && written > 0) told(call, fd, NULL, fcntl(fd, F_GETFL), at, parts, count, written);
  return written;
}

static size_t half(size_t size) { return size > 1 ? size / 2 : size; }

static ssize_t after_half(ssize_t written, int action) {
  if (action == TEAR) raise(SIGKILL);
  return written;
}

#define REAL(call)                                       \
  static __typeof__(&call) real;                         \
  if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #call)

#define PATH_CALL(call, kind, folder, path, parameters, arguments) \
  int call parameters {                                            \
    REAL(call);                                                    \
    if (verdict(#call, kind, folder, path) == FAIL) return -1;     \
    int done = real arguments;                                     \
    if (!done) told(#call, folder, path, 0, 0, NULL, 0, 0);        \
    return done;                                                   \
  }

/* These return the error. */
#define ROOM_CALL(call, offset)                                                   \
  int call(int fd, offset at, offset size) {                                      \
    REAL(call);                                                                   \
    if (verdict(#call, GROW, fd, NULL) == FAIL) return plan.code;                 \
    int code = real(fd, at, size);                                                \
    if (!code) told(#call, fd, NULL, 0, at, NULL, 0, 0);                          \
    return code;                                                                  \
  }

#define OPEN_CALL(call, folder, parameters, arguments)                    \
  int call parameters {                                                   \
    REAL(call);                                                           \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                \
      va_list rest;                                                       \
      va_start(rest, flags);                                              \
      mode = va_arg(rest, mode_t);                                        \
      va_end(rest);                                                       \
    }                                                                     \
    if (verdict(#call, OPEN, folder, path) == FAIL) return -1;            \
    int fd = real arguments;                                              \
    if (fd >= 0) told(#call, folder, path, flags, 0, NULL, 0, 0);         \
    return fd;                                                            \
  }

OPEN_CALL(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN_CALL(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN_CALL(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
OPEN_CALL(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))

PATH_CALL(fsync, SYNC, fd, NULL, (int fd), (fd))
PATH_CALL(fdatasync, SYNC, fd, NULL, (int fd), (fd))
PATH_CALL(ftruncate, CUT, fd, NULL, (int fd, off_t size), (fd, size))
PATH_CALL(ftruncate64, CUT, fd, NULL, (int fd, off64_t size), (fd, size))
PATH_CALL(truncate, CUT, AT_FDCWD, path, (const char *path, off_t size), (path, size))
PATH_CALL(truncate64, CUT, AT_FDCWD, path, (const char *path, off64_t size), (path, size))
ROOM_CALL(posix_fallocate, off_t)
ROOM_CALL(posix_fallocate64, off64_t)
/* The old name is told as data. */
int rename(const char *from, const char *to) {
  REAL(rename);
  if (verdict("rename", NAME, AT_FDCWD, to) == FAIL) return -1;
  int done = real(from, to);
  if (!done) told("rename", AT_FDCWD, to, 0, 0, &(struct iovec){(void *)from, strlen(from)}, 1, strlen(from));
  return done;
}

PATH_CALL(renameat, NAME, there, to, (int here, const char *from, int there, const char *to), (here, from, there, to))
PATH_CALL(link, NAME, AT_FDCWD, to, (const char *from, const char *to), (from, to))
PATH_CALL(linkat, NAME, there, to, (int here, const char *from, int there, const char *to, int flags),
          (here, from, there, to, flags))
PATH_CALL(mkdir, NAME, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
PATH_CALL(mkdirat, NAME, folder, path, (int folder, const char *path, mode_t mode), (folder, path, mode))
PATH_CALL(mknod, NAME, AT_FDCWD, path, (const char *path, mode_t mode, dev_t device), (path, mode, device))
PATH_CALL(unlink, REMOVE, AT_FDCWD, path, (const char *path), (path))
PATH_CALL(unlinkat, REMOVE, folder, path, (int folder, const char *path, int flags), (folder, path, flags))
PATH_CALL(rmdir, REMOVE, AT_FDCWD, path, (const char *path), (path))

#define WRITE_CALL(call, parameters, place, pieces, whole, part)                                      \
  ssize_t call parameters {                                                                           \
    REAL(call);                                                                                       \
    int action = verdict(#call, WRITE, fd, NULL);                                                     \
    if (action == FAIL) return -1;                                                                    \
    off_t start = place;                                                                              \
    if (action != PASS) return after_half(part, action);                                              \
    return wrote(#call, fd, start, PIECES pieces, real whole);                                        \
  }

#define PIECES(pointer, count) pointer, count
#define ONE (&((struct iovec){(void *)data, size}), 1)

WRITE_CALL(write, (int fd, const void *data, size_t size), place_of(fd), ONE, (fd, data, size),
           real(fd, data, half(size)))
WRITE_CALL(pwrite, (int fd, const void *data, size_t size, off_t at), at, ONE, (fd, data, size, at),
           real(fd, data, half(size), at))
WRITE_CALL(pwrite64, (int fd, const void *data, size_t size, off64_t at), at, ONE, (fd, data, size, at),
           real(fd, data, half(size), at))

/* Of several pieces the first is half written. */
WRITE_CALL(writev, (int fd, const struct iovec *parts, int count), place_of(fd), (parts, count), (fd, parts, count),
           real(fd, &(struct iovec){parts[0].iov_base, half(parts[0].iov_len)}, 1))
WRITE_CALL(pwritev, (int fd, const struct iovec *parts, int count, off_t at), at, (parts, count),
           (fd, parts, count, at), real(fd, &(struct iovec){parts[0].iov_base, half(parts[0].iov_len)}, 1, at))
WRITE_CALL(pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), at, (parts, count),
           (fd, parts, count, at), real(fd, &(struct iovec){parts[0].iov_base, half(parts[0].iov_len)}, 1, at))
