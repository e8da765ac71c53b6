//! Docker's small habits around a sandbox: names, lists, logs by time, files of ids and labels, completions.

use std::{fs, process::Command};

use brig_tests::{brig::Brig, machine::Need, suite::Isolation, tests};
use serde_json::Value;

tests! {
    Need::Nothing => completions_are_printed_for_each_shell;
    Need::Kvm =>
        a_sandbox_is_renamed_listed_read_and_restarted,
        what_docker_has_long_forms_filters_and_formats_for;
    Need::KvmAndPrograms(&["bash"]) => a_shell_completes_names;
}

fn completions_are_printed_for_each_shell() {
    let brig = Brig::empty();
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef brig"),
        ("fish", "complete -c brig"),
    ] {
        let script = brig.ok(&["completion", shell]);
        assert!(
            script.contains(word) && script.contains("max-image-size"),
            "{shell}: {script}"
        );
    }
    let message = brig.fails(1, &["completion", "tcsh"]);
    assert!(message.contains("bash, zsh, fish"), "{message}");
    let pages = brig.root().join("pages");
    brig.ok(&["manual", pages.to_str().unwrap()]);
    for page in ["brig.1", "brig-run.1", "brig-pull.1", "brig-image-prune.1"] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}: {text}");
    }
}

pub(crate) fn a_sandbox_is_renamed_listed_read_and_restarted() {
    let brig = Brig::new();
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    fs::write(path("labels"), "# of a file\nteam=web\n\nstage=test\n").unwrap();
    let script = "echo one; sleep 2; echo two; exec sleep 1000";
    let id = brig.ok(&[
        "run",
        "-d",
        "--name",
        "old",
        "--label-file",
        &path("labels"),
        "-l",
        "stage=live",
        "--cidfile",
        &path("cid"),
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let id = id.trim();
    assert_eq!(fs::read_to_string(path("cid")).unwrap(), id);
    let message = brig.fails(125, &["run", "--cidfile", &path("cid"), "busybox", "true"]);
    assert!(message.contains("is there already"), "{message}");
    brig.wait_for_log("old", "two");

    brig.ok(&["rename", "old", "new"]);
    brig.fails(1, &["inspect", "--", "old"]);
    assert_eq!(brig.inspect("new", "/Name"), "/new");
    brig.fails(1, &["rename", "new", "new"]);
    brig.fails(1, &["rename", "none", "other"]);

    let listed = |words: &[&str]| {
        let all: Vec<&str> = ["ps", "-q", "--no-trunc"].iter().chain(words).copied().collect();
        brig.ok(&all).trim().to_owned()
    };
    for words in [
        &["--filter", "name=ne"][..],
        &["--filter", "label=stage=live", "--filter", "label=team"],
        &["--filter", "status=running"],
        &["--filter", "ancestor=busybox"],
        &["-l"],
        &["-n", "5"],
        &["--filter", &format!("id={}", &id[..3])],
    ] {
        assert_eq!(listed(words), id, "{words:?}");
    }
    for words in [
        &["--filter", "name=old"][..],
        &["--filter", "label=stage=test"],
        &["--filter", "status=exited"],
        &["--filter", "exited=0"],
        &["-n", "0"],
    ] {
        assert_eq!(listed(words), "", "{words:?}");
    }
    brig.fails(1, &["ps", "--filter", "colour=red"]);
    let shown = brig.ok(&[
        "ps",
        "--format",
        "{{.Names}} {{.Label \"team\"}} {{.State}} {{.Image}}",
    ]);
    assert_eq!(shown, "new web running busybox\n");
    let row: Value = serde_json::from_str(brig.ok(&["ps", "--format", "json"]).trim()).unwrap();
    assert_eq!(row["Labels"], "stage=live,team=web");
    let sized = brig.ok(&["ps", "-s"]);
    assert!(
        sized.lines().next().unwrap().ends_with("SIZE") && sized.contains("(virtual "),
        "{sized}"
    );

    // By the times that the lines themselves have.
    let all = brig.ok(&["logs", "-t", "new"]);
    let times: Vec<&str> = all.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(times.len(), 2, "{all}");
    assert_eq!(brig.ok(&["logs", "--until", times[0], "new"]), "one\n");
    assert_eq!(brig.ok(&["logs", "--since", times[1], "new"]), "two\n");
    assert_eq!(brig.ok(&["logs", "-f", "--until", times[0], "new"]), "one\n");
    assert_eq!(
        brig.ok(&["logs", "--since", "1h", "--tail", "1", "--until", times[0], "new"]),
        "one\n"
    );
    assert_eq!(brig.ok(&["logs", "--until", "24h", "new"]), "");
    brig.fails(1, &["logs", "--since", "soon", "new"]);

    assert_eq!(brig.ok(&["restart", "-t", "0", "new"]), "new\n");
    assert_eq!(brig.inspect("new", "/State/Status"), "running");
    let message = brig.fails(1, &["restart", "none"]);
    assert!(message.contains("no such sandbox"), "{message}");
    brig.ok(&["rm", "-f", "new"]);
    brig.assert_nothing_left();
}

pub(crate) fn what_docker_has_long_forms_filters_and_formats_for() {
    let brig = Brig::new();
    let isolation = Isolation::of_this_test().as_str();
    let id = brig.ok(&[
        "container",
        "run",
        "--rm=false",
        "-d=true",
        "--name",
        "long",
        "--expose",
        "7000-7001",
        "-P",
        "--network",
        "none",
        "-v",
        "data:/data",
        "-l",
        "team=web",
        "busybox",
        "sleep",
        "1000",
    ]);
    let id = id.trim();
    let listed = |words: &[&str]| {
        let all: Vec<&str> = ["container", "ls", "-aq", "--no-trunc"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        brig.ok(&all).trim().to_owned()
    };
    for filter in [
        "volume=data",
        "volume=/data",
        "health=none",
        "expose=7000",
        &format!("isolation={isolation}"),
    ] {
        assert_eq!(listed(&["--filter", filter]), id, "{filter}");
    }
    for filter in ["volume=other", "health=healthy", "expose=7002"] {
        assert_eq!(listed(&["--filter", filter]), "", "{filter}");
    }
    let shown = brig.ok(&[
        "ps",
        "--format",
        "{{.Mounts}} {{.LocalVolumes}} {{.Networks}} {{upper .Names}}",
    ]);
    assert_eq!(shown, "data 1 none LONG\n");
    // The documentation of Docker's `inspect` has this one.
    let format =
        "{{range $port, $host := .NetworkSettings.Ports}}{{$port}}={{(index $host 0).HostPort}};{{end}}";
    let ports = brig.ok(&["inspect", "-f", format, "long"]);
    let expected: Vec<String> = ["7000/tcp", "7001/tcp"]
        .iter()
        .map(|port| format!("{port}={};", brig.port("long", port).port()))
        .collect();
    assert_eq!(ports.trim(), expected.concat());

    // A name may be a sandbox's, an image's or a volume's.
    let described = |words: &[&str]| {
        let all: Vec<&str> = ["inspect"].iter().chain(words).copied().collect();
        let text = brig.ok(&all);
        serde_json::from_str::<Value>(&text).unwrap()[0].clone()
    };
    assert_eq!(described(&["long"])["Id"], id);
    assert_eq!(
        described(&["busybox"])["RepoTags"],
        serde_json::json!(["busybox:latest"])
    );
    assert_eq!(described(&["data"])["Scope"], "local");
    assert_eq!(described(&["--type", "volume", "data"])["Name"], "data");
    let sized = described(&["-s", "long"]);
    assert!(sized["SizeRootFs"].as_u64() > sized["SizeRw"].as_u64(), "{sized}");
    for words in [
        &["inspect", "nothing"][..],
        &["inspect", "--type", "image", "long"],
        &["container", "inspect", "busybox"],
    ] {
        let output = brig.run(words);
        output.assert_clear_failure(1, &words.join(" "));
        assert_eq!(output.stdout, "[]\n");
    }

    let message = brig.fails(125, &["run", "--rm", "--ipc", "host", "busybox", "true"]);
    assert!(message.contains("--ipc cannot be honoured"), "{message}");
    let said = brig.run(&["rm", "-f", "nothing"]);
    assert_eq!(
        (said.code, said.stderr.as_str()),
        (0, "brig: no such sandbox: nothing\n")
    );
    let said = brig.run(&["rmi", "-f", "nothing"]);
    assert_eq!(
        (said.code, said.stderr.as_str()),
        (0, "brig: no such image: nothing\n")
    );
    let host: Value = serde_json::from_str(brig.ok(&["info", "--format", "json"]).trim()).unwrap();
    assert_eq!(
        (&host["Containers"], &host["ContainersRunning"]),
        (&1.into(), &1.into())
    );
    let version = brig.ok(&["version", "--format", "{{.Server.Version}}"]);
    assert_eq!(brig.ok(&["version"]), format!("brig {version}"));
    let types = brig.ok(&["system", "df", "--format", "{{.Type}}={{.TotalCount}}"]);
    let all = brig.ok(&["images", "-q"]).lines().count();
    assert!(types.contains(&format!("Images={all}\nSandboxes=1\n")), "{types}");
    let help = brig.ok(&["help", "container", "prune"]);
    assert!(help.contains("Usage: brig container prune"), "{help}");

    // What runs stays, and what a filter is not true of.
    assert!(!brig.ok(&["container", "prune", "-f"]).contains(id));
    // Dead when the command ends, paused or not.
    brig.ok(&["container", "pause", "long"]);
    brig.ok(&["container", "kill", "long"]);
    assert_eq!(brig.inspect("long", "/State/Status"), "exited");
    assert_eq!(brig.inspect("long", "/State/ExitCode"), 137);
    for filter in ["label=team=db", "label!=team", "until=24h"] {
        let gone = brig.ok(&["container", "prune", "-f", "--filter", filter]);
        assert!(!gone.contains(id), "{filter}: {gone}");
    }
    let gone = brig.ok(&["container", "prune", "-f", "--filter", "label=team=web"]);
    assert!(
        gone.starts_with(&format!("Deleted Containers:\n{id}\n\nTotal reclaimed space: ")),
        "{gone}"
    );
    brig.ok(&["volume", "rm", "data"]);
    brig.assert_nothing_left();
}

fn a_shell_completes_names() {
    let brig = Brig::new();
    brig.ok(&["run", "-d", "--name", "long", "busybox", "sleep", "100000"]);
    let completed = |words: &str| {
        let script = format!(
            "brig() {{ \"$BRIG\" \"$@\"; }}; source <(brig completion bash); COMP_WORDS=({words}); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _brig_names brig \"${{COMP_WORDS[-1]}}\" ''; echo \"${{COMPREPLY[*]}}\""
        );
        let mut command = Command::new("bash");
        let ours = brig.command(&["ps"]);
        let values = ours.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let output = command
            .args(["-c", &script])
            .envs(values)
            .env("BRIG", ours.get_program())
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert_eq!(completed("brig stop lo"), "long\n");
    assert_eq!(completed("brig container exec -it lo"), "long\n");
    assert_eq!(completed("brig run --rm bus"), "busybox:latest\n");
    assert_eq!(completed("brig image rm bus"), "busybox:latest\n");
    assert_eq!(completed("brig stop nothing"), "\n");
    assert!(completed("brig stop --ti").contains("--time"));
    assert_eq!(completed("brig unpa"), "unpause\n");
    brig.ok(&["rm", "-f", "long"]);
    brig.assert_nothing_left();
}
