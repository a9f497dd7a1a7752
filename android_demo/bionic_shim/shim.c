// Android's C library for libraries built for Android, over glibc: only what differs between the two ABIs. Everything
// else is forwarded by generated jumps. Enough for ExecuTorch, fbjni and libc++; constants are those of bionic's headers.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

// No headers that declare what is defined here, under other types.
int dprintf(int, const char*, ...);
int strcmp(const char*, const char*);
char* strcpy(char*, const char*);

// The name under which a function of this file stands for bionic's; generate.py reads these.
#define BIONIC(name) __asm__(name) __attribute__((visibility("default")))

extern struct {
  const char* name;
  void* address;
} forwarded[];

// FILE: programs for Android name the standard streams, old ones as parts of the array __sF.
enum { FILE_SIZE = 152 };
void* streams[3];
void* bionic_stdin BIONIC("stdin");
void* bionic_stdout BIONIC("stdout");
void* bionic_stderr BIONIC("stderr");
char bionic_sf[3 * FILE_SIZE] BIONIC("__sF");

static int (*real_vfprintf)(void*, const char*, va_list);
static int (*real_fputc)(int, void*);
static int (*real_fputs)(const char*, void*);
static int (*real_fflush)(void*);
static size_t (*real_fwrite)(const void*, size_t, size_t, void*);
static long (*real_sysconf)(int);
static int* (*real_errno)(void);
static char* (*real_strerror_gnu)(int, char*, size_t);
static int (*real_strerror_posix)(int, char*, size_t);
static char* (*real_strchr)(const char*, int);
static char* (*real_strrchr)(const char*, int);
static size_t (*real_strlen)(const char*);
static int (*real_open)(const char*, int, ...);

__attribute__((constructor(101))) static void resolve(void) {
  void* c = dlopen("libc.so.6", RTLD_NOW);
  void* m = dlopen("libm.so.6", RTLD_NOW);
  for (int i = 0; forwarded[i].name; i++) {
    void* found = dlsym(c, forwarded[i].name);
    if (!found) found = dlsym(m, forwarded[i].name);
    if (!found) dprintf(2, "bionic shim: glibc has no %s\n", forwarded[i].name);
    forwarded[i].address = found;
  }
  bionic_stdin = streams[0] = *(void**)dlsym(c, "stdin");
  bionic_stdout = streams[1] = *(void**)dlsym(c, "stdout");
  bionic_stderr = streams[2] = *(void**)dlsym(c, "stderr");
  real_vfprintf = dlsym(c, "vfprintf");
  real_fputc = dlsym(c, "fputc");
  real_fputs = dlsym(c, "fputs");
  real_fflush = dlsym(c, "fflush");
  real_fwrite = dlsym(c, "fwrite");
  real_sysconf = dlsym(c, "sysconf");
  real_errno = dlsym(c, "__errno_location");
  real_strerror_gnu = dlsym(c, "strerror_r");
  real_strerror_posix = dlsym(c, "__xpg_strerror_r");
  real_strchr = dlsym(c, "strchr");
  real_strrchr = dlsym(c, "strrchr");
  real_strlen = dlsym(c, "strlen");
  real_open = dlsym(c, "open");
}

static void* stream(void* file) {
  ptrdiff_t at = (char*)file - bionic_sf;
  return at >= 0 && at < (ptrdiff_t)sizeof bionic_sf ? streams[at / FILE_SIZE] : file;
}

int bionic_fprintf(void* file, const char* format, ...) BIONIC("fprintf");
int bionic_fprintf(void* file, const char* format, ...) {
  va_list given;
  va_start(given, format);
  int written = real_vfprintf(stream(file), format, given);
  va_end(given);
  return written;
}
int bionic_vfprintf(void* file, const char* format, va_list given) BIONIC("vfprintf");
int bionic_vfprintf(void* file, const char* format, va_list given) { return real_vfprintf(stream(file), format, given); }
int bionic_fputc(int c, void* file) BIONIC("fputc");
int bionic_fputc(int c, void* file) { return real_fputc(c, stream(file)); }
int bionic_fputs(const char* text, void* file) BIONIC("fputs");
int bionic_fputs(const char* text, void* file) { return real_fputs(text, stream(file)); }
int bionic_fflush(void* file) BIONIC("fflush");
int bionic_fflush(void* file) { return real_fflush(file ? stream(file) : 0); }
size_t bionic_fwrite(const void* data, size_t size, size_t count, void* file) BIONIC("fwrite");
size_t bionic_fwrite(const void* data, size_t size, size_t count, void* file) {
  return real_fwrite(data, size, count, stream(file));
}

