/* The guest's init for the boot test: no C library, a few system calls. Tells how many processors there are; when there are two
   disks, copies a block from the first to the second, listens on its vsock port 1025, says hello on port 1024 of the host, and
   echoes what comes on its own port until the end of the stream. Then resets the machine. */
typedef unsigned long u64;
struct sockaddr_vm { unsigned short family, zero; unsigned port, cid; unsigned char flags, pad[3]; };

static long call(long n, long a, long b, long c, long d)
{
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
enum { READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, SOCKET = 41, CONNECT = 42, ACCEPT = 43, SHUTDOWN = 48, BIND = 49, LISTEN = 50,
       FSYNC = 74, MKNOD = 133, SYNC = 162, REBOOT = 169, SCHED_GETAFFINITY = 204 };

static char block[4096] __attribute__((aligned(4096)));

static long length(const char *text) { long n = 0; while (text[n]) n++; return n; }
static void say(const char *text) { call(WRITE, 1, (long)text, length(text), 0); }
static void fail(const char *what) { say("init: failed: "); say(what); say("\n"); call(REBOOT, 0xfee1dead, 672274793, 0x01234567, 0); }

static void copy_block(void)
{
    call(MKNOD, (long)"/dev/vdb", 060600, 254 << 8 | 16, 0);
    long from = call(OPEN, (long)"/dev/vda", 0, 0, 0), to = call(OPEN, (long)"/dev/vdb", 2, 0, 0);
    if (from < 0 || to < 0) fail("open");
    long read_only = call(OPEN, (long)"/dev/vda", 2, 0, 0);
    if (read_only >= 0 && call(WRITE, read_only, (long)block, 4096, 0) >= 0) fail("a read-only disk was written to");
    if (call(READ, from, (long)block, 4096, 0) != 4096) fail("read");
    if (call(WRITE, to, (long)block, 4096, 0) != 4096) fail("write");
    if (call(FSYNC, to, 0, 0, 0) != 0) fail("fsync");
    call(CLOSE, to, 0, 0, 0);
}

static void say_hello(void)
{
    struct sockaddr_vm host = { 40, 0, 1024, 2 };
    long fd = call(SOCKET, 40, 1, 0, 0);
    if (call(CONNECT, fd, (long)&host, sizeof host, 0) != 0) fail("connect");
    call(WRITE, fd, (long)"hello from the guest", 20, 0);
    call(CLOSE, fd, 0, 0, 0);
}

static long listen(void)
{
    struct sockaddr_vm any = { 40, 0, 1025, 0xffffffff };
    long server = call(SOCKET, 40, 1, 0, 0);
    if (call(BIND, server, (long)&any, sizeof any, 0) != 0 || call(LISTEN, server, 1, 0, 0) != 0) fail("listen");
    return server;
}

static void echo(long server)
{
    long fd = call(ACCEPT, server, 0, 0, 0), n;
    if (fd < 0) fail("accept");
    while ((n = call(READ, fd, (long)block, 4096, 0)) > 0)
        if (call(WRITE, fd, (long)block, n, 0) != n) fail("echo");
    call(SHUTDOWN, fd, 1, 0, 0);
    call(CLOSE, fd, 0, 0, 0);
}

void _start(void)
{
    long fd = call(OPEN, (long)"/dev/console", 2, 0, 0);
    if (fd < 0) call(REBOOT, 0xfee1dead, 672274793, 0x01234567, 0);
    while (fd < 1) fd = call(OPEN, (long)"/dev/console", 2, 0, 0);
    u64 mask[16] = { 0 };
    call(SCHED_GETAFFINITY, 0, sizeof mask, (long)mask, 0);
    char count[] = "init: 0 processors\n";
    for (int i = 0; i < 9; i++) count[6] += mask[0] >> i & 1;
    say(count);
    call(MKNOD, (long)"/dev/vda", 060600, 254 << 8, 0);
    if (call(OPEN, (long)"/dev/vda", 0, 0, 0) >= 0) {
        copy_block();
        long server = listen();
        say_hello();
        echo(server);
        say("init: copied\n");
    }
    call(SYNC, 0, 0, 0, 0);
    call(REBOOT, 0xfee1dead, 672274793, 0x01234567, 0);
    for (;;) call(SYNC, 0, 0, 0, 0);
}
