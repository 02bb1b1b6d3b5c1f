//! How a session says how it ended, on the error stream.

use bytes::Bytes;
use serde_json::{Value, json};

/// The end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Exit code 0, or a detach.
    Success,
    /// An exit code other than 0.
    Exited(i32),
    /// It could not be run or followed to its end.
    Failed(String),
}

/// How the negotiated protocol wants it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusForm {
    /// v1 to v3: the message of a failure as plain text; nothing on success.
    Text,
    /// v4 and v5: a Status object of the Kubernetes API, always.
    Object,
}

impl Outcome {
    /// The bytes for the error stream; None: nothing is written.
    pub(super) fn encode(&self, form: StatusForm) -> Option<Bytes> {
        match form {
            StatusForm::Text => self.message().map(Bytes::from),
            StatusForm::Object => Some(Bytes::from(self.object().to_string())),
        }
    }

    fn message(&self) -> Option<String> {
        match self {
            Outcome::Success => None,
            Outcome::Exited(code) => Some(format!("command terminated with non-zero exit code: {code}")),
            Outcome::Failed(message) => Some(format!("Internal error occurred: {message}")),
        }
    }

    fn object(&self) -> Value {
        match self {
            Outcome::Success => json!({"metadata": {}, "status": "Success"}),
            Outcome::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Outcome::Failed(_) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "InternalError",
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_failures_only() {
        assert_eq!(Outcome::Success.encode(StatusForm::Text), None);
        assert_eq!(
            Outcome::Exited(3).encode(StatusForm::Text).unwrap(),
            "command terminated with non-zero exit code: 3"
        );
    }

    #[test]
    fn the_object_carries_the_exit_code_as_a_cause() {
        let bytes = Outcome::Exited(42).encode(StatusForm::Object).unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["reason"], "NonZeroExitCode");
        assert_eq!(
            value["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "42"})
        );
        let bytes = Outcome::Success.encode(StatusForm::Object).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&bytes).unwrap()["status"],
            "Success"
        );
    }
}
