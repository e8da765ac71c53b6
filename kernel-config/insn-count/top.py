# SPDX-License-Identifier: Apache-2.0
"""Sums the block counts of insn_count.c by function: top.py SYSTEM.MAP COUNTS LINES."""
import bisect
import sys
from collections import Counter

system_map, counts, lines = sys.argv[1], sys.argv[2], int(sys.argv[3])

symbols = []
for line in open(system_map):
    address, kind, name = line.split()[:3]
    if kind in "tTwW" and address.startswith("ffffffff8"):
        symbols.append((int(address, 16), name))
symbols.sort()
starts = [address for address, _ in symbols]

functions = Counter()
totals = ""
for line in open(counts):
    if line.startswith("TOTAL"):
        totals = line.split()[1:]
        continue
    address, count = line.split()
    functions[symbols[bisect.bisect_right(starts, int(address, 16)) - 1][1]] += int(count)

# Loops that wait for a clock: QEMU's TCG offers neither kvm-clock nor the TSC deadline timer, with which
# a guest on KVM skips all of these calibrations.
WAITING = ["setup_boot_APIC_clock", "calibrate_APIC_clock", "quick_pit_calibrate", "pit_calibrate_tsc", "delay_tsc"]
waited = sum(functions.pop(name, 0) for name in WAITING)

values = dict(zip(totals[0::2], map(int, totals[1::2])))
kernel = values["kernel"] + values["early"] - waited
print(f"kernel {kernel / 1e6:.3f} M instructions ({values['early'] / 1e3:.0f} k of them before paging), user {values['user'] / 1e3:.0f} k, "
      f"clock calibration left out {waited / 1e6:.1f} M")
for name, count in functions.most_common(lines):
    print(f"{count / 1e3:10.1f} k {100 * count / kernel:5.1f} %  {name}")
