// SPDX-License-Identifier: Apache-2.0
// Keeps a VM with one virtual CPU that never runs, for as long as the machine is up. Returns when it is there.
//
// KVM patches the code of the running kernel (static keys) when the first VM comes and the last one goes, and whenever the
// number of virtual CPUs whose APIC is switched off becomes or leaves zero: with this VM, never again. What that is good for
// is written in tests/rig/run.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(void)
{
	int ready[2], kvm, vm;
	char byte;

	if (pipe(ready) < 0)
		return fail("pipe");
	switch (fork()) {
	case -1:
		return fail("fork");
	case 0:
		break;
	default:
		close(ready[1]);
		return read(ready[0], &byte, 1) == 1 ? 0 : 1;
	}
	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		return fail("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	// The virtual CPU's APIC is KVM's only when the interrupt controller is.
	if (vm < 0 || ioctl(vm, KVM_CREATE_IRQCHIP) < 0 || ioctl(vm, KVM_CREATE_VCPU, 0) < 0)
		return fail("a VM");
	if (write(ready[1], "", 1) != 1)
		return fail("pipe");
	for (;;)
		pause();
}
