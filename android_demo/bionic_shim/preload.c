// To be preloaded into the JVM that loads libraries built for Android.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

// On arm64 bionic keeps its stack guard at tpidr_el0 + 0x28. This reserves that place in every thread's storage, so that
// what a function reads there when it starts is still the same when it ends.
__thread char bionic_tls_pad[128] __attribute__((aligned(16), tls_model("initial-exec")));

char* bionic_pad(void) { return bionic_tls_pad; }

// The JVM has brought libstdc++ along for all to see. A library of the APK must throw by the C++ runtime that it came
// with, or what it throws is caught by nobody.
void* dlopen(const char* path, int flags) {
  static void* (*real)(const char*, int);
  if (!real) real = dlsym(RTLD_NEXT, "dlopen");
  const char* own = getenv("APK_LIBRARIES");
  if (path && own && strncmp(path, own, strlen(own)) == 0) flags |= RTLD_DEEPBIND;
  return real(path, flags);
}
