//! `config …`.

use brig_engine::{
    Engine,
    settings::{Setting, Settings, Source},
};

use super::print;
use crate::{arguments::Config, failure::Failure, table};

/// `brig config …`.
pub fn dispatch(engine: &Engine, command: &Config) -> Result<i32, Failure> {
    let paths = engine.paths();
    match command {
        Config::List => list(&Settings::read(paths)?)?,
        Config::Get(options) => print(&format!("{}\n", Settings::read(paths)?.value(options.name)?.0))?,
        Config::Set(options) => Settings::set(paths, options.name, Some(&options.value))?,
        Config::Unset(options) => Settings::set(paths, options.name, None)?,
    }
    Ok(0)
}

fn list(settings: &Settings) -> Result<(), Failure> {
    let row = |setting: Setting| {
        let (value, source) = settings.value(setting)?;
        let source = match source {
            Source::Default => "default".to_owned(),
            Source::File => "set".to_owned(),
            Source::Environment => format!("${}", setting.variable()),
        };
        Ok(vec![setting.to_string(), value, source])
    };
    let rows: Result<Vec<_>, Failure> = Setting::ALL.into_iter().map(row).collect();
    print(&table::render(&["NAME", "VALUE", "FROM"], &rows?))
}
