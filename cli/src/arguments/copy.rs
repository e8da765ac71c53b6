//! Options of `cp`.

use std::ffi::OsString;

use clap::Args;

/// Examples of `cp`.
pub const CP_EXAMPLES: &str = "\
A directory goes into a directory that is there, and to a name that is not; with /. behind it only what is in it. - is a tar archive on
standard input or output. Modes are kept; owners in a sandbox, and here with -a. What comes out of a sandbox is written below the
destination and nowhere else: links are copied and never followed, set-id bits and devices are left out.

Examples:
  brig cp web:/etc/nginx/nginx.conf .
  brig cp ./site/. web:/usr/share/nginx/html
  brig cp web:/var/log - | tar -t
  tar -c files | brig cp - web:/srv";

/// Options of `cp`.
#[derive(Debug, Args)]
pub struct Copy {
    /// Keep owners: numbers of users and groups
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what a link leads to, if the source is one
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Say nothing about it
    #[arg(short, long)]
    pub quiet: bool,
    /// A path, SANDBOX:PATH, or -
    #[arg(value_name = "FROM")]
    pub from: OsString,
    /// A path, SANDBOX:PATH, or -
    #[arg(value_name = "TO")]
    pub to: OsString,
}