int* bionic_errno(void) BIONIC("__errno");
int* bionic_errno(void) { return real_errno(); }
char* bionic_gnu_strerror_r(int code, char* text, size_t size) BIONIC("__gnu_strerror_r");
char* bionic_gnu_strerror_r(int code, char* text, size_t size) { return real_strerror_gnu(code, text, size); }
int bionic_strerror_r(int code, char* text, size_t size) BIONIC("strerror_r");  // POSIX's, where glibc's is GNU's
int bionic_strerror_r(int code, char* text, size_t size) { return real_strerror_posix(code, text, size); }

// Fortified functions: the sizes that they would check against are the compiler's.
size_t bionic_strlen_chk(const char* text, size_t size) BIONIC("__strlen_chk");
size_t bionic_strlen_chk(const char* text, size_t size) { return (void)size, real_strlen(text); }
char* bionic_strchr_chk(const char* text, int c, size_t size) BIONIC("__strchr_chk");
char* bionic_strchr_chk(const char* text, int c, size_t size) { return (void)size, real_strchr(text, c); }
char* bionic_strrchr_chk(const char* text, int c, size_t size) BIONIC("__strrchr_chk");
char* bionic_strrchr_chk(const char* text, int c, size_t size) { return (void)size, real_strrchr(text, c); }
ssize_t bionic_write_chk(int file, const void* data, size_t count, size_t size) BIONIC("__write_chk");
ssize_t bionic_write_chk(int file, const void* data, size_t count, size_t size) { return (void)size, write(file, data, count); }
int bionic_open_2(const char* path, int flags) BIONIC("__open_2");
int bionic_open_2(const char* path, int flags) { return real_open(path, flags); }

int bionic_property_get(const char* name, char* value) BIONIC("__system_property_get");
int bionic_property_get(const char* name, char* value) {
  if (strcmp(name, "ro.build.version.sdk") != 0) return *value = 0;
  strcpy(value, "34");
  return 2;
}
void bionic_abort_message(const char* message) BIONIC("android_set_abort_message");
void bionic_abort_message(const char* message) { dprintf(2, "abort message: %s\n", message); }

long bionic_sysconf(int name) BIONIC("sysconf");
long bionic_sysconf(int name) {
  switch (name) {  // bionic's numbers
    case 0x06: return real_sysconf(_SC_CLK_TCK);
    case 0x27:
    case 0x28: return real_sysconf(_SC_PAGESIZE);
    case 0x60: return real_sysconf(_SC_NPROCESSORS_CONF);
    case 0x61: return real_sysconf(_SC_NPROCESSORS_ONLN);
    case 0x62: return real_sysconf(_SC_PHYS_PAGES);
    case 0x63: return real_sysconf(_SC_AVPHYS_PAGES);
    default: return -1;
  }
}
long bionic_pathconf(const char* path, int name) BIONIC("pathconf");
long bionic_pathconf(const char* path, int name) { return (void)path, (void)name, 4096; }

// sigset_t has 8 bytes there and 128 here.
int bionic_sigfillset(unsigned long* set) BIONIC("sigfillset");
int bionic_sigfillset(unsigned long* set) { return *set = ~0UL, 0; }
int bionic_sigmask(int how, const unsigned long* set, unsigned long* old) BIONIC("pthread_sigmask");
int bionic_sigmask(int how, const unsigned long* set, unsigned long* old) {
  return syscall(SYS_rt_sigprocmask, how, set, old, 8) < 0 ? errno : 0;
}

// pthread_mutex_t has 40 bytes there; glibc on arm64 would clear 48. Its kind is the fifth int in both.
int bionic_mutex_init(int* mutex, const long* attributes) BIONIC("pthread_mutex_init");
int bionic_mutex_init(int* mutex, const long* attributes) {
  for (int i = 0; i < 10; i++) mutex[i] = 0;
  if (attributes) mutex[4] = (int)(*attributes & 3);
  return 0;
}
