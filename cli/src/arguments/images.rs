//! The commands about images: `brig image …`, and the shorter forms that Docker has for most of them.

use std::path::PathBuf;

use brig_image_store::{MaxImageSize, compose::Change, reference::ImageName};
use clap::{Args, Subcommand};

use super::Handed;

pub(super) const IMAGE_EXAMPLES: &str = "\
Most of these have a shorter form: brig images, rmi, tag, save, load, import, history.

Examples:
  brig image ls --filter dangling=true
  brig image inspect --format '{{.Config.Cmd}}' nginx
  brig image prune -a";

/// Images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// List images
    #[command(visible_alias = "list", after_help = LIST_EXAMPLES)]
    Ls(Images),
    /// Remove names and images
    #[command(visible_alias = "remove", after_help = REMOVE_EXAMPLES)]
    Rm(Rmi),
    /// Remove images that nothing uses
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune(ImagePrune),
    /// Show everything about images, as JSON
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(ImageInspect),
    /// Show what an image was made of
    History(History),
    /// Give an image another name
    #[command(after_help = TAG_EXAMPLES)]
    Tag(Tag),
    /// Write images to an archive
    #[command(after_help = SAVE_EXAMPLES)]
    Save(Save),
    /// Load images from an archive: `docker save`, or an OCI layout
    #[command(after_help = LOAD_EXAMPLES)]
    Load(Load),
    /// Make an image of a tar archive of files
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(Import),
    /// Download an image from a registry
    #[command(disable_help_flag = true)]
    Pull(Handed),
    /// Upload an image to a registry
    #[command(disable_help_flag = true)]
    Push(Handed),
}

/// How templates are written.
pub(super) const LIST_EXAMPLES: &str = "\
Filters: dangling=true|false, reference=PATTERN, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME. Several of one kind are
alternatives, but labels, which an image must have all of.
A format is `table`, `json`, or a template of .Repository .Tag .Digest .ID .CreatedAt .CreatedSince .Size, with
`table ` before it for a heading.

Examples:
  brig images
  brig images 'nginx:*' --digests
  brig images --filter label=team=web --format '{{.Repository}}:{{.Tag}} {{.Size}}'";

/// Options of `images`.
#[derive(Debug, Args)]
pub struct Images {
    /// Only images of this repository, or with this name; may be a pattern
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub reference: Option<String>,
    /// All images: there are no intermediate ones, so this changes nothing
    #[arg(short, long)]
    pub all: bool,
    /// Show digests
    #[arg(long)]
    pub digests: bool,
    /// Only images that this is true of
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// How to print them
    #[arg(long, value_name = "FORMAT", conflicts_with = "quiet")]
    pub format: Option<String>,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Show ids whole
    #[arg(long)]
    pub no_trunc: bool,
}

pub(super) const REMOVE_EXAMPLES: &str = "\
The image goes with its last name. One that a sandbox or a snapshot uses stays; -f takes its names.

Examples:
  brig rmi nginx:1.25
  brig rmi $(brig images -q --filter dangling=true)";

