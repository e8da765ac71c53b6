// SPDX-License-Identifier: Apache-2.0
// Fills all registers with values, makes one thing happen that enters the kernel, and looks whether they are still there;
// and stores by many instructions to pages that are not there yet, and looks whether the memory holds what was stored.
//
//     registers [ROUNDS]
//
// Prints which sets of registers were looked at and how often, and ends with status 1 and a line for each loss. Another
// process with other values competes for the CPU meanwhile.
//
// Compiled with -mgeneral-regs-only, so that vector registers are only touched where it says so.
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define AREA 4096

// What xsave64 stores; fxsave64 stores the first 512 bytes of it.
struct area { unsigned char bytes[AREA]; } __attribute__((aligned(64)));

// rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 to r15, flags.
enum { RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8, R9, R10, R11, R12, R13, R14, R15, FLAGS, REGISTERS };
static const char *const names[] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12",
				     "r13", "r14", "r15", "flags" };

uint64_t general_before[REGISTERS], general_after[REGISTERS], mask;
struct area before, after, clobber;
volatile int ready;
static int use_xsave, losses;
static unsigned long checks;
static struct { const char *name; unsigned offset, size; } parts[16];
static unsigned part_count;

static uint64_t seed = 88172645463325252u;
static uint64_t random64(void)
{
	seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
	return seed;
}

static void fill(void *to, size_t bytes)
{
	unsigned char *at = to;
	for (size_t i = 0; i < bytes; i++) at[i] = random64() >> 32;
}

static void fail(const char *what) { perror(what); exit(2); }

static void lost(const char *event, const char *where, unsigned at, const void *was, const void *is, size_t bytes)
{
	if (losses++ >= 20) return;
	printf("LOST %s: %s, byte %u: ", event, where, at);
	for (size_t i = 0; i < bytes; i++) printf("%02x", ((const unsigned char *)was)[i]);
	printf(" became ");
	for (size_t i = 0; i < bytes; i++) printf("%02x", ((const unsigned char *)is)[i]);
	putchar('\n');
}

// Which registers programs may use here (Intel SDM volume 1, 13 and 14.3).
static void find_parts(void)
{
	unsigned a, b, c, d;
	parts[part_count++] = (typeof(parts[0])){ "x87 control", 0, 5 };
	parts[part_count++] = (typeof(parts[0])){ "mxcsr", 24, 4 };
	parts[part_count++] = (typeof(parts[0])){ "x87", 32, 128 };
	parts[part_count++] = (typeof(parts[0])){ "xmm", 160, 256 };
	mask = 3;
	__cpuid(1, a, b, c, d);
	if (!(c & bit_OSXSAVE)) return;
	use_xsave = 1;
	uint32_t low, high;
	asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	static const char *const more[] = { [2] = "ymm", [5] = "k", [6] = "zmm", [7] = "zmm16-31" };
	for (unsigned bit = 2; bit < 8; bit++) {
		if (!(low >> bit & 1) || !more[bit]) continue;
		__cpuid_count(0xd, bit, a, b, c, d);
		if (b + a > AREA) continue;
		parts[part_count++] = (typeof(parts[0])){ more[bit], b, a };
		mask |= 1u << bit;
	}
}

// Random values in all registers, without exceptions that wait to happen.
static void randomize(struct area *area)
{
	memset(area->bytes, 0, AREA);
	for (unsigned i = 0; i < part_count; i++) fill(area->bytes + parts[i].offset, parts[i].size);
	for (unsigned i = 0; i < 8; i++) memset(area->bytes + 32 + 16 * i + 10, 0, 6);
	uint16_t control = 0x7f | (random64() & 0xf00), status = (random64() & 7) << 11;
	uint32_t mxcsr = 0x1f80 | (random64() & 0xe03f);
	memcpy(area->bytes, &control, 2);
	memcpy(area->bytes + 2, &status, 2);
	area->bytes[4] = random64(); // which of the x87 registers are in use
	memcpy(area->bytes + 24, &mxcsr, 4);
	memcpy(area->bytes + 512, &mask, 8);
}

