//! Volumes: files that outlive sandboxes.

use std::{fs, os::unix::fs::PermissionsExt};

use brig_tests::{
    archive::Image,
    brig::Brig,
    machine::Need,
    suite::{Isolation, in_containers},
    tests,
};
use serde_json::json;

tests! {
    Need::Kvm =>
        a_volume_outlives_its_sandboxes,
        an_image_has_the_volumes_that_it_wants,
        a_copy_has_volumes_of_its_own;
    Need::Containers => a_directory_of_the_host_is_a_containers;
    Need::KvmAndContainers => a_volume_is_for_one_isolation_and_for_one_guest_at_a_time;
    Need::Nothing => what_is_no_volume_is_refused_in_one_line;
}

pub(crate) fn a_volume_outlives_its_sandboxes() {
    let brig = Brig::new();
    let isolation = Isolation::of_this_test().as_str();
    assert_eq!(
        brig.ok(&["volume", "create", "--label", "team=blue", "data"]),
        "data\n"
    );
    // A volume that is empty becomes what the image has there: the mode of /tmp, the files of /etc.
    let script = "stat -c %a /data; ls /etc; echo kept >/data/new; touch /data/mine; chown 7:8 /data/mine";
    let first = brig.ok(&[
        "run",
        "--rm",
        "-v",
        "data:/data",
        "-v",
        "/etc",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let image = brig.ok(&["run", "--rm", "busybox", "sh", "-c", "ls /etc"]);
    assert_eq!(first, format!("755\n{image}"));
    // The one without a name has gone with its sandbox.
    assert_eq!(brig.ok(&["volume", "ls", "-q"]), "data\n");
    let inspected: serde_json::Value =
        serde_json::from_str(&brig.ok(&["volume", "inspect", "data"])).unwrap();
    assert_eq!(inspected[0]["Labels"], json!({ "team": "blue" }));
    assert_eq!(inspected[0]["Brig"]["Isolation"], isolation);

    let seen = brig.ok(&[
        "run",
        "--name",
        "reader",
        "--mount",
        "type=volume,source=data,target=/data,readonly",
        "busybox",
        "sh",
        "-c",
        "cat /data/new; stat -c %u:%g /data/mine; touch /data/other 2>/dev/null || echo read-only",
    ]);
    assert_eq!(seen, "kept\n7:8\nread-only\n");
    let mount = brig.inspect("reader", "/Mounts/0");
    assert_eq!(
        (&mount["Type"], &mount["Name"], &mount["RW"]),
        (&json!("volume"), &json!("data"), &json!(false))
    );
    // It is in use by a sandbox that is there, running or not.
    let message = brig.fails(1, &["volume", "rm", "data"]);
    assert!(message.contains("reader"), "{message}");
    assert_eq!(brig.ok(&["volume", "ls", "-q", "--filter", "dangling=true"]), "");
    brig.ok(&["rm", "reader"]);
    assert_eq!(
        brig.ok(&["volume", "ls", "-q", "--filter", "dangling=true"]),
        "data\n"
    );
    let usage = || -> Vec<String> {
        let table = brig.ok(&["system", "df"]);
        let line = table
            .lines()
            .find(|line| line.starts_with("Local Volumes"))
            .unwrap();
        line.split_whitespace().skip(2).map(ToOwned::to_owned).collect()
    };
    assert_eq!(usage()[..2], ["1", "0"], "one, which nobody has");
    assert_ne!(usage()[2], "0B");
    // Volumes without a name stay without -v, and are pruned.
    brig.ok(&["create", "--name", "nameless", "-v", "/scratch", "busybox"]);
    brig.ok(&["rm", "nameless"]);
    assert_eq!(brig.ok(&["volume", "ls", "-q"]).lines().count(), 2);
    assert!(brig.ok(&["system", "df", "-v"]).contains("data "));
    for filter in ["label=team=blue", "until=24h"] {
        brig.ok(&["volume", "prune", "-f", "--filter", filter]);
    }
    assert_eq!(brig.ok(&["volume", "ls", "-q"]).lines().count(), 2);
    brig.ok(&["volume", "prune", "-f", "--filter", "label!=team"]);
    assert_eq!(brig.ok(&["volume", "ls", "-q"]), "data\n");
    let told = [
        "events",
        "--since",
        "24h",
        "--until",
        "0s",
        "--filter",
        "type=volume",
        "--filter",
        "event=prune",
        "--format",
        "{{.Actor.Attributes.reclaimed}}",
    ];
    let told = brig.ok(&told);
    let reclaimed: Vec<u64> = told.lines().map(|bytes| bytes.parse().unwrap()).collect();
    assert_eq!(reclaimed.len(), 3, "{told}");
    assert_eq!(reclaimed[..2], [0, 0]);
    brig.ok(&["create", "--name", "nameless", "-v", "/scratch", "busybox"]);
    assert_eq!(usage()[..2], ["2", "1"]);
    let pruned = brig.ok(&["system", "prune", "-f", "--volumes"]);
    assert!(pruned.contains("Deleted Volumes:"), "{pruned}");
    assert_eq!(brig.ok(&["volume", "ls", "-q"]), "data\n");
    brig.ok(&["create", "--name", "nameless", "-v", "/scratch", "busybox"]);
    brig.ok(&["rm", "-v", "nameless"]);
    assert_eq!(brig.ok(&["volume", "rm", "data"]), "data\n");
    assert_eq!(brig.ok(&["volume", "ls", "-q"]), "");
    brig.fails(1, &["volume", "rm", "data"]);
    brig.ok(&["volume", "rm", "-f", "data"]);
    brig.assert_nothing_left();
}

pub(crate) fn an_image_has_the_volumes_that_it_wants() {
    let brig = Brig::new();
    // No image has a volume where only the kernel has files.
    let wanted = json!({ "/data/": {}, "/etc": {}, "/proc/sys": {}, "/sys": {} });
    let image = Image::of_busybox("keeper", json!({ "Cmd": ["sh"], "Volumes": wanted }));
    let loaded = brig.run_with_input(&["load"], image.to_oci());
    assert_eq!(loaded.code, 0, "{loaded:?}");
    let volumes = || -> Vec<String> {
        let listed = brig.ok(&["volume", "ls", "-q"]);
        listed.lines().map(ToOwned::to_owned).collect()
    };
    let script = "echo row >/data/row; ls /etc; test -e /proc/sys/kernel/hostname && echo kernel";
    let seen = brig.ok(&["run", "--name", "kept", "keeper", "sh", "-c", script]);
    let files = brig.ok(&["run", "--rm", "busybox", "ls", "/etc"]);
    assert_eq!(seen, format!("{files}kernel\n"));
    let mounts = brig.inspect("kept", "/Mounts");
    let targets: Vec<_> = mounts
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["Destination"].as_str().unwrap())
        .collect();
    assert_eq!(targets, ["/data/", "/etc"]);
    assert_eq!(volumes().len(), 2);
    // They stay when it goes, as with Docker, and are found by their names.
    brig.ok(&["rm", "kept"]);
    assert_eq!(volumes().len(), 2);
    let volume = format!("{}:/data", mounts[0]["Name"].as_str().unwrap());
    let seen = brig.ok(&["run", "--rm", "-v", &volume, "busybox", "cat", "/data/row"]);
    assert_eq!(seen, "row\n");
    brig.ok(&["volume", "prune", "-f"]);
    assert_eq!(volumes().len(), 0);
    // What the user mounts there takes their place, and those of a sandbox that is removed by itself go with it.
    let write = "echo mine >/data/row; echo theirs >/etc/row";
    brig.ok(&["run", "--rm", "-v", "mine:/data", "keeper", "sh", "-c", write]);
    assert_eq!(volumes(), ["mine"]);
    let look = [
        "--tmpfs",
        "/etc",
        "keeper",
        "sh",
        "-c",
        "cat /data/row; ls /etc/row",
    ];
    let seen = brig.run(&[&["run", "--rm", "-v", "mine:/data"], &look[..]].concat());
    assert_eq!((seen.code, seen.stdout.as_str()), (1, "mine\n"));
    brig.ok(&["volume", "rm", "mine"]);
    brig.assert_nothing_left();
}

pub(crate) fn a_directory_of_the_host_is_a_containers() {
    in_containers(|| {
        let brig = Brig::new();
        let host = tempfile::tempdir().unwrap();
        fs::set_permissions(host.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(host.path().join("file"), "from the host\n").unwrap();
        let bind = format!("{}:/data", host.path().display());
        let seen = brig.ok(&[
            "run",
            "--rm",
            "-v",
            &bind,
            "busybox",
            "sh",
            "-c",
            "cat /data/file; echo back >/data/new",
        ]);
        assert_eq!(seen, "from the host\n");
        assert_eq!(fs::read_to_string(host.path().join("new")).unwrap(), "back\n");
        let bind = format!("{}:/etc/one:ro", host.path().join("file").display());
        let seen = brig.ok(&[
            "run",
            "--rm",
            "-v",
            &bind,
            "busybox",
            "sh",
            "-c",
            "cat /etc/one; echo x 2>/dev/null >/etc/one || echo read-only",
        ]);
        assert_eq!(seen, "from the host\nread-only\n");
        brig.assert_nothing_left();
    });
}

/// What has volumes starts from a template too, and a copy of it gets volumes of its own.
fn a_copy_has_volumes_of_its_own() {
    let brig = Brig::new();
    brig.ok(&[
        "run",
        "--rm",
        "-v",
        "old:/old",
        "busybox",
        "sh",
        "-c",
        "echo old >/old/row",
    ]);
    let script = "echo row >/data/row; sync; echo up; sleep 10000";
    let holder = [
        "run",
        "-d",
        "--name",
        "holder",
        "-v",
        "disk:/data",
        "-v",
        "old:/old:ro",
    ];
    brig.ok(&[&holder[..], &["busybox", "sh", "-c", script]].concat());
    brig.wait_for_log("holder", "up");
    assert_eq!(brig.inspect("holder", "/Brig/Origin"), "template");
    let refused = brig.run(&["exec", "holder", "touch", "/old/new"]);
    assert!(refused.stderr.contains("Read-only"), "{refused:?}");
    brig.ok(&["snapshot", "create", "holder", "saved"]);
    brig.ok(&["run", "-d", "--name", "copy", "--snapshot", "saved"]);
    let add = "echo more >>/data/row; sync; cat /old/row /data/row";
    assert_eq!(brig.ok(&["exec", "copy", "sh", "-c", add]), "old\nrow\nmore\n");
    assert_eq!(brig.ok(&["exec", "holder", "cat", "/data/row"]), "row\n");
    let name = brig.inspect("copy", "/Mounts/0/Name");
    let listed = brig.ok(&["volume", "ls", "-q"]);
    assert_eq!(listed.lines().count(), 4, "{listed}");
    // They keep what was written out, as any other.
    brig.ok(&["rm", "-f", "copy"]);
    let volume = format!("{}:/data:ro", name.as_str().unwrap());
    let seen = brig.ok(&["run", "--rm", "-v", &volume, "busybox", "cat", "/data/row"]);
    assert_eq!(seen, "row\nmore\n");
    brig.ok(&["snapshot", "rm", "saved"]);
    brig.ok(&["rm", "-f", "holder"]);
    brig.ok(&["volume", "prune", "-af"]);
    brig.assert_nothing_left();
}

pub(crate) fn a_volume_is_for_one_isolation_and_for_one_guest_at_a_time() {
    let brig = Brig::new();
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "holder",
        "-v",
        "disk:/data",
        "busybox",
        "sh",
        "-c",
        "echo row >/data/row; sync; echo up; sleep 10000",
    ]);
    brig.wait_for_log("holder", "up");
    let message = brig.fails(125, &["run", "--rm", "-v", "disk:/data", "busybox", "true"]);
    assert!(message.contains("in use by holder"), "{message}");
    let message = brig.fails(
        125,
        &[
            "run",
            "--rm",
            "--isolation",
            "container",
            "-v",
            "disk:/data",
            "busybox",
            "true",
        ],
    );
    assert!(message.contains("--isolation vm"), "{message}");
    // Killed at once, and removed: what was written out is there.
    brig.ok(&["rm", "-f", "holder"]);
    assert_eq!(
        brig.ok(&["run", "--rm", "-v", "disk:/data", "busybox", "cat", "/data/row"]),
        "row\n"
    );
    brig.ok(&[
        "run",
        "--rm",
        "--isolation",
        "container",
        "-v",
        "files:/data",
        "busybox",
        "true",
    ]);
    let message = brig.fails(125, &["run", "--rm", "-v", "files:/data", "busybox", "true"]);
    assert!(message.contains("--isolation container"), "{message}");
    brig.ok(&["volume", "prune", "-af"]);
    assert_eq!(brig.ok(&["volume", "ls", "-q"]), "");
    brig.assert_nothing_left();
}

