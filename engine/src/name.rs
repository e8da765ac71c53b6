//! Names of sandboxes: `adjective_surname` when the user gives none.

use crate::{Error, id::random_bytes};

/// Most bytes of a name.
pub const NAME_BYTES: usize = 128;

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "ample", "apt", "bold", "brave", "bright", "brisk", "calm", "candid", "careful",
    "cheerful", "clear", "clever", "cosy", "crisp", "curious", "daring", "deft", "eager", "earnest", "fair",
    "fearless", "fine", "fond", "frank", "gentle", "glad", "golden", "graceful", "grand", "handy", "happy",
    "hardy", "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry",
    "modest", "neat", "nimble", "noble", "patient", "placid", "polite", "proud", "quick", "quiet", "ready",
    "serene", "sharp", "silent", "sober", "steady", "sturdy", "sunny", "tidy", "wise",
];

/// Seafarers, shipwrights, navigators, cartographers and oceanographers.
const SURNAMES: [&str; 64] = [
    "amundsen",
    "anson",
    "baffin",
    "barents",
    "baret",
    "beaufort",
    "bering",
    "blackwood",
    "bligh",
    "bowditch",
    "brunel",
    "cabot",
    "cook",
    "coxinga",
    "dampier",
    "davis",
    "drake",
    "earle",
    "fitzroy",
    "flinders",
    "franklin",
    "frobisher",
    "gama",
    "grace",
    "greig",
    "halley",
    "hanno",
    "harrison",
    "hudson",
    "humboldt",
    "janszoon",
    "kotzebue",
    "krusenstern",
    "laperouse",
    "magellan",
    "malaspina",
    "maury",
    "mercator",
    "nansen",
    "nelson",
    "orellana",
    "parry",
    "piccard",
    "pytheas",
    "quiros",
    "ross",
    "scoresby",
    "scott",
    "shackleton",
    "sharp",
    "slocum",
    "smyth",
    "tasman",
    "tharp",
    "torres",
    "tupaia",
    "vancouver",
    "verne",
    "vespucci",
    "weddell",
    "wegener",
    "worsley",
    "zheng",
    "zwicky",
];

/// A random name.
///
/// # Errors
/// Those of getrandom(2).
pub fn random() -> Result<String, Error> {
    let [adjective, surname] = random_bytes::<2>()?;
    Ok(format!(
        "{}_{}",
        ADJECTIVES[usize::from(adjective) % ADJECTIVES.len()],
        SURNAMES[usize::from(surname) % SURNAMES.len()]
    ))
}

/// Checks a name that the user chose: Docker's rule, `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
///
/// # Errors
/// [`Error::InvalidName`].
pub fn check(name: &str) -> Result<(), Error> {
    let mut bytes = name.bytes();
    let first_fits = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest_fits = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if first_fits && rest_fits && (2..=NAME_BYTES).contains(&name.len()) {
        Ok(())
    } else {
        Err(Error::InvalidName(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_names_pass_the_check() {
        for _ in 0..100 {
            check(&random().unwrap()).unwrap();
        }
    }

    #[test]
    fn docker_refuses_the_same_names() {
        for good in ["web", "a1", "My.app_2-x"] {
            check(good).unwrap();
        }
        for bad in [
            "",
            "a",
            "-web",
            "_x",
            "a/b",
            "a b",
            "ünï",
            "../x",
            &"x".repeat(NAME_BYTES + 1),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
