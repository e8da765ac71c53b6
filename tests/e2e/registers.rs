//! What a guest's programs have in registers, across everything that enters its kernel.

use brig_tests::{brig::Brig, machine::Need, tests};

tests! {
    Need::Kvm => no_register_and_no_store_is_lost_in_the_guest_s_kernel;
}

/// Each is some 60 events and stores, most of them page faults, signals and system calls.
const ROUNDS: &str = "4";

fn no_register_and_no_store_is_lost_in_the_guest_s_kernel() {
    let brig = Brig::new();
    brig.load("registers");
    let output = brig.run(&["run", "--rm", "registers", ROUNDS]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output.stdout.contains("xmm") && output.stdout.ends_with(": 0 lost\n"),
        "{output:?}"
    );
    brig.assert_nothing_left();
}
