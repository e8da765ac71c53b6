// SPDX-License-Identifier: Apache-2.0
// PID 1 of a counted guest. Built without libc, so that little but the kernel is counted.
// `mark_start` and `mark_stop` are the addresses at which the plugin starts and stops its counters.
//
// What is done between the marks is chosen on the kernel's command line, which passes unknown words
// on to init as its arguments: nothing (the boot itself is counted), `exec`, `fork`, `netns`, …

#include <linux/reboot.h>
#include <sys/syscall.h>

#define NULL ((void *)0)
#define CLONE_VFORK_VM_SIGCHLD (0x4000 | 0x100 | 17)
#define SIGCHLD 17
#define CLONE_NEWNS 0x00020000
#define CLONE_NEWCGROUP 0x02000000
#define CLONE_NEWUTS 0x04000000
#define CLONE_NEWIPC 0x08000000
#define CLONE_NEWUSER 0x10000000
#define CLONE_NEWPID 0x20000000
#define CLONE_NEWNET 0x40000000

static long sys(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	long ret;

	asm volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return ret;
}
#define SYS0(nr) sys(nr, 0, 0, 0, 0, 0, 0)
#define SYS1(nr, a) sys(nr, (long)(a), 0, 0, 0, 0, 0)
#define SYS2(nr, a, b) sys(nr, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS3(nr, a, b, c) sys(nr, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS4(nr, a, b, c, d) sys(nr, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS6(nr, a, b, c, d, e, f) sys(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

// A block of its own, never inlined: its address is what the plugin knows.
__attribute__((noinline, noclone)) void mark_start(void) { asm volatile("nop" ::: "memory"); }
__attribute__((noinline, noclone)) void mark_stop(void) { asm volatile("nop; nop" ::: "memory"); }

static int equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static char *const program[] = { "/bin/busybox", "true", NULL };
static char *const environment[] = { NULL };

static void wait_for(long pid)
{
	SYS4(SYS_wait4, pid, NULL, 0, NULL);
}

static void run_program(void)
{
	long pid = SYS0(SYS_fork);

	if (pid == 0) {
		SYS3(SYS_execve, program[0], program, environment);
		SYS1(SYS_exit_group, 127);
	}
	wait_for(pid);
}

static void fork_exit(void)
{
	long pid = SYS0(SYS_fork);

	if (pid == 0)
		SYS1(SYS_exit_group, 0);
	wait_for(pid);
}

static void in_namespaces(long flags)
{
	long pid = SYS6(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0, 0);

	if (pid == 0)
		SYS1(SYS_exit_group, 0);
	wait_for(pid);
}

static void touch_pages(void)
{
	// 256 pages, one anonymous page fault each.
	char *memory = (char *)SYS6(SYS_mmap, NULL, 1 << 20, 3, 0x22, -1, 0);

	for (long i = 0; i < 1 << 20; i += 4096)
		memory[i] = 1;
}

static void mount_all(void)
{
	SYS6(SYS_mount, "proc", "/proc", "proc", 0, NULL, 0);
	SYS6(SYS_mount, "sys", "/sys", "sysfs", 0, NULL, 0);
	SYS6(SYS_mount, "tmp", "/tmp", "tmpfs", 0, NULL, 0);
	SYS6(SYS_mount, "cgroup", "/sys/fs/cgroup", "cgroup2", 0, NULL, 0);
}

static void work(const char *what)
{
	const long most = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWCGROUP;

	if (equal(what, "exec"))
		run_program();
	else if (equal(what, "fork"))
		fork_exit();
	else if (equal(what, "fault"))
		touch_pages();
	else if (equal(what, "mount"))
		mount_all();
	else if (equal(what, "namespaces"))
		in_namespaces(most);
	else if (equal(what, "netns"))
		in_namespaces(CLONE_NEWNET);
	else if (equal(what, "userns"))
		in_namespaces(CLONE_NEWUSER);
	else if (equal(what, "getppid"))
		SYS0(SYS_getppid);
}

// System V start: argc, argv… are on the stack.
__attribute__((used)) void init_main(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);

	if (argc > 1) {
		// The second run is the one that counts: the first meets cold caches.
		const char *what = argv[argc - 1];

		if (!equal(what, "mount"))
			work(what);
		mark_start();
		work(what);
	}
	mark_stop();
	SYS4(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, NULL);
	for (;;)
		SYS0(SYS_pause);
}

asm(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall init_main\n\thlt\n");