#define LOAD(area) \
	"mov mask(%rip), %rax\n mov mask+4(%rip), %edx\n cmpl $0, have_xsave(%rip)\n je 7f\n xrstor64 " area "(%rip)\n jmp 8f\n" \
	"7: fxrstor64 " area "(%rip)\n8:\n"
#define SAVE(area) \
	"mov mask(%rip), %rax\n mov mask+4(%rip), %edx\n cmpl $0, have_xsave(%rip)\n je 7f\n xsave64 " area "(%rip)\n jmp 8f\n" \
	"7: fxsave64 " area "(%rip)\n8:\n"
#define EACH(X, to) \
	X(rax, 0, to) X(rbx, 8, to) X(rcx, 16, to) X(rdx, 24, to) X(rsi, 32, to) X(rdi, 40, to) X(rbp, 48, to) X(r8, 56, to) \
	X(r9, 64, to) X(r10, 72, to) X(r11, 80, to) X(r12, 88, to) X(r13, 96, to) X(r14, 104, to) X(r15, 112, to)
#define PUT(name, at, to) "mov " to "+" #at "(%rip), %" #name "\n"
#define GET(name, at, to) "mov %" #name ", " to "+" #at "(%rip)\n"

// A function that loads all registers, carries `code` out, and saves them.
#define EVENT(name, code) \
	void name(void); \
	asm(".text\n" #name ":\n push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n" \
	    LOAD("before") EACH(PUT, "general_before") "pushq general_before+120(%rip)\n popfq\n" code \
	    "\n pushfq\n popq general_after+120(%rip)\n" EACH(GET, "general_after") "cld\n" SAVE("after") \
	    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

int have_xsave;

EVENT(system_call, "syscall")
EVENT(read_a_page, "mov (%rdi), %al")
EVENT(write_a_page, "movb $1, (%rdi)")
EVENT(wait_for_signal, "1: cmpl $0, ready(%rip)\n je 1b")
EVENT(breakpoint, "int3")
EVENT(invalid_opcode, "ud2")
EVENT(identify, "cpuid")
EVENT(save_all, "cmpl $0, have_xsave(%rip)\n je 5f\n xsave64 (%rdi)\n jmp 6f\n5: fxsave64 (%rdi)\n6:")

// Loads other values; called from signal handlers and by the competitor.
void spoil(void);
asm(".text\nspoil:\n push %rdx\n" LOAD("clobber") "pop %rdx\n ret\n");

// What may change: rax always, rcx and r11 by a system call, rbx, rcx and rdx by cpuid.
static void look(const char *event, unsigned changed)
{
	checks++;
	for (unsigned i = 0; i < REGISTERS; i++)
		if (!(changed >> i & 1) && general_before[i] != general_after[i])
			lost(event, names[i], 0, &general_before[i], &general_after[i], 8);
	for (unsigned i = 0; i < part_count; i++)
		for (unsigned at = 0; at < parts[i].size; at++) {
			const unsigned char *was = before.bytes + parts[i].offset + at, *is = after.bytes + parts[i].offset + at;
			if (*was == *is) continue;
			lost(event, parts[i].name, at, was, is, parts[i].size - at < 16 ? parts[i].size - at : 16);
			break;
		}
}

static void prepare(void)
{
	randomize(&before);
	for (unsigned i = 0; i < FLAGS; i++) general_before[i] = random64();
	// CF, PF, AF, ZF, SF, DF, OF.
	general_before[FLAGS] = 0x202 | (random64() & 0xcd5);
}

static void happen(const char *event, void (*function)(void), unsigned changed)
{
	function();
	look(event, changed);
}

static void *map(size_t bytes, int protection)
{
	void *at = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED) fail("mmap");
	return at;
}

