/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile guest: a kernel that is booted in place of Linux and drives the machine wrongly. Its command line names one misdeed
   (misdeed=NAME, the table at the end). Afterwards it drives every device as it should be driven, and says "done NAME" on the serial
   port when all of them work; "failed: WHY" otherwise. tests/e2e/hostile_guest.rs knows what is to come of each.

   It must be short in instructions: on an emulated KVM each is interpreted. Interrupts are off but where a misdeed says otherwise. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned u32;
typedef unsigned long u64;

#define barrier() __asm__ volatile("mfence" ::: "memory")

/* The machine (vmm/src/layout.rs): the test gives it a read-only disk of 16 sectors full of 'r', a writable one of 16, a socket device,
   an entropy device and a balloon, in this order, and 64 MiB of memory. */
enum { READ_ONLY, WRITABLE, VSOCK, ENTROPY, BALLOON, SLOTS };
enum { RAM_END = 64 << 20, SECTORS = 16, QUEUE_SIZE = 64, SERIAL = 0x3f8 };
#define MMIO 0xd0000000ul
static const int queues_of[SLOTS] = { 1, 1, 3, 1, 3 };

/* Memory that is nobody's: buffers. */
#define BUFFER ((volatile u8 *)0x1000000)
#define BUFFERS 0x1000000ul

/* --- ports, registers, faults --- */

static u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" :: "a"(v), "Nd"(port)); }

static void say(const char *text) { while (*text) outb(SERIAL, *text++); }

static void number(u64 value)
{
	char text[17], *at = text + 16;
	*at = 0;
	do *--at = "0123456789abcdef"[value & 15]; while (value >>= 4);
	say(at);
}

static void reset(void)
{
	for (;;) outb(0x64, 0xfe);
}

static void fail(const char *why, u64 value)
{
	say("failed: "); say(why); say(" "); number(value); say("\n");
	reset();
}

/* Where an exception goes on: set by `attempt`; 0 where none is expected. */
u64 recover;
volatile u32 faulted;
volatile u64 interrupts;

static volatile u32 *reg(int slot, u32 offset) { return (volatile u32 *)(MMIO + slot * 0x1000ul + offset); }

/* Runs one instruction that may fault; `faulted` says whether it did. */
#define attempt(instruction, ...) do { \
	faulted = 0; \
	__asm__ volatile("leaq 1f(%%rip), %%r11\n movq %%r11, recover(%%rip)\n" instruction "\n1: movq $0, recover(%%rip)" \
		__VA_ARGS__); \
} while (0)

__asm__(
	".globl start\n"
	"start:\n"
	"	leaq stack_end(%rip), %rsp\n"
	"	movq %rsi, %rdi\n"
	"	call main\n"
	"exception_with_code:\n"
	"	addq $8, %rsp\n"
	"exception:\n"
	"	pushq %rax\n"
	"	movq recover(%rip), %rax\n"
	"	testq %rax, %rax\n"
	"	jz unexpected\n"
	"	movq %rax, 8(%rsp)\n"
	"	popq %rax\n"
	"	movl $1, faulted(%rip)\n"
	"	iretq\n"
	"unexpected:\n"
	"	movq 8(%rsp), %rdi\n"
	"	call unexpected_exception\n"
	/* A local APIC interrupt: counted, and acknowledged. */
	"interrupt:\n"
	"	pushq %rax\n"
	"	incq interrupts(%rip)\n"
	"	movl $0xfee000b0, %eax\n"
	"	movl $0, (%rax)\n"
	"	popq %rax\n"
	"	iretq\n"
	"nmi:\n"
	"	incq interrupts(%rip)\n"
	"	iretq\n"
	".bss\n"
	".balign 16\n"
	".skip 16384\n"
	"stack_end:\n"
	".text\n");

void unexpected_exception(u64 rip) { fail("an exception at", rip); }

struct gate { u16 low, selector; u8 ist, type; u16 middle; u32 high, zero; };
static struct gate idt[256];
struct __attribute__((packed)) pseudo_descriptor { u16 limit; u64 base; };
extern char exception[], exception_with_code[], interrupt[], nmi[];

static void set_gate(int vector, char *handler)
{
	u64 at = (u64)handler;
	idt[vector] = (struct gate){ (u16)at, 0x10, 0, 0x8e, (u16)(at >> 16), (u32)(at >> 32), 0 };
}

static void load_idt(u16 limit)
{
	struct pseudo_descriptor to = { limit, (u64)idt };
	__asm__ volatile("lidt %0" :: "m"(to));
}

/* The fourth GiB, where the devices are, as it is; and a window of 2 MiB at 1 GiB onto any address. */
static u64 device_directory[512] __attribute__((aligned(4096))), window_directory[512] __attribute__((aligned(4096)));
#define WINDOW ((volatile u32 *)0x40000000ul)

static void reload_tables(void)
{
	u64 tables;
	__asm__ volatile("movq %%cr3, %0\n movq %0, %%cr3" : "=r"(tables) :: "memory");
}

static void map(void)
{
	u64 *pointers = (u64 *)0xa000;
	for (u64 i = 0; i < 512; i++) device_directory[i] = ((3ul << 30) + (i << 21)) | 0x93;
	pointers[3] = (u64)device_directory | 3;
	pointers[1] = (u64)window_directory | 3;
	reload_tables();
}

/* --- a driver --- */

