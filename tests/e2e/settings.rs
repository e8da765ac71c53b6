//! `brig config`: what new sandboxes get when `run` does not say.

use brig_tests::{brig::Brig, machine::Need, tests};

tests! {
    Need::Nothing => settings_are_kept_and_count_for_new_sandboxes;
}

fn settings_are_kept_and_count_for_new_sandboxes() {
    let brig = Brig::empty();
    let without_variable = |words: &[&str]| {
        let mut command = brig.command(words);
        command.env_remove("BRIG_ISOLATION");
        brig_tests::brig::finish(command.spawn().unwrap())
    };
    let get = || without_variable(&["config", "get", "isolation"]).stdout;
    assert_eq!(get(), "vm\n");
    brig.ok(&["config", "set", "isolation", "container"]);
    assert_eq!(get(), "container\n");
    // The variable that the tests set goes over it.
    assert_eq!(brig.ok(&["config", "get", "isolation"]), "vm\n");
    let list = brig.ok(&["config", "list"]);
    assert!(
        list.lines().any(|line| line.ends_with("$BRIG_ISOLATION")),
        "{list}"
    );
    let line = brig.fails(1, &["config", "set", "isolation", "jail"]);
    assert!(line.contains("\"jail\""), "{line}");
    assert_eq!(brig.run(&["config", "get", "colour"]).code, 1);
    // An option goes over both, and what is wrong with a setting is told before anything is run.
    std::fs::write(brig.root().join("config.json"), "{\"isolation\": \"jail\"}").unwrap();
    let output = without_variable(&["run", "--rm", "no-such-image"]);
    output.assert_clear_failure(125, "run");
    assert!(output.stderr.contains("config.json"), "{}", output.stderr);
}