static void handle(int number, siginfo_t *info, void *context)
{
	ucontext_t *user = context;
	spoil();
	if (number == SIGSEGV && mprotect((void *)((uintptr_t)info->si_addr & -PAGE), PAGE, PROT_READ | PROT_WRITE)) _exit(3);
	if (number == SIGILL) user->uc_mcontext.gregs[REG_RIP] += 2;
	ready = 1;
}

#define BIT(n) (1u << (n))

static void registers_round(int file, unsigned char *shared)
{
	prepare(), general_before[RAX] = SYS_getppid;
	happen("getppid", system_call, BIT(RAX) | BIT(RCX) | BIT(R11));
	prepare(), general_before[RAX] = SYS_sched_yield;
	happen("sched_yield", system_call, BIT(RAX) | BIT(RCX) | BIT(R11));

	unsigned char *pages = map(2 * PAGE, PROT_READ | PROT_WRITE);
	prepare(), general_before[RDI] = (uintptr_t)pages;
	happen("read of a new page", read_a_page, BIT(RAX));
	prepare(), general_before[RDI] = (uintptr_t)pages;
	happen("write to the page of zeros", write_a_page, 0);
	prepare(), general_before[RDI] = (uintptr_t)pages + PAGE;
	happen("write to a new page", write_a_page, 0);
	munmap(pages, 2 * PAGE);

	unsigned char *of_file = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (of_file == MAP_FAILED) fail("mmap of a file");
	prepare(), general_before[RDI] = (uintptr_t)of_file;
	happen("read of a file's page", read_a_page, BIT(RAX));
	prepare(), general_before[RDI] = (uintptr_t)of_file;
	happen("write to a file's page", write_a_page, 0);
	munmap(of_file, PAGE);

	// The competitor has a copy of it since the fork.
	prepare(), general_before[RDI] = (uintptr_t)shared;
	happen("write to a page that is shared since a fork", write_a_page, 0);

	pages = map(PAGE, PROT_NONE);
	prepare(), general_before[RDI] = (uintptr_t)pages;
	happen("fault with a handler", write_a_page, 0);
	munmap(pages, PAGE);

	prepare(), general_before[RAX] = SYS_kill, general_before[RDI] = getpid(), general_before[RSI] = SIGUSR1;
	happen("signal to itself", system_call, BIT(RAX) | BIT(RCX) | BIT(R11));
	prepare(), happen("breakpoint", breakpoint, 0);
	prepare(), happen("invalid opcode", invalid_opcode, 0);
	prepare(), happen("cpuid", identify, BIT(RAX) | BIT(RBX) | BIT(RCX) | BIT(RDX));

	prepare();
	ready = 0;
	struct itimerval soon = { .it_value.tv_usec = 1000 + random64() % 20000 };
	if (setitimer(ITIMER_REAL, &soon, NULL)) fail("setitimer");
	// The flags are those of the comparison.
	happen("timer signal", wait_for_signal, BIT(FLAGS));
}

// Stores of 16 bytes from `from` to `to`, each by another instruction.
#define STORE(name, code) \
	static void name(void *to, const void *from, size_t bytes) \
	{ \
		asm volatile("1:\n" code "\n add $16, %0\n add $16, %1\n sub $16, %2\n jnz 1b\n" \
			     : "+r"(to), "+r"(from), "+r"(bytes) : : "rax", "rdx", "memory", "cc"); \
	}
