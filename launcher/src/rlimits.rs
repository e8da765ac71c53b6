//! Resource limits (setrlimit(2)).

use std::io;

use brig_protocol::spec::{RESOURCES, Rlimit};

use crate::error::{Context, LaunchError};

/// Sets the limits of the calling process.
///
/// # Errors
/// [`LaunchError::Step`]: a hard limit above the present one needs `CAP_SYS_RESOURCE`.
pub(crate) fn apply(limits: &[Rlimit]) -> Result<(), LaunchError> {
    for limit in limits {
        let value = libc::rlimit {
            rlim_cur: limit.soft,
            rlim_max: limit.hard,
        };
        // SAFETY: `value` is read and outlives the call; a resource that does not exist is refused.
        let result =
            unsafe { libc::setrlimit(libc::__rlimit_resource_t::from(limit.resource), &raw const value) };
        let result = if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        };
        result.step_on(
            "set the limit",
            format_args!("{} to {}:{}", name(limit.resource), limit.soft, limit.hard),
        )?;
    }
    Ok(())
}

/// The name of a resource.
fn name(resource: u8) -> String {
    RESOURCES
        .get(usize::from(resource))
        .map_or_else(|| format!("number {resource}"), |&name| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_that_does_not_exist_is_named_in_the_error() {
        let limit = Rlimit {
            resource: 99,
            soft: 1,
            hard: 2,
        };
        let error = apply(&[limit]).unwrap_err().to_string();
        assert_eq!(error, "cannot set the limit number 99 to 1:2");
    }

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        assert_eq!(name(libc::RLIMIT_NOFILE as u8), "nofile");
        assert_eq!(name(libc::RLIMIT_RTTIME as u8), "rttime");
    }
}
