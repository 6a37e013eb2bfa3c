//! Classification of the statuses of failed calls.

use tonic::{Code, Status};

use crate::handler::CallError;

/// The kind of failure that a server's status means. What the transport reports never comes here: it is `unavailable`,
/// whatever code another client would give it.
pub(super) fn classify(status: &Status) -> CallError {
    let text = || format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Unavailable => CallError::Unavailable(text()),
        Code::Unimplemented => CallError::Unfit(text()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => CallError::Fault(text()),
    }
}

/// Whether the server says that it does not have the called service.
///
/// Servers built on EMQX's Erlang library answer NOT_FOUND for an unknown service.
pub(super) fn lacks_service(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_classified() {
        let kind = |status: &Status| classify(status).kind();
        assert_eq!(kind(&Status::unavailable("busy")), "unavailable");
        assert_eq!(kind(&Status::unimplemented("")), "unfit");
        for code in [Code::Internal, Code::Unknown, Code::Cancelled, Code::NotFound, Code::PermissionDenied] {
            assert_eq!(kind(&Status::new(code, "x")), "fault", "{code:?}");
        }
    }
}