STORE(by_movups, "movups (%1), %%xmm1\n movups %%xmm1, (%0)")
STORE(by_movdqu, "movdqu (%1), %%xmm2\n movdqu %%xmm2, (%0)")
STORE(by_movaps, "movaps (%1), %%xmm9\n movaps %%xmm9, (%0)")
STORE(by_movdqa, "movdqa (%1), %%xmm10\n movdqa %%xmm10, (%0)")
STORE(by_movntdq, "movdqu (%1), %%xmm3\n movntdq %%xmm3, (%0)")
STORE(by_movntps, "movups (%1), %%xmm4\n movntps %%xmm4, (%0)")
STORE(by_movnti, "mov (%1), %%rax\n mov 8(%1), %%rdx\n movnti %%rax, (%0)\n movnti %%rdx, 8(%0)")
STORE(by_halves, "movlps (%1), %%xmm5\n movhps 8(%1), %%xmm5\n movlps %%xmm5, (%0)\n movhps %%xmm5, 8(%0)")
STORE(by_movq, "movq (%1), %%xmm6\n movq 8(%1), %%xmm7\n movq %%xmm6, (%0)\n movq %%xmm7, 8(%0)")
STORE(by_mmx, "movq (%1), %%mm0\n movq 8(%1), %%mm1\n movq %%mm0, (%0)\n movntq %%mm1, 8(%0)\n emms")
STORE(by_mov, "mov (%1), %%rax\n mov %%rax, (%0)\n mov 8(%1), %%eax\n mov %%eax, 8(%0)\n mov 12(%1), %%ax\n mov %%ax, 12(%0)\n"
      "mov 14(%1), %%al\n mov %%al, 14(%0)\n mov 15(%1), %%ah\n mov %%ah, 15(%0)")
STORE(by_or, "mov (%1), %%rax\n or %%rax, (%0)\n mov 8(%1), %%rax\n add %%rax, 8(%0)")
STORE(by_xadd, "mov (%1), %%rax\n lock xadd %%rax, (%0)\n mov 8(%1), %%rax\n xchg %%rax, 8(%0)")
STORE(by_cmpxchg, "xor %%eax, %%eax\n mov (%1), %%rdx\n lock cmpxchg %%rdx, (%0)\n xor %%eax, %%eax\n mov 8(%1), %%rdx\n"
      "cmpxchg %%rdx, 8(%0)")
STORE(by_push_pop, "pushq (%1)\n popq (%0)\n pushq 8(%1)\n popq 8(%0)")
STORE(by_x87, "fildll (%1)\n fistpll (%0)\n fildll 8(%1)\n fistpll 8(%0)")

static void by_movsb(void *to, const void *from, size_t bytes)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}
static void by_movsq(void *to, const void *from, size_t bytes)
{
	bytes /= 8;
	asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}
