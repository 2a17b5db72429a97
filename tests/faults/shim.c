/* To be preloaded: lets the calls that change files fail, fall short, tear or kill, the first, the second, and so on.

   Counted are the calls on paths below a prefix.  Whoever wants faults calls shim_arm() in the process that is to
   suffer; nothing happens before.  What happened is told in memory of the caller, which may be shared, so that it
   outlives the process. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS, KILL, FAIL, SHORT, TEAR };  /* half a write: SHORT says so, TEAR dies of it */
enum { OPEN = 1, WRITE = 2, SYNC = 4, NAME = 8, REMOVE = 16, CUT = 32 };

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
    return real arguments;                                         \
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
    return real arguments;                                                \
  }

OPEN_CALL(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN_CALL(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN_CALL(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
OPEN_CALL(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))

PATH_CALL(fsync, SYNC, fd, NULL, (int fd), (fd))
PATH_CALL(fdatasync, SYNC, fd, NULL, (int fd), (fd))
PATH_CALL(ftruncate, CUT, fd, NULL, (int fd, off_t size), (fd, size))
PATH_CALL(ftruncate64, CUT, fd, NULL, (int fd, off64_t size), (fd, size))
PATH_CALL(rename, NAME, AT_FDCWD, to, (const char *from, const char *to), (from, to))
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

#define WRITE_CALL(call, parameters, whole, part)                \
  ssize_t call parameters {                                      \
    REAL(call);                                                  \
    int action = verdict(#call, WRITE, fd, NULL);                \
    if (action == FAIL) return -1;                               \
    return action == PASS ? real whole : after_half(part, action); \
  }

WRITE_CALL(write, (int fd, const void *data, size_t size), (fd, data, size), real(fd, data, half(size)))
WRITE_CALL(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at),
           real(fd, data, half(size), at))
WRITE_CALL(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at),
           real(fd, data, half(size), at))

/* Of several pieces the first is half written. */
WRITE_CALL(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count),
           real(fd, &(struct iovec){parts[0].iov_base, half(parts[0].iov_len)}, 1))
WRITE_CALL(pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at),
           real(fd, &(struct iovec){parts[0].iov_base, half(parts[0].iov_len)}, 1, at))
WRITE_CALL(pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at),
           real(fd, &(struct iovec){parts[0].iov_base, half(parts[0].iov_len)}, 1, at))