enum { DRIVER_FEATURES = 0x20, DRIVER_FEATURES_SEL = 0x24, QUEUE_SEL = 0x30, QUEUE_NUM = 0x38, QUEUE_READY = 0x44, QUEUE_NOTIFY = 0x50,
       INTERRUPT_STATUS = 0x60, INTERRUPT_ACK = 0x64, STATUS = 0x70, DESC = 0x80, DRIVER = 0x90, DEVICE = 0xa0 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { NEEDS_RESET = 64 };

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct queue {
	struct descriptor table[256];
	struct { u16 flags, index, ring[256], event; } available __attribute__((aligned(4096)));
	struct { u16 flags, index; struct { u32 id, length; } ring[256]; u16 event; } used __attribute__((aligned(4096)));
} __attribute__((aligned(4096)));
static volatile struct queue queues[SLOTS][3];

static void zero(volatile void *at, u64 bytes)
{
	for (volatile u64 *word = at; bytes; bytes -= 8) *word++ = 0;
}

/* Resets a device and negotiates, up to where queues are set. */
static void begin(int slot)
{
	*reg(slot, STATUS) = 0;
	*reg(slot, STATUS) = 1;
	*reg(slot, STATUS) = 3;
	*reg(slot, DRIVER_FEATURES_SEL) = 0;
	*reg(slot, DRIVER_FEATURES) = 1 << 28;
	*reg(slot, DRIVER_FEATURES_SEL) = 1;
	*reg(slot, DRIVER_FEATURES) = 1;
	*reg(slot, STATUS) = 11;
	for (int q = 0; q < queues_of[slot]; q++) {
		volatile struct queue *queue = &queues[slot][q];
		queue->available.flags = queue->available.index = 0;
		queue->used.flags = queue->used.index = 0;
	}
}

static void place(int slot, int q, u64 table, u64 available, u64 used)
{
	*reg(slot, QUEUE_SEL) = q;
	*reg(slot, QUEUE_NUM) = QUEUE_SIZE < 8 || slot != VSOCK || q != 2 ? QUEUE_SIZE : 8;
	*reg(slot, DESC) = table;
	*reg(slot, DESC + 4) = table >> 32;
	*reg(slot, DRIVER) = available;
	*reg(slot, DRIVER + 4) = available >> 32;
	*reg(slot, DEVICE) = used;
	*reg(slot, DEVICE + 4) = used >> 32;
	*reg(slot, QUEUE_READY) = 1;
}

static void place_well(int slot, int q)
{
	volatile struct queue *queue = &queues[slot][q];
	place(slot, q, (u64)queue->table, (u64)&queue->available, (u64)&queue->used);
}

static u32 go(int slot)
{
	*reg(slot, STATUS) = 15;
	return *reg(slot, STATUS);
}

static void set_up(int slot)
{
	begin(slot);
	for (int q = 0; q < queues_of[slot]; q++) place_well(slot, q);
	u32 status = go(slot);
	if (status != 15) fail("a device is not ready, status", status);
}

static void describe(int slot, int q, int at, u64 address, u32 length, u16 flags, u16 next)
{
	volatile struct descriptor *descriptor = &queues[slot][q].table[at];
	descriptor->address = address;
	descriptor->length = length;
	descriptor->flags = flags;
	descriptor->next = next;
}

static void offer(int slot, int q, u16 head)
{
	volatile struct queue *queue = &queues[slot][q];
	queue->available.ring[queue->available.index % QUEUE_SIZE] = head;
	barrier();
	queue->available.index++;
	barrier();
}

static void notify(int slot, int q) { *reg(slot, QUEUE_NOTIFY) = q; }

/* Waits until the device has used as many chains as were offered. Reading a register takes the same time on every host, more or
   less: this is no busy loop. */
static int all_used_within(int slot, int q, u32 reads)
{
	volatile struct queue *queue = &queues[slot][q];
	while (queue->used.index != queue->available.index) {
		if (!reads--) return 0;
		(void)*reg(slot, INTERRUPT_STATUS);
	}
	return 1;
}

/* Gives the device a moment for what it may never answer. */
static void poke(int slot, int q)
{
	notify(slot, q);
	all_used_within(slot, q, 300);
}

static void await(int slot, int q, const char *what)
{
	notify(slot, q);
	if (!all_used_within(slot, q, 10000000)) fail(what, slot);
}

/* A request to a disk: header, data of `bytes`, status, from descriptor 0 on; the status. */
static u8 request(int slot, u32 kind, u64 sector, u32 bytes, u16 data_flags)
{
	volatile u64 *header = (volatile u64 *)BUFFERS;
	header[0] = kind;
	header[1] = sector;
	BUFFER[64] = 0xaa;
	describe(slot, 0, 0, BUFFERS, 16, NEXT, 1);
	describe(slot, 0, 1, BUFFERS + 4096, bytes, NEXT | data_flags, 2);
	describe(slot, 0, 2, BUFFERS + 64, 1, WRITE, 0);
	offer(slot, 0, 0);
	await(slot, 0, "no answer of disk");
	return BUFFER[64];
}

enum { IN = 0, OUT = 1, FLUSH = 4, DISCARD = 11, WRITE_ZEROES = 13 };

/* struct virtio_vsock_hdr, packed into words. */
static void packet(u64 at, u32 source, u32 destination, u32 length, u16 operation)
{
	volatile u32 *word = (volatile u32 *)at;
	word[0] = 3, word[1] = 0, word[2] = 2, word[3] = 0;
	word[4] = source, word[5] = destination, word[6] = length, word[7] = 1 | (u32)operation << 16;
	word[8] = 0, word[9] = 65536, word[10] = 0;
}

enum { RX, TX };
enum { REQUEST = 1, RST = 3, RW = 5, CREDIT_REQUEST = 7 };

enum { REPORTS = 2 };

/* Tells the balloon that memory is free, and waits until it has taken note. */
static void report(u64 address, u32 length)
{
	describe(BALLOON, REPORTS, 0, address, length, WRITE, 0);
	offer(BALLOON, REPORTS, 0);
	await(BALLOON, REPORTS, "the balloon stands still");
}

/* Every device, driven well. */
static void all_work(void)
{
	set_up(READ_ONLY);
	BUFFER[4096] = 0;
	u8 status = request(READ_ONLY, IN, 1, 512, WRITE);
	if (status || BUFFER[4096] != 'r' || BUFFER[4096 + 511] != 'r') fail("the read-only disk", status);
	set_up(WRITABLE);
	BUFFER[4096] = 'w', BUFFER[4096 + 511] = 'W';
	status = request(WRITABLE, OUT, 3, 512, 0);
	BUFFER[4096] = BUFFER[4096 + 511] = 0;
	status |= request(WRITABLE, IN, 3, 512, WRITE);
	if (status || BUFFER[4096] != 'w' || BUFFER[4096 + 511] != 'W') fail("the writable disk", status);
	set_up(ENTROPY);
	zero(BUFFER, 64);
	describe(ENTROPY, 0, 0, BUFFERS, 64, WRITE, 0);
	offer(ENTROPY, 0, 0);
	await(ENTROPY, 0, "no answer of the entropy device");
	volatile u64 *random = (volatile u64 *)BUFFERS;
	if (!(random[0] | random[1]) || queues[ENTROPY][0].used.ring[0].length != 64) fail("no entropy", random[0]);
	set_up(BALLOON);
	BUFFER[0] = BUFFER[4096] = BUFFER[8191] = BUFFER[8192] = 'f';
	report(BUFFERS + 4096, 4096);
	if (BUFFER[0] != 'f' || BUFFER[4096] || BUFFER[8191] || BUFFER[8192] != 'f') fail("a free page is still there", BUFFER[4096]);
	set_up(VSOCK);
	describe(VSOCK, RX, 0, BUFFERS + 4096, 4096, WRITE, 0);
	offer(VSOCK, RX, 0);
	notify(VSOCK, RX);
	packet(BUFFERS, 77, 4, 0, REQUEST);
	describe(VSOCK, TX, 0, BUFFERS, 44, 0, 0);
	offer(VSOCK, TX, 0);
	await(VSOCK, TX, "no answer of the socket device");
	await(VSOCK, RX, "no refusal of the socket device");
	volatile u32 *answer = (volatile u32 *)(BUFFERS + 4096);
	if (answer[4] != 4 || answer[5] != 77 || answer[7] >> 16 != RST) fail("a wrong refusal", answer[7]);
}

/* --- the misdeeds --- */

static void descriptor_loop(void)
{
	for (int slot = 0; slot < SLOTS; slot++)
		for (int q = 0; q < queues_of[slot] && q < 2; q++)
			for (int flags = NEXT; flags <= (NEXT | WRITE); flags += WRITE) {
				set_up(slot);
				/* To itself; around; and around through the whole table. */
				describe(slot, q, 0, BUFFERS, 64, flags, 0);
				offer(slot, q, 0);
				describe(slot, q, 1, BUFFERS, 64, flags, 2);
				describe(slot, q, 2, BUFFERS, 64, flags, 1);
				offer(slot, q, 1);
				for (int at = 4; at < QUEUE_SIZE; at++) describe(slot, q, at, BUFFERS, 64, flags, at + 1 < QUEUE_SIZE ? at + 1 : 4);
				offer(slot, q, 4);
				poke(slot, q);
			}
}

static const u64 bad_addresses[] = { RAM_END, RAM_END - 1, MMIO, 0xfee00000, 0xfffffffffffff000, 0xffffffffffffffff, 1ul << 46 };
enum { BAD_ADDRESSES = sizeof bad_addresses / sizeof *bad_addresses };

static void addresses_out_of_range(void)
{
	for (int slot = 0; slot < SLOTS; slot++)
		for (int q = 0; q < queues_of[slot] && q < 2; q++)
			for (int i = 0; i < BAD_ADDRESSES; i++) {
				set_up(slot);
				describe(slot, q, 0, BUFFERS, 16, NEXT, 1);
				describe(slot, q, 1, bad_addresses[i], 4096, NEXT | WRITE, 2);
				describe(slot, q, 2, bad_addresses[i], 1, WRITE, 0);
				describe(slot, q, 3, bad_addresses[i], 44, 0, 0);
				for (int head = 0; head < 4; head++) offer(slot, q, head);
				poke(slot, q);
			}
}

static void zero_and_huge_lengths(void)
{
	static const u32 lengths[] = { 0, 1, 43, 45, 0x7fffffff, 0xffffffff, RAM_END };
	for (int slot = 0; slot < SLOTS; slot++)
		for (int q = 0; q < queues_of[slot] && q < 2; q++)
			for (u32 i = 0; i < sizeof lengths / sizeof *lengths; i++) {
				set_up(slot);
				packet(BUFFERS, 77, 4, lengths[i], RW);
				/* Header, data and status of every length, together and alone. */
				describe(slot, q, 0, BUFFERS, 16, NEXT, 1);
				describe(slot, q, 1, BUFFERS + 4096, lengths[i], NEXT | WRITE, 2);
				describe(slot, q, 2, BUFFERS + 64, 1, WRITE, 0);
				describe(slot, q, 3, BUFFERS, lengths[i], NEXT, 2);
				describe(slot, q, 4, BUFFERS, lengths[i], 0, 0);
				describe(slot, q, 5, BUFFERS, lengths[i], WRITE, 0);
				describe(slot, q, 6, BUFFERS, 16, NEXT, 7);
				describe(slot, q, 7, BUFFERS, lengths[i], WRITE, 0);
				offer(slot, q, 0), offer(slot, q, 3), offer(slot, q, 4), offer(slot, q, 5), offer(slot, q, 6);
				poke(slot, q);
			}
}

static void indirect_tables_in_indirect_tables(void)
{
	volatile struct descriptor *table = (volatile struct descriptor *)(BUFFERS + 0x10000);
	static const u32 lengths[] = { 0, 8, 16, 32, 4096, 16 * 65535, 16 * 65536, 0xfffffff0 };
	for (int slot = 0; slot < SLOTS; slot++)
		for (int q = 0; q < queues_of[slot] && q < 2; q++)
			for (u32 i = 0; i < sizeof lengths / sizeof *lengths; i++) {
				set_up(slot);
				/* A table that holds itself, one that holds a loop, one that goes on after an indirect descriptor. */
				table[0] = (struct descriptor){ (u64)table, lengths[i], INDIRECT | NEXT, 1 };
				table[1] = (struct descriptor){ (u64)table, 16, INDIRECT, 0 };
				table[2] = (struct descriptor){ BUFFERS, 16, NEXT, 2 };
				describe(slot, q, 0, (u64)table, lengths[i], INDIRECT, 0);
				describe(slot, q, 1, (u64)(table + 2), lengths[i], INDIRECT | NEXT, 0);
				describe(slot, q, 2, (u64)(table + 2), lengths[i], INDIRECT | WRITE, 0);
				describe(slot, q, 3, bad_addresses[i % BAD_ADDRESSES], lengths[i], INDIRECT, 0);
				for (int head = 0; head < 4; head++) offer(slot, q, head);
				poke(slot, q);
			}
}

/* CVE-2026-5747. Nothing of it has an effect: the very next request is served from where the queue was. */
static void queue_changed_while_active(void)
{
	set_up(WRITABLE);
	for (int round = 0; round < SECTORS; round++) {
		*reg(WRITABLE, QUEUE_SEL) = 0;
		*reg(WRITABLE, QUEUE_NUM) = 1u << (round % 16);
		*reg(WRITABLE, QUEUE_NUM) = 0xffffffff;
		for (u32 offset = DESC; offset <= DEVICE + 4; offset += 4) *reg(WRITABLE, offset) = 0xfffff000;
		*reg(WRITABLE, QUEUE_READY) = 0;
		*reg(WRITABLE, DRIVER_FEATURES) = 0xffffffff;
		*reg(WRITABLE, STATUS) = 1;
		*reg(WRITABLE, STATUS) = 11;
		if (*reg(WRITABLE, STATUS) != 15 || *reg(WRITABLE, QUEUE_READY) != 1) fail("it was changed", *reg(WRITABLE, STATUS));
		BUFFER[4096] = 'a' + round;
		u8 status = request(WRITABLE, OUT, round, 512, 0);
		BUFFER[4096] = 0;
		status |= request(WRITABLE, IN, round, 512, WRITE);
		if (status || BUFFER[4096] != 'a' + round) fail("a request went wrong, status", status);
	}
}

/* CVE-2026-45782. Once a reset is done, nothing is written to memory that the driver has taken back. */
static void reset_during_io(void)
{
	volatile u64 *header = (volatile u64 *)BUFFERS;
	volatile u64 *data = (volatile u64 *)(BUFFERS + 0x100000);
	enum { BYTES = SECTORS * 512, WORDS = BYTES / 8 };
	for (int round = 0; round < 40; round++) {
		set_up(READ_ONLY);
		header[0] = IN, header[1] = 0;
		for (int i = 0; i < QUEUE_SIZE / 4; i++) {
			describe(READ_ONLY, 0, 3 * i, BUFFERS, 16, NEXT, 3 * i + 1);
			describe(READ_ONLY, 0, 3 * i + 1, (u64)data, BYTES, NEXT | WRITE, 3 * i + 2);
			describe(READ_ONLY, 0, 3 * i + 2, BUFFERS + 64, 1, WRITE, 0);
			offer(READ_ONLY, 0, 3 * i);
		}
		notify(READ_ONLY, 0);
		for (int wait = 0; wait < round; wait++) (void)*reg(READ_ONLY, INTERRUPT_STATUS);
		*reg(READ_ONLY, STATUS) = 0;
		u16 used = queues[READ_ONLY][0].used.index;
		for (int i = 0; i < WORDS; i += 64) data[i] = 0x5a5a5a5a5a5a5a5a;
		for (int wait = 0; wait < 50; wait++) (void)*reg(READ_ONLY, INTERRUPT_STATUS);
		for (int i = 0; i < WORDS; i += 64)
			if (data[i] != 0x5a5a5a5a5a5a5a5a) fail("memory was written after a reset, round", round);
		if (queues[READ_ONLY][0].used.index != used) fail("a ring was written after a reset, round", round);
	}
}

/* Where a ring reaches past the end of memory the device asks for a reset, and is not started. */
static void rings_over_unmapped_memory(void)
{
	for (int slot = 0; slot < SLOTS; slot++)
		for (int ring = 0; ring < 3; ring++)
			for (int i = 0; i < BAD_ADDRESSES; i++) {
				begin(slot);
				for (int q = 0; q < queues_of[slot]; q++) place_well(slot, q);
				u64 bad = bad_addresses[i] & ~15ul;
				volatile struct queue *queue = &queues[slot][0];
				*reg(slot, QUEUE_SEL) = 0;
				*reg(slot, QUEUE_READY) = 0;
				place(slot, 0, ring == 0 ? bad : (u64)queue->table, ring == 1 ? bad : (u64)&queue->available,
				      ring == 2 ? bad : (u64)&queue->used);
				u32 status = go(slot);
				if (!(status & NEEDS_RESET)) fail("a device was started, status", status);
				poke(slot, 0);
			}
}

static void rings_over_each_other(void)
{
	for (int slot = 0; slot < SLOTS; slot++)
		for (int how = 0; how < 4; how++) {
			begin(slot);
			for (int q = 0; q < queues_of[slot]; q++) {
				volatile struct queue *queue = &queues[slot][q];
				u64 table = (u64)queue->table, available = (u64)&queue->available, used = (u64)&queue->used;
				if (how == 0) used = table;
				if (how == 1) used = available;
				if (how == 2) used = available = table;
				/* All at the first byte of memory, which no driver can mean. */
				if (how == 3) used = available = table = 0;
				place(slot, q, table, available, used);
			}
			go(slot);
			for (int q = 0; q < queues_of[slot]; q++) {
				for (int at = 0; at < 4; at++) describe(slot, q, at, BUFFERS, 64, at & WRITE, 0);
				for (int times = 0; times < 70; times++) offer(slot, q, times % 4);
				notify(slot, q);
			}
			poke(slot, 0);
		}
}

/* More chains than the queue holds. Before a reset the device waits for a better word; a reset is never waited for. */
static void available_index_that_makes_no_sense(void)
{
	for (int slot = 0; slot < SLOTS; slot++)
		for (int q = 0; q < queues_of[slot]; q++)
			for (u32 by = QUEUE_SIZE + 1; by < 0x10000; by *= 3) {
				set_up(slot);
				/* So that there is something to say. */
				if (slot == VSOCK) {
					packet(BUFFERS, 77, 4, 0, REQUEST);
					describe(VSOCK, TX, 0, BUFFERS, 44, 0, 0);
					offer(VSOCK, TX, 0);
					notify(VSOCK, TX);
				}
				queues[slot][q].available.index += by;
				barrier();
				poke(slot, q);
			}
}

static void heads_outside_of_the_table(void)
{
	static const u16 heads[] = { QUEUE_SIZE, 256, 0x7fff, 0xffff };
	for (int slot = 0; slot < SLOTS; slot++)
		for (int q = 0; q < queues_of[slot] && q < 2; q++)
			for (u32 i = 0; i < sizeof heads / sizeof *heads; i++) {
				set_up(slot);
				offer(slot, q, heads[i]);
				poke(slot, q);
				/* And a next descriptor outside. */
				set_up(slot);
				describe(slot, q, 0, BUFFERS, 16, NEXT, heads[i]);
				offer(slot, q, 0);
				poke(slot, q);
			}
}

/* CVE-2026-24834. The host looks at the file, too. */
static void writes_to_a_read_only_disk(void)
{
	static const u32 kinds[] = { OUT, DISCARD, WRITE_ZEROES, 14, 0xffffffff };
	set_up(READ_ONLY);
	for (u32 i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		zero(BUFFER + 4096, 512);
		((volatile u32 *)(BUFFERS + 4096))[2] = SECTORS;
		u32 bytes = kinds[i] == OUT ? 512 : 16;
		if (!request(READ_ONLY, kinds[i], 0, bytes, 0)) fail("it was obeyed, kind", kinds[i]);
	}
	/* Features that a writable disk has change nothing. */
	*reg(READ_ONLY, STATUS) = 0;
	*reg(READ_ONLY, STATUS) = 3;
	*reg(READ_ONLY, DRIVER_FEATURES_SEL) = 0;
	*reg(READ_ONLY, DRIVER_FEATURES) = 1 << 13 | 1 << 14;
	*reg(READ_ONLY, DRIVER_FEATURES_SEL) = 1;
	*reg(READ_ONLY, DRIVER_FEATURES) = 1;
	*reg(READ_ONLY, STATUS) = 11;
	if (*reg(READ_ONLY, STATUS) & 8) fail("features were taken that were not offered", 0);
}

static void sectors_out_of_range(void)
{
	static const u64 sectors[] = { SECTORS, SECTORS - 1, 1ul << 32, 1ul << 54, 1ul << 55, 0x7fffffffffffffff, 0xffffffffffffffff };
	for (int slot = READ_ONLY; slot <= WRITABLE; slot++) {
		set_up(slot);
		for (u32 i = 0; i < sizeof sectors / sizeof *sectors; i++) {
			if (!request(slot, IN, sectors[i], 1024, WRITE)) fail("it was read", sectors[i]);
			if (!request(slot, OUT, sectors[i], 1024, 0)) fail("it was written", sectors[i]);
			((volatile u64 *)(BUFFERS + 4096))[0] = sectors[i];
			((volatile u64 *)(BUFFERS + 4096))[1] = 0xffffffff;
			if (!request(slot, DISCARD, 0, 16, 0)) fail("it was discarded", sectors[i]);
		}
	}
}

/* CVE-2019-18960: a packet that is spread over descriptors, shorter than its header says, or than a header is. */
static void socket_packets_of_wrong_lengths(void)
{
	static const u32 lengths[] = { 0, 1, 43, 44, 4096, 0x10000, 0x7fffffff, 0xffffffff };
	for (u32 i = 0; i < sizeof lengths / sizeof *lengths; i++)
		for (u16 operation = 0; operation < 9; operation++) {
			set_up(VSOCK);
			packet(BUFFERS, 77, 4, lengths[i], operation);
			describe(VSOCK, TX, 0, BUFFERS, 44, 0, 0);
			describe(VSOCK, TX, 1, BUFFERS, 43, 0, 0);
			describe(VSOCK, TX, 2, BUFFERS, 1, NEXT, 3);
			describe(VSOCK, TX, 3, BUFFERS + 1, 43, NEXT, 4);
			describe(VSOCK, TX, 4, BUFFERS + 4096, 100, 0, 0);
			describe(VSOCK, TX, 5, BUFFERS, 44, NEXT, 6);
			describe(VSOCK, TX, 6, BUFFERS + 4096, 4096, WRITE, 0);
			describe(VSOCK, TX, 7, BUFFERS, 44, WRITE, 0);
			describe(VSOCK, RX, 0, BUFFERS + 8192, lengths[i] < 44 ? lengths[i] : 44, WRITE, 0);
			describe(VSOCK, RX, 1, BUFFERS + 8192, 4096, 0, 0);
			offer(VSOCK, RX, 0), offer(VSOCK, RX, 1);
			offer(VSOCK, TX, 0), offer(VSOCK, TX, 1), offer(VSOCK, TX, 2), offer(VSOCK, TX, 5), offer(VSOCK, TX, 7);
			notify(VSOCK, RX);
			poke(VSOCK, TX);
		}
}

/* CVE-2020-16843: more to say than there is room for, until there is. Nothing of it waits for the receive queue, and what can be said
   is said when that comes back. */
static void socket_flood(void)
{
	set_up(VSOCK);
	for (int i = 0; i < QUEUE_SIZE; i++) {
		packet(BUFFERS + 64 * i, 1000 + i, i, 0, i & 1 ? REQUEST : CREDIT_REQUEST);
		describe(VSOCK, TX, i, BUFFERS + 64 * i, 44, 0, 0);
	}
	for (int round = 0; round < 100; round++) {
		for (int i = 0; i < QUEUE_SIZE; i++) offer(VSOCK, TX, i);
		await(VSOCK, TX, "the transmit queue stands still");
	}
	for (int i = 0; i < QUEUE_SIZE; i++) describe(VSOCK, RX, i, BUFFERS + 0x10000 + 4096 * i, 4096, WRITE, 0);
	for (int round = 0; round < 4; round++) {
		for (int i = 0; i < QUEUE_SIZE; i++) offer(VSOCK, RX, i);
		await(VSOCK, RX, "the receive queue stands still");
	}
}

/* CVE-2020-27174: as much as a chain can ask for. */
static void entropy_without_end(void)
{
	set_up(ENTROPY);
	for (int i = 0; i < QUEUE_SIZE; i++) describe(ENTROPY, 0, i, BUFFERS, 32 << 20, WRITE | (i + 1 < QUEUE_SIZE ? NEXT : 0), i + 1);
	for (int round = 0; round < 50; round++) {
		for (int i = 0; i < QUEUE_SIZE; i++) offer(ENTROPY, 0, i);
		await(ENTROPY, 0, "the entropy device stands still");
	}
	for (int i = 0; i < QUEUE_SIZE; i++)
		if (queues[ENTROPY][0].used.ring[i].length > 65536) fail("too much entropy", queues[ENTROPY][0].used.ring[i].length);
}

/* Reports of free memory that is none: pieces of pages, what is not memory, what the device itself uses; and all of it, without end. */
static void reports_of_anything(void)
{
	static const struct { u64 address; u32 length; } bad[] = {
		{ BUFFERS, 4095 }, { BUFFERS, 4097 }, { BUFFERS + 1, 4096 }, { BUFFERS, 0 }, { RAM_END - 4096, 8192 }, { RAM_END, 4096 },
		{ BUFFERS, 0xfffff000 }, { MMIO, 4096 }, { 0xfffffffffffff000, 4096 }, { 0xfffffffffffff000, 8192 },
	};
	volatile u8 *last = (volatile u8 *)RAM_END - 1;
	set_up(BALLOON);
	BUFFER[0] = *last = 'u';
	for (u32 i = 0; i < sizeof bad / sizeof *bad; i++) report(bad[i].address, bad[i].length);
	if (BUFFER[0] != 'u' || *last != 'u') fail("memory that is used is gone", BUFFER[0]);
	for (int i = 0; i < QUEUE_SIZE; i++)
		describe(BALLOON, REPORTS, i, BUFFERS, RAM_END - BUFFERS, WRITE | (i + 1 < QUEUE_SIZE ? NEXT : 0), i + 1);
	for (int round = 0; round < 50; round++) {
		BUFFER[round * 8192] = 'u';
		for (int i = 0; i < QUEUE_SIZE; i++) offer(BALLOON, REPORTS, i);
		await(BALLOON, REPORTS, "the balloon stands still");
	}
	if (BUFFER[49 * 8192]) fail("a free page is still there", BUFFER[49 * 8192]);
	/* The rings of the report. What the device finds there then makes no sense. */
	describe(BALLOON, REPORTS, 0, (u64)&queues[BALLOON][REPORTS], sizeof queues[BALLOON][REPORTS], WRITE, 0);
	offer(BALLOON, REPORTS, 0);
	poke(BALLOON, REPORTS);
}

/* CVE-2020-27174: what a serial port in loopback mode receives is what was sent, and nobody reads it. */
static void serial_loopback(void)
{
	outb(SERIAL + 4, 0x10);
	for (int i = 0; i < 60000; i++) outb(SERIAL, i);
	int read = 0;
	while (read < 60000 && inb(SERIAL + 5) & 1) (void)inb(SERIAL), read++;
	outb(SERIAL + 4, 0);
	if (!read || read > 64) fail("bytes in the serial port:", read);
}

static void serial_flood(void)
{
	for (int i = 0; i < 60000; i++) outb(SERIAL, i % 700 ? 'x' : '\n');
	outb(SERIAL, '\n');
}

static void quiet_serial_port(void)
{
	outb(SERIAL + 3, 3);
	outb(SERIAL + 4, 0);
	outb(SERIAL + 1, 0);
	while (inb(SERIAL + 5) & 1) (void)inb(SERIAL);
}

static void port_scan(void)
{
	for (u32 port = 0; port < 0x10000; port++) (void)inb(port);
	for (u32 port = 0; port < 0x10000; port++)
		if (port != 0x64) outb(port, 0xff);
	/* Other widths where there is something, and next to it. */
	for (u32 port = 0; port < 0x500; port++) {
		u32 word;
		__asm__ volatile("inw %w1, %w0" : "=a"(word) : "Nd"((u16)port));
		__asm__ volatile("inl %w1, %0" : "=a"(word) : "Nd"((u16)port));
		if (port < 0x60 || port > 0x64) {
			__asm__ volatile("outw %w0, %w1" :: "a"(0xfefe), "Nd"((u16)port));
			__asm__ volatile("outl %0, %w1" :: "a"(0xfefefefe), "Nd"((u16)port));
		}
	}
	quiet_serial_port();
}

static void register_scan(void)
{
	/* Each page of the hole for devices. */
	for (u64 page = MMIO; page < 0x100000000ul; page += 4096) (void)*(volatile u32 *)page;
	/* Each register of each device, in each width, and past the last device. */
	for (u64 at = MMIO; at < MMIO + (SLOTS + 1) * 0x1000ul; at += (at & 0xfff) < 0x200 ? 1 : 61) {
		(void)*(volatile u8 *)at;
		(void)*(volatile u16 *)at;
		(void)*(volatile u32 *)at;
		(void)*(volatile u64 *)at;
		*(volatile u8 *)at = 0xff;
		*(volatile u16 *)at = 0xffff;
		*(volatile u32 *)at = 0xffffffff;
		*(volatile u64 *)at = 0x0101010101010101;
	}
	/* Addresses without anything, as high as every processor has them: more is a fault of the page tables on some. */
	for (int bit = 26; bit < 36; bit++) {
		window_directory[0] = 1ul << bit | 0x83;
		reload_tables();
		(void)WINDOW[0];
		WINDOW[1] = 0xffffffff;
	}
}

static void msr_scan(void)
{
	static const u32 ranges[][2] = { { 0, 0x1000 }, { 0x40000000, 0x40000200 }, { 0x4b564d00, 0x4b564d10 }, { 0xc0000000, 0xc0000200 },
	                                 { 0xc0010000, 0xc0010200 }, { 0xc0011000, 0xc0011040 }, { 0xffffff00, 0xffffffff } };
	u32 readable = 0;
	for (u32 i = 0; i < sizeof ranges / sizeof *ranges; i++)
		for (u32 msr = ranges[i][0]; msr < ranges[i][1]; msr++) {
			u32 low = 0, high = 0;
			attempt("rdmsr", : "=a"(low), "=d"(high) : "c"(msr) : "r11", "memory");
			if (faulted) low = high = 0;
			readable += !faulted;
			/* What was there, and nonsense; but not to what this code itself stands on, nor to where KVM would write. */
			attempt("wrmsr", :: "a"(low), "d"(high), "c"(msr) : "r11", "memory");
			if ((msr & ~0x1fu) == 0xc0000080 || msr == 0x1b) continue;
			attempt("wrmsr", :: "a"(0xfffffffe), "d"(0xffffffff), "c"(msr) : "r11", "memory");
			attempt("wrmsr", :: "a"(low), "d"(high), "c"(msr) : "r11", "memory");
		}
	if (!readable) fail("no register can be read", 0);
}

/* Interrupts of devices that nobody acknowledges, notifications without end, and interrupts to itself, non-maskable ones too. */
static void interrupt_storm(void)
{
	set_up(ENTROPY);
	describe(ENTROPY, 0, 0, BUFFERS, 16, WRITE, 0);
	for (int i = 0; i < 2000; i++) {
		offer(ENTROPY, 0, 0);
		await(ENTROPY, 0, "the entropy device stands still");
	}
	for (int slot = 0; slot < SLOTS; slot++)
		for (u32 i = 0; i < 4000; i++) *reg(slot, QUEUE_NOTIFY) = i & 0x80 ? i * 0x1000193 : i & 3;
	volatile u32 *apic = (volatile u32 *)0xfee00000ul;
	/* Not through the two 8259s, whose vectors are those of exceptions as nobody has set them. */
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	set_gate(0x40, interrupt);
	set_gate(2, nmi);
	apic[0xf0 / 4] = 0x1ff;
	__asm__ volatile("sti");
	for (int i = 0; i < 5000; i++) {
		/* To itself: fixed, vector 0x40; then one that cannot be masked. */
		apic[0x300 / 4] = 0x44040;
		if (i % 64 == 0) apic[0x300 / 4] = 0x40400;
	}
	/* Vectors that are reserved, to nobody and to everybody else. */
	for (u32 vector = 0; vector < 16; vector++) apic[0x300 / 4] = 0x44000 | vector, apic[0x300 / 4] = 0xc4000 | vector;
	__asm__ volatile("nop\n cli");
	if (!interrupts) fail("no interrupt has come", 0);
}

/* What a KVM that interprets kernel code lacks is carried out by brig-vmm, with operands that are where nothing is. */
static void odd_instructions_with_bad_operands(void)
{
	static const u64 addresses[] = { 0x40200000, 0x8000000000, 0x800000000000, 0xffffffffffffffff, 0xfffffffffffffff8 };
	for (u32 i = 0; i < sizeof addresses / sizeof *addresses; i++) {
		u64 result = 0, at = addresses[i];
		attempt("popcntq (%1), %0", : "+r"(result) : "r"(at) : "r11", "memory");
		attempt("lzcntq (%1), %0", : "+r"(result) : "r"(at) : "r11", "memory");
		attempt("tzcntq (%1), %0", : "+r"(result) : "r"(at) : "r11", "memory");
	}
	attempt("ud2", ::: "r11", "memory");
	if (!faulted) fail("ud2 did not fault", 0);
}

/* No KVM carries such an instruction out on a register of a device. */
static void odd_instruction_on_a_device(void)
{
	u64 result = 0;
	attempt("popcntq (%1), %0", : "+r"(result) : "r"(MMIO) : "r11", "memory");
}

static void status_that_makes_no_sense(void)
{
	for (int slot = 0; slot < SLOTS; slot++) {
		for (u32 status = 0; status < 256; status++) {
			*reg(slot, STATUS) = status;
			*reg(slot, STATUS) = 255 - status;
			*reg(slot, STATUS) = status << 24 | status << 8 | 4;
			*reg(slot, QUEUE_SEL) = status * 0x1010101;
			*reg(slot, QUEUE_NUM) = status * 0x1010101;
			*reg(slot, QUEUE_READY) = status;
			notify(slot, 0);
		}
	}
}

static const char *name;

static void done(void)
{
	for (;;) {
		/* More than once: the host may lose a line of a guest that prints too much. */
		say("done "); say(name); say("\n");
		for (int wait = 0; wait < 20000; wait++) (void)*reg(0, INTERRUPT_STATUS);
	}
}

static void halt_with_interrupts_off(void)
{
	all_work();
	say("done "); say(name); say("\n");
	for (;;) __asm__ volatile("cli\n hlt");
}

static void triple_fault(void)
{
	load_idt(0);
	__asm__ volatile("ud2");
}

static void jump_into_a_device(void) { ((void (*)(void))MMIO)(); }

/* Its own memory, all of it, where the boot tables were and the code is. Nothing that it does then is defined. */
static void itself_overwritten(void)
{
	load_idt(0);
	for (volatile u64 *at = (volatile u64 *)0; at < (volatile u64 *)RAM_END; at++) *at = 0xffffffffffffffff;
}

static const struct { const char *name; void (*commit)(void); } misdeeds[] = {
#define M(name) { #name, name }
	M(descriptor_loop), M(addresses_out_of_range), M(zero_and_huge_lengths), M(indirect_tables_in_indirect_tables),
	M(queue_changed_while_active), M(reset_during_io), M(rings_over_unmapped_memory), M(rings_over_each_other),
	M(available_index_that_makes_no_sense), M(heads_outside_of_the_table), M(writes_to_a_read_only_disk), M(sectors_out_of_range),
	M(socket_packets_of_wrong_lengths), M(socket_flood), M(entropy_without_end), M(reports_of_anything), M(serial_loopback),
	M(serial_flood), M(port_scan),
	M(register_scan), M(msr_scan), M(interrupt_storm), M(odd_instructions_with_bad_operands), M(odd_instruction_on_a_device),
	M(status_that_makes_no_sense), M(halt_with_interrupts_off), M(triple_fault), M(jump_into_a_device), M(itself_overwritten),
	M(reset),
};

/* The word of the command line after "misdeed=", up to its end. */
static const char *asked_for(const u8 *parameters)
{
	const char *line = (const char *)(u64)*(const u32 *)(parameters + 0x228), *key = "misdeed=";
	for (; *line; line++) {
		int i = 0;
		while (key[i] && line[i] == key[i]) i++;
		if (!key[i]) return line + i;
	}
	fail("no misdeed is named", 0);
	return 0;
}

void main(const u8 *parameters)
{
	for (int vector = 0; vector < 32; vector++)
		set_gate(vector, 1u << vector & 0x60227d00 ? exception_with_code : exception);
	load_idt(sizeof idt - 1);
	map();
	const char *asked = asked_for(parameters);
	for (u32 i = 0; i < sizeof misdeeds / sizeof *misdeeds; i++) {
		name = misdeeds[i].name;
		int at = 0;
		while (name[at] && name[at] == asked[at]) at++;
		if (name[at] || asked[at] > ' ') continue;
		misdeeds[i].commit();
		all_work();
		done();
	}
	fail("there is no such misdeed", 0);
}
