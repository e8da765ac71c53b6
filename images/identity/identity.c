// SPDX-License-Identifier: Apache-2.0
// Prints one line with what must be another in each sandbox: random bytes, a UUID, what the kernel gave the program at its
// exec, an address, the boot's id, a TCP sequence number and port. Then answers each byte of its input with the time of
// day in nanoseconds, until the input ends.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) { perror(what); exit(1); }

static void put_hex(const char *name, const unsigned char *bytes, size_t count)
{
	printf("%s=", name);
	for (size_t i = 0; i < count; i++) printf("%02x", bytes[i]);
	putchar(' ');
}

static void put_file(const char *name, const char *path)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (length < 0) fail(path);
	text[strcspn(text, "\n")] = 0;
	printf("%s=%s ", name, text);
	close(fd);
}

// The sequence number of a first SYN, seen by a raw socket (raw(7)), and the port that the kernel chose for it.
static void put_tcp(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(4242) };
	int raw = socket(AF_INET, SOCK_RAW, IPPROTO_TCP), server = socket(AF_INET, SOCK_STREAM, 0);
	int client = socket(AF_INET, SOCK_STREAM, 0);
	if (raw < 0 || server < 0 || client < 0) fail("socket");
	if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 1)) fail("listen");
	if (connect(client, (struct sockaddr *)&address, sizeof address)) fail("connect");
	unsigned char packet[256];
	if (read(raw, packet, sizeof packet) < 40) fail("raw socket");
	unsigned char *tcp = packet + (packet[0] & 15) * 4;
	uint32_t sequence;
	uint16_t port;
	memcpy(&port, tcp, sizeof port);
	memcpy(&sequence, tcp + 4, sizeof sequence);
	printf("sequence=%u port=%u\n", ntohl(sequence), ntohs(port));
}

int main(void)
{
	unsigned char bytes[32];
	if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) fail("getrandom");
	put_hex("random", bytes, sizeof bytes);
	put_hex("at_random", (unsigned char *)getauxval(AT_RANDOM), 16);
	printf("stack=%p ", (void *)bytes);
	put_file("uuid", "/proc/sys/kernel/random/uuid");
	put_file("boot_id", "/proc/sys/kernel/random/boot_id");
	put_tcp();
	fflush(stdout);
	char byte;
	while (read(0, &byte, 1) == 1) {
		struct timespec now;
		clock_gettime(CLOCK_REALTIME, &now);
		printf("%llu\n", now.tv_sec * 1000000000ull + now.tv_nsec);
		fflush(stdout);
	}
	return 0;
}