static void by_movsb_down(void *to, const void *from, size_t bytes)
{
	to = (char *)to + bytes - 1, from = (const char *)from + bytes - 1;
	asm volatile("std\n rep movsb\n cld" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static const struct { const char *name; void (*store)(void *, const void *, size_t); int aligned; } stores[] = {
	{ "movups", by_movups, 0 }, { "movdqu", by_movdqu, 0 }, { "movaps", by_movaps, 1 }, { "movdqa", by_movdqa, 1 },
	{ "movntdq", by_movntdq, 1 }, { "movntps", by_movntps, 1 }, { "movnti", by_movnti, 0 }, { "movlps", by_halves, 0 },
	{ "movq", by_movq, 0 }, { "movq of mmx", by_mmx, 0 }, { "mov", by_mov, 0 }, { "or", by_or, 0 }, { "xadd", by_xadd, 0 },
	{ "cmpxchg", by_cmpxchg, 0 }, { "push and pop", by_push_pop, 0 }, { "fildll", by_x87, 0 }, { "rep movsb", by_movsb, 0 },
	{ "rep movsq", by_movsq, 0 }, { "rep movsb downwards", by_movsb_down, 0 },
};

// Takes page tables and gives them back, so that the next pages of data have been some.
static void use_page_tables(void)
{
	enum { TABLES = 8 };
	static const size_t apart = 2 << 20;
	unsigned char *wide = mmap(NULL, TABLES * apart, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (wide == MAP_FAILED) fail("mmap");
	for (unsigned i = 0; i < TABLES; i++) wide[i * apart] = 1;
	munmap(wide, TABLES * apart);
}

// What the dynamic loader does on the stack when a function is called first.
static void save_round(void)
{
	use_page_tables();
	unsigned char *page = map(2 * PAGE, PROT_READ | PROT_WRITE);
	prepare(), general_before[RDI] = (uintptr_t)page + PAGE - 256, general_before[RAX] = mask, general_before[RDX] = 0;
	happen("save to new pages", save_all, BIT(FLAGS));
	for (unsigned at = 160; at < 416; at += 16)
		if (memcmp(page + PAGE - 256 + at, before.bytes + at, 16)) {
			lost("save to new pages", "xmm", at - 160, before.bytes + at, page + PAGE - 256 + at, 16);
			break;
		}
	munmap(page, 2 * PAGE);
}

static void memory_round(int file, const unsigned char *content)
{
	for (unsigned i = 0; i < sizeof stores / sizeof *stores; i++) {
		enum { BYTES = 3 * PAGE };
		if (i % 4 == 0) use_page_tables();
		unsigned char *to = map(BYTES + PAGE, PROT_READ | PROT_WRITE);
		// Its pages are in the page cache, and not in this process's tables yet.
		unsigned char *from = mmap(NULL, BYTES + PAGE, PROT_READ, MAP_PRIVATE, file, 0);
		if (from == MAP_FAILED) fail("mmap of a file");
		unsigned shift = stores[i].aligned ? 16 * (random64() % 16) : random64() % 256;
		stores[i].store(to + shift, from + shift, BYTES);
		checks++;
		for (unsigned at = shift; at < shift + BYTES; at++)
			if (to[at] != content[at]) {
				lost("store to new pages", stores[i].name, at, content + at, to + at, 16);
				break;
			}
		for (unsigned at = 0; at < BYTES + PAGE; at++)
			if ((at < shift || at >= shift + BYTES) && to[at]) {
				lost("store beside its place", stores[i].name, at, "", to + at, 1);
				break;
			}
		munmap(to, BYTES + PAGE), munmap(from, BYTES + PAGE);
	}
}

int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 10;
	find_parts();
	have_xsave = use_xsave;
	randomize(&clobber);
	setvbuf(stdout, NULL, _IOLBF, 0);

	struct sigaction action = { .sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t stack = { .ss_sp = map(1 << 16, PROT_READ | PROT_WRITE), .ss_size = 1 << 16 };
	if (sigaltstack(&stack, NULL)) fail("sigaltstack");
	static const int numbers[] = { SIGUSR1, SIGSEGV, SIGALRM, SIGTRAP, SIGILL };
	for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
		if (sigaction(numbers[i], &action, NULL)) fail("sigaction");

	enum { CONTENT = 4 * PAGE };
	unsigned char *content = map(CONTENT, PROT_READ | PROT_WRITE);
	fill(content, CONTENT);
	char path[] = "/tmp/registers-XXXXXX";
	int file = mkstemp(path);
	if (file < 0) fail(path);
	if (unlink(path) || write(file, content, CONTENT) != CONTENT) fail(path);

	unsigned char *shared = map(rounds * PAGE, PROT_READ | PROT_WRITE);
	memset(shared, 1, rounds * PAGE);
	pid_t competitor = fork();
	if (competitor < 0) fail("fork");
	if (competitor == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;) spoil(), syscall(SYS_sched_yield);
	}
	for (unsigned long round = 0; round < rounds && losses < 20; round++) {
		registers_round(file, shared + round * PAGE);
		memory_round(file, content);
		save_round();
	}
	kill(competitor, SIGKILL);
	waitpid(competitor, NULL, 0);

	printf("registers: %lu checks of general,", checks);
	for (unsigned i = 0; i < part_count; i++) printf(" %s%s", parts[i].name, i + 1 < part_count ? "," : "");
	printf(": %d lost\n", losses);
	return losses != 0;
}
