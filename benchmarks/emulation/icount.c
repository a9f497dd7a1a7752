/* A qemu TCG plugin that counts the guest instructions of a process, and of its phases.
 *
 * Each translated block adds its length when it runs, inline and thus not atomically: the count is exact for one thread.
 * It goes to the file ICOUNT_OUT at the end. A guest marks a phase by an ioctl-like system call that no kernel knows:
 * number MARK, with the phase's number as its argument. The plugin sees it, notes the count, and the kernel answers
 * ENOSYS. So marks cost a system call, and nothing needs to be agreed on but the number.
 *
 * Debian ships no qemu-plugin.h; the few prototypes of its version 1 interface are declared here.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MARK 7777
#define MOST 4096

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t count;
static struct { uint64_t phase, at; } marks[MOST];
static size_t marked;

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, 0 /* add */, &count, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == MARK && marked < MOST) {
        marks[marked].phase = a1;
        marks[marked++].at = count;
    }
}

static void ended(plugin_id id, void *unused)
{
    (void)id, (void)unused;
    const char *path = getenv("ICOUNT_OUT");
    FILE *out = path ? fopen(path, "w") : stderr;
    if (!out)
        return;
    for (size_t i = 0; i < marked; i++)
        fprintf(out, "mark %" PRIu64 " %" PRIu64 "\n", marks[i].phase, marks[i].at);
    fprintf(out, "total %" PRIu64 "\n", count);
    if (path)
        fclose(out);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
