//! How long it takes to get an image: from a registry on this machine and unpacked, against skopeo and umoci.
//!
//! ```text
//! bench-images [--rounds N] [--images NAME,…] [--from registry|archive]
//!   --rounds N     of each image (5)
//!   --images NAME  recipes under images/ (busybox,debian-slim,python)
//!   --from         a registry (Debian's docker-registry), or the archive that the recipe makes
//! ```
//! In each round both take their turn with the same image: `brig pull` and the unpack of a first `brig run`, whose template is there
//! already; `skopeo copy` to an OCI layout and `umoci unpack`. So what else the machine does falls on both, and
//! the ratios are of one run. Nothing is compared with a limit: a benchmark does not fail.

mod figures;

use std::{
    env, fs, io,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use brig_tests::{
    brig::{Brig, Output},
    machine,
    registry::Registry,
};

use crate::figures::{Figures, quantile, table};

/// Parts of an unpack, as `--timing` names them.
const PARTS: [&str; 9] = [
    "guest start",
    "read layers",
    "decompress",
    "hash",
    "write image",
    "names, copying",
    "in the guest",
    "into the store",
    "unpack",
];

/// The comparison, in the order of its table.
const OURS: [&str; 3] = ["brig pull", "brig unpack", "brig, both"];
const THEIRS: [&str; 3] = ["skopeo copy", "umoci unpack", "skopeo and umoci"];

struct Options {
    rounds: usize,
    images: Vec<String>,
    from_registry: bool,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(what) => {
            eprintln!("bench-images: {what}");
            return ExitCode::from(2);
        }
    };
    if let Some(reason) = machine::Need::Kvm.missing() {
        eprintln!("bench-images: skipped, {reason}");
        return ExitCode::SUCCESS;
    }
    let brig = Brig::new();
    let info = brig.ok(&["system", "info"]);
    println!(
        "{}",
        info.lines().find(|line| line.starts_with("KVM")).unwrap_or("")
    );
    let registry = options.from_registry.then(Registry::start);
    let mut ratios = Vec::new();
    for image in &options.images {
        let source = Source::new(image, registry.as_ref());
        ratios.push((image, measure(&brig, image, &source, options.rounds)));
    }
    println!("\nMedians of the ratios of each round, brig against skopeo and umoci (least to greatest)");
    for (image, ratios) in ratios {
        println!(
            "{image:<24}{:>8.2} ({:.2} to {:.2})",
            quantile(&ratios, 0.5),
            quantile(&ratios, 0.0),
            quantile(&ratios, 1.0)
        );
    }
    drop(registry);
    brig.assert_nothing_left();
    ExitCode::SUCCESS
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        rounds: 5,
        images: ["busybox", "debian-slim", "python"].map(str::to_owned).into(),
        from_registry: true,
    };
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--rounds" => options.rounds = value.parse().map_err(|_| "--rounds needs a number".to_owned())?,
            "--images" => options.images = value.split(',').map(str::to_owned).collect(),
            "--from" if value == "registry" => options.from_registry = true,
            "--from" if value == "archive" => options.from_registry = false,
            "--from" => return Err("--from is registry or archive".to_owned()),
            _ => return Err(format!("unknown option {name}: --rounds, --images and --from")),
        }
    }
    Ok(options)
}

/// Where an image comes from.
struct Source {
    /// The archive that its recipe makes.
    archive: PathBuf,
    /// Its name in the registry; `None` when it comes from the archive.
    pulled: Option<String>,
}

impl Source {
    fn new(image: &str, registry: Option<&Registry>) -> Self {
        let archive = machine::image_archive(image);
        let pulled = registry.map(|registry| {
            let name = format!("{}/{image}:latest", registry.host());
            run(Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
                .arg(format!("oci-archive:{}", archive.display()))
                .arg(format!("docker://{name}")));
            name
        });
        Self { archive, pulled }
    }

    /// As skopeo writes it.
    fn for_skopeo(&self) -> String {
        match &self.pulled {
            Some(name) => format!("docker://{name}"),
            None => format!("oci-archive:{}", self.archive.display()),
        }
    }
}

/// Ratios of each round.
fn measure(brig: &Brig, image: &str, source: &Source, rounds: usize) -> Vec<f64> {
    let mut figures = Figures::new();
    // The first round fills caches and counts for nothing.
    ours(brig, image, source, &mut Figures::new());
    theirs(source, &mut Figures::new());
    let mut ratios = Vec::new();
    let mut said = String::new();
    for _ in 0..rounds {
        let (all, of_image) = ours(brig, image, source, &mut figures);
        said = of_image;
        ratios.push(all / theirs(source, &mut figures));
    }
    let how = if source.pulled.is_some() {
        "a registry"
    } else {
        "an archive"
    };
    table(
        &format!("{image} from {how}, milliseconds: {said}"),
        &[&OURS[..], &THEIRS].concat(),
        &figures,
    );
    table("brig's unpack, milliseconds", &PARTS, &figures);
    ratios
}

/// Gets the image and unpacks it; returns the milliseconds of both, and what brig says of the image.
fn ours(brig: &Brig, image: &str, source: &Source, figures: &mut Figures) -> (f64, String) {
    // Templates stay, as they do with a user.
    remove_images(brig);
    let began = Instant::now();
    match &source.pulled {
        Some(name) => brig.ok(&["pull", "-q", name]),
        None => brig.ok(&["load", "-q", "-i", &source.archive.display().to_string()]),
    };
    let pulled = milliseconds(began);
    let name = source.pulled.as_deref().unwrap_or(image);
    let Output { code, stderr, .. } = brig.run(&["run", "--rm", "--timing", "--entrypoint", "true", name]);
    assert_eq!(code, 0, "{stderr}");
    let value = |name: &str| -> Option<f64> {
        let mut columns = stderr.lines().filter_map(|line| line.strip_prefix(name));
        columns.find_map(|columns| columns.split_whitespace().next()?.parse().ok())
    };
    let unpacked = value("image unpacked").expect("--timing tells when the image was unpacked");
    for part in PARTS {
        figures.entry(part).or_default().extend(value(part));
    }
    for (name, value) in OURS.into_iter().zip([pulled, unpacked, pulled + unpacked]) {
        figures.entry(name).or_default().push(value);
    }
    (pulled + unpacked, stderr.lines().last().unwrap_or("").to_owned())
}

/// The same by skopeo and umoci.
fn theirs(source: &Source, figures: &mut Figures) -> f64 {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let layout = format!("{}:latest", directory.path().join("layout").display());
    let began = Instant::now();
    run(Command::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            &source.for_skopeo(),
        ])
        .arg(format!("oci:{layout}")));
    let copied = milliseconds(began);
    let began = Instant::now();
    run(Command::new("umoci")
        .args(["unpack", "--image", &layout])
        .args((!machine::is_root()).then_some("--rootless"))
        .arg(directory.path().join("bundle")));
    let unpacked = milliseconds(began);
    for (name, value) in THEIRS.into_iter().zip([copied, unpacked, copied + unpacked]) {
        figures.entry(name).or_default().push(value);
    }
    copied + unpacked
}

/// Makes the store forget every image.
fn remove_images(brig: &Brig) {
    match fs::remove_dir_all(brig.root().join("images")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("the images stay: {error}"),
        _ => {}
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}: tests/install-packages test"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
