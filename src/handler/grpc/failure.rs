use std::error::Error;

use tonic::{Code, Status};

use crate::error::report;
use crate::handler::CallError;

/// What a failed call means.
///
/// A status that the server sent has no source; one that tonic made of a broken transport has. That is the
/// difference between a handler that failed and one that could not be reached or was cut off, whatever the
/// code says: a server that dies in the middle of a call shows as CANCELLED, UNKNOWN or INTERNAL as well.
pub(super) fn classify(status: &Status) -> CallError {
    if status.source().is_some() {
        return CallError::Unavailable(report(status.source().unwrap_or(status)));
    }
    let text = || format!("{:?}: {}", status.code(), status.message());
    if status.code() == Code::Unavailable {
        CallError::Unavailable(text())
    } else if status.code() == Code::Unimplemented {
        CallError::Unfit(text())
    } else {
        CallError::Fault(text())
    }
}

/// Whether the server says that it does not have the service that was called.
///
/// NOT_FOUND is what servers built on EMQX's Erlang library answer for a service they do not know.
pub(super) fn lacks_service(status: &Status) -> bool {
    status.source().is_none() && matches!(status.code(), Code::Unimplemented | Code::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server says is told apart from what happened on the way.
    #[test]
    fn statuses_are_classified() {
        let kind = |status: &Status| classify(status).kind();
        assert_eq!(kind(&Status::unavailable("busy")), "unavailable");
        assert_eq!(kind(&Status::unimplemented("")), "unfit");
        for code in [Code::Internal, Code::Unknown, Code::Cancelled, Code::NotFound, Code::PermissionDenied] {
            assert_eq!(kind(&Status::new(code, "x")), "fault", "{code:?}");
        }
        let broken = std::io::Error::other("connection reset");
        assert_eq!(kind(&Status::from_error(Box::new(broken))), "unavailable");
    }
}
