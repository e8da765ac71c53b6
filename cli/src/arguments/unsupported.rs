//! Options of Docker's `run` and `update`, and commands of Docker's, that brig does not have, and why: whoever writes one is told
//! more than that it is not known.

const NETWORK: &str = "a sandbox has no network but its loopback and the ports that -p publishes";
const NAMESPACES: &str = "each sandbox has namespaces of its own";
const CPUS: &str = "brig has no such limit: use --cpus or --cpu-shares";
const MEMORY: &str = "brig has no such limit: use --memory or --memory-swap";

/// Options, and what is said of them.
const REASONS: [(&[&str], &str); 14] = [
    (
        &[
            "--ip",
            "--ip6",
            "--link",
            "--link-local-ip",
            "--mac-address",
            "--network-alias",
            "--net-alias",
        ],
        NETWORK,
    ),
    (&["--ipc", "--pid", "--uts", "--userns", "--cgroupns"], NAMESPACES),
    (
        &[
            "--cpu-period",
            "--cpu-quota",
            "--cpu-rt-period",
            "--cpu-rt-runtime",
            "--cpuset-cpus",
            "--cpuset-mems",
            "--cpu-count",
            "--cpu-percent",
        ],
        CPUS,
    ),
    (
        &["--kernel-memory", "--memory-reservation", "--memory-swappiness"],
        MEMORY,
    ),
    (
        &["--oom-score-adj"],
        "brig does not weigh processes for that: use --memory",
    ),
    (
        &[
            "--blkio-weight",
            "--blkio-weight-device",
            "--io-maxbandwidth",
            "--io-maxiops",
        ],
        "brig has no such limit: use --device-read-bps, --device-write-bps, --device-read-iops or --device-write-iops",
    ),
    (
        &["--cgroup-parent", "--runtime", "--annotation"],
        "brig has no other runtime below it: --isolation vm or container",
    ),
    (
        &["--volumes-from"],
        "name the volumes themselves, which several sandboxes may have: -v NAME:PATH",
    ),
    (&["--volume-driver"], "volumes are local: brig volume create"),
    (
        &["--gpus", "--device-cgroup-rule"],
        "name each device by --device (container isolation)",
    ),
    (
        &["--domainname"],
        "a sandbox has one name: write it whole, --hostname box.example",
    ),
    (
        &["--attach", "-a"],
        "run shows both outputs: redirect the one that is not wanted, or use -d and brig logs",
    ),
    (
        &["--disable-content-trust"],
        "brig compares digests, and knows no signatures of images",
    ),
    (
        &["--use-api-socket"],
        "there is no daemon whose socket a sandbox could have",
    ),
];

/// Commands of Docker's, and what is said of them.
const COMMANDS: [(&[&str], &str); 5] = [
    (
        &["build", "buildx", "builder"],
        "brig builds no images: build them elsewhere, and brig load, brig pull or brig import them; brig commit makes one of a sandbox",
    ),
    (&["network"], NETWORK),
    (
        &["compose", "swarm", "service", "stack", "node", "secret"],
        "brig runs single sandboxes: brig run",
    ),
    (
        &["context"],
        "brig has no daemon to be connected with: $BRIG_ROOT says where its files are",
    ),
    (
        &["plugin", "trust", "manifest", "checkpoint"],
        "brig has nothing of that kind",
    ),
];

/// Why brig does not have a command that Docker has.
pub(super) fn command(name: &str) -> Option<&'static str> {
    let mut commands = COMMANDS.iter();
    let known = |names: &&[&str]| names.contains(&name);
    commands.find(|(names, _)| known(names)).map(|(_, why)| *why)
}

/// Why `command` cannot do what `option` says, if Docker's can.
pub(super) fn reason(command: &str, option: &str) -> Option<&'static str> {
    if !["run", "create", "update"]
        .iter()
        .any(|name| command.ends_with(name))
    {
        return None;
    }
    let mut reasons = REASONS.iter();
    let known = |names: &&[&str]| names.contains(&option);
    reasons.find(|(names, _)| known(names)).map(|(_, reason)| *reason)
}

/// `--network`: there is one.
pub(super) fn network(text: &str) -> Result<(), String> {
    match text {
        "none" => Ok(()),
        _ => Err(format!("{NETWORK}, so it is none")),
    }
}