pub(crate) fn what_is_no_volume_is_refused_in_one_line() {
    let brig = Brig::new();
    for (isolation, option, reason) in [
        ("vm", &["-v", "/etc:/data"][..], "--isolation container"),
        (
            "vm",
            &["--mount", "type=bind,source=/etc,target=/data"],
            "--isolation container",
        ),
        (
            "container",
            &["-v", "/no/such/directory:/data"],
            "/no/such/directory",
        ),
        ("vm", &["-v", "data:relative"], "absolute"),
        ("vm", &["-v", "data:/x", "-v", "data:/y"], "one place"),
        ("vm", &["-v", "data:/x", "--tmpfs", "/x/"], "two things"),
        ("vm", &["-v", "data:/proc/sys"], "the kernel's"),
        ("vm", &["-v", "data:/x:z"], "\"z\""),
        ("vm", &["--mount", "type=what,target=/x"], "what"),
        (
            "vm",
            &["--mount", "target=/x,bind-propagation=shared"],
            "bind-propagation",
        ),
        ("vm", &["-v", "a b:/x"], "no name of a volume"),
    ] {
        let mut words = vec!["run", "--isolation", isolation];
        words.extend(option);
        words.extend(["busybox", "true"]);
        let message = brig.fails(125, &words);
        assert!(message.contains(reason), "{option:?}: {message}");
    }
    assert_eq!(brig.ok(&["volume", "ls", "-q"]), "");
    brig.assert_nothing_left();
}
