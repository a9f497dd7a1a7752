// liblog: to standard error where $ANDROID_LOG is set.

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int __android_log_vprint(int priority, const char* tag, const char* format, va_list given) {
  if (!getenv("ANDROID_LOG")) return 0;
  fprintf(stderr, "[%d] %s: ", priority, tag ? tag : "");
  vfprintf(stderr, format, given);
  fputc('\n', stderr);
  return 1;
}

int __android_log_print(int priority, const char* tag, const char* format, ...) {
  va_list given;
  va_start(given, format);
  int written = __android_log_vprint(priority, tag, format, given);
  va_end(given);
  return written;
}

int __android_log_write(int priority, const char* tag, const char* message) {
  return __android_log_print(priority, tag, "%s", message);
}

void __android_log_assert(const char* condition, const char* tag, const char* format, ...) {
  fprintf(stderr, "%s: assertion %s failed: ", tag ? tag : "", condition ? condition : "");
  if (format) {
    va_list given;
    va_start(given, format);
    vfprintf(stderr, format, given);
    va_end(given);
  }
  fputc('\n', stderr);
  abort();
}
