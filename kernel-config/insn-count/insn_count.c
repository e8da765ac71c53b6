// SPDX-License-Identifier: Apache-2.0
// A plugin for QEMU's TCG (plugin API 1): counts executed guest instructions per translation block, so
// that a kernel's start can be measured to the instruction. Each iteration of a `rep` counts as one.
//
// What is counted lies between two functions of the static init: the block at start= zeroes the counters,
// the one at stop= writes them out. (Without start=, all from the machine's first instruction.)
//
// Output: one line "address count" for each block in the kernel's text, then totals.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The few declarations of qemu-plugin.h that are used; Debian does not package that header.
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0 };
enum { QEMU_PLUGIN_CB_NO_REGS = 0 };
typedef void (*udata_cb)(unsigned vcpu, void *data);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int op, void *counter, uint64_t add);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, udata_cb, int flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum where { USER, EARLY, KERNEL, WHERES };
struct block {
	uint64_t addr;
	uint64_t count;
	struct block *next;
};

static struct block *blocks[WHERES][1 << 16];
static const char *out = "insn-count.txt";
static uint64_t start_mark, stop_mark;
static int stopped;

static enum where where_is(uint64_t addr)
{
	if (addr >= 0xffffffff80000000ull)
		return KERNEL;
	// The kernel before paging runs at its physical address, above the 16 MiB it is linked for;
	// our static programs are linked at 4 MiB.
	return addr >= 0x1000000 && addr < 0x4000000 ? EARLY : USER;
}

static struct block *block_of(uint64_t addr)
{
	enum where w = where_is(addr);
	struct block **head = &blocks[w][((addr >> 1) ^ (addr >> 17)) & 0xffff];

	for (struct block *b = *head; b; b = b->next)
		if (b->addr == addr)
			return b;
	struct block *b = calloc(1, sizeof(*b));
	if (!b)
		abort();
	b->addr = addr;
	b->next = *head;
	return *head = b;
}

static void write_counts(void)
{
	uint64_t total[WHERES] = { 0 };
	FILE *f = fopen(out, "w");

	if (!f) {
		perror(out);
		return;
	}
	for (int w = 0; w < WHERES; w++)
		for (int i = 0; i < 1 << 16; i++)
			for (struct block *b = blocks[w][i]; b; b = b->next) {
				total[w] += b->count;
				if (w == KERNEL && b->count)
					fprintf(f, "%lx %lu\n", b->addr, b->count);
			}
	fprintf(f, "TOTAL kernel %lu early %lu user %lu\n", total[KERNEL], total[EARLY], total[USER]);
	fclose(f);
}

static void on_start(unsigned vcpu, void *data)
{
	for (int w = 0; w < WHERES; w++)
		for (int i = 0; i < 1 << 16; i++)
			for (struct block *b = blocks[w][i]; b; b = b->next)
				b->count = 0;
}

static void on_stop(unsigned vcpu, void *data)
{
	if (!stopped)
		write_counts();
	stopped = 1;
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	uint64_t addr = qemu_plugin_tb_vaddr(tb);

	if (start_mark && addr == start_mark)
		qemu_plugin_register_vcpu_tb_exec_cb(tb, on_start, QEMU_PLUGIN_CB_NO_REGS, NULL);
	if (stop_mark && addr == stop_mark)
		qemu_plugin_register_vcpu_tb_exec_cb(tb, on_stop, QEMU_PLUGIN_CB_NO_REGS, NULL);
	qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block_of(addr)->count,
						 qemu_plugin_tb_n_insns(tb));
}

static void on_exit_(qemu_plugin_id_t id, void *data)
{
	if (!stopped)
		write_counts();
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4))
			out = strdup(argv[i] + 4);
		else if (!strncmp(argv[i], "start=", 6))
			start_mark = strtoull(argv[i] + 6, NULL, 0);
		else if (!strncmp(argv[i], "stop=", 5))
			stop_mark = strtoull(argv[i] + 5, NULL, 0);
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
	qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
	return 0;
}