/// Options of `rmi`.
#[derive(Debug, Args)]
pub struct Rmi {
    /// Also the names of an image that is used, and all names of an image that is meant by its id
    #[arg(short, long)]
    pub force: bool,
    /// Names, ids, or starts of ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

pub(super) const PRUNE_EXAMPLES: &str = "\
Filters: until=TIME (an age such as 24h, or a date), label=KEY[=VALUE], label!=KEY[=VALUE].

Examples:
  brig image prune
  brig image prune -a --filter until=240h";

/// Options of `image prune`.
#[derive(Debug, Args)]
pub struct ImagePrune {
    /// All images that no sandbox and no snapshot uses, not only those without a name
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only images that this is true of
    #[arg(long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
}

pub(super) const INSPECT_EXAMPLES: &str = "\
A format is `json` or a template as Go writes it, of a small part: fields ({{.Config.User}}), {{json .X}}, {{index .X \"key\"}},
{{len .X}}, {{join .X \", \"}}, {{lower .X}}, {{upper .X}}, {{if .X}}…{{else}}…{{end}}, {{range .X}}…{{end}}.

Examples:
  brig image inspect nginx
  brig image inspect --format '{{json .Config.Labels}}' nginx";

/// Options of `image inspect`.
#[derive(Debug, Args)]
pub struct ImageInspect {
    /// How to print them
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Names, ids, or starts of ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// Options of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Show everything whole
    #[arg(long)]
    pub no_trunc: bool,
    /// Sizes and dates for people
    #[arg(short = 'H', long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    pub human: bool,
    /// How to print it: `table`, `json`, or a template of .ID .CreatedAt .CreatedSince .CreatedBy .Size .Comment
    #[arg(long, value_name = "FORMAT", conflicts_with = "quiet")]
    pub format: Option<String>,
    /// Name, id, or the start of an id
    pub image: String,
}

pub(super) const TAG_EXAMPLES: &str = "\
Examples:
  brig tag nginx registry.example:5000/team/nginx:1.25";

/// Options of `tag`.
#[derive(Debug, Args)]
pub struct Tag {
    /// Name, id, or the start of an id
    #[arg(value_name = "IMAGE")]
    pub source: String,
    /// The name that it gets; another image that has it loses it
    #[arg(value_name = "NAME[:TAG]")]
    pub target: ImageName,
}

pub(super) const SAVE_EXAMPLES: &str = "\
The archive is what `docker save` writes and an OCI image layout at once: docker load, podman load and skopeo take it.
A repository without a tag means all its tags.

Examples:
  brig save -o web.tar nginx:1.25 redis
  brig save nginx | gzip >nginx.tar.gz
  skopeo copy oci-archive:web.tar:1.25 docker://registry.example/nginx:1.25";

/// Options of `save`.
#[derive(Debug, Args)]
pub struct Save {
    /// The archive; standard output otherwise
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Names, ids, or starts of ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

pub(super) const LOAD_EXAMPLES: &str = "\
Archives may be compressed with gzip, zstd, xz or bzip2.

Examples:
  brig load -i image.tar
  ssh host docker save nginx | brig load";

/// Options of `load`.
#[derive(Debug, Args)]
pub struct Load {
    /// The archive, or a directory with an OCI layout; standard input otherwise
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Refuse an archive whose files have more bytes than this, unpacked
    #[arg(long, value_name = "BYTES", default_value_t)]
    pub max_image_size: MaxImageSize,
}

pub(super) const IMPORT_EXAMPLES: &str = "\
Changes are Dockerfile instructions: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME,
WORKDIR.

Examples:
  brig import -c 'CMD [\"/bin/sh\"]' rootfs.tar.gz mine:1
  tar -C rootfs -c . | brig import - mine";

/// Options of `import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Change the image's configuration
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<Change>,
    /// What the image's history says; where it came from otherwise
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Refuse an archive whose files have more bytes than this, unpacked
    #[arg(long, value_name = "BYTES", default_value_t)]
    pub max_image_size: MaxImageSize,
    /// The archive, plain or compressed with gzip, zstd, xz or bzip2; `-` for standard input
    #[arg(value_name = "FILE|-")]
    pub source: String,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<ImageName>,
}

pub(super) const EXPORT_EXAMPLES: &str = "\
The archive has the files of the image with the sandbox's changes, and no configuration: brig import makes an image of it.

Examples:
  brig export -o rootfs.tar web
  brig export web | tar -t";

/// Options of `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The archive; standard output otherwise
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Id, name, or the start of an id
    pub sandbox: String,
}

pub(super) const COMMIT_EXAMPLES: &str = "\
The image is the sandbox's with one more layer: what the sandbox has changed. Whatever writes to the disk of a running
sandbox waits while that is copied.

Examples:
  brig commit -m 'with curl' -c 'CMD [\"/run\"]' web team/web:2";

/// Options of `commit`.
#[derive(Debug, Args)]
pub struct Commit {
    /// Who made it
    #[arg(
        short,
        long,
        default_value = "",
        value_name = "TEXT",
        hide_default_value = true
    )]
    pub author: String,
    /// Change the image's configuration
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<Change>,
    /// What the image's history says
    #[arg(
        short,
        long,
        default_value = "",
        value_name = "TEXT",
        hide_default_value = true
    )]
    pub message: String,
    /// As with Docker; the disk of a running sandbox is copied between two writes in any case
    #[arg(short, long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    pub pause: bool,
    /// Id, name, or the start of an id
    pub sandbox: String,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<ImageName>,
}

pub(super) const DIFF_EXAMPLES: &str = "\
A line begins with A (added), C (changed) or D (removed).

Examples:
  brig diff web";

/// Options of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Id, name, or the start of an id
    pub sandbox: String,
}
