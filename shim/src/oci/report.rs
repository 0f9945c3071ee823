//! Errors where engines look for them: the log file, as text or as one JSON object a line, and standard error.
//! Any command, once, at its end.
//! Owns nothing but the choice.
//! Must never fail the command: a log that cannot be written is no further error.

use std::error::Error;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use crate::clock;

/// Where and how.
#[derive(Default)]
pub(super) struct Log {
    pub(super) path: Option<PathBuf>,
    pub(super) json: bool,
}

impl Log {
    /// Reports an error with its causes.
    pub(super) fn error(&self, error: &dyn Error) {
        let text = keelson_api::chain(error);
        let _ = writeln!(std::io::stderr(), "keelson-shim oci: {text}");
        if let Some(path) = &self.path
            && let Ok(mut file) = std::fs::File::options().append(true).create(true).mode(0o644).open(path)
        {
            // One write: several commands may share the file.
            let _ = file.write_all(self.line(&text).as_bytes());
        }
    }

    fn line(&self, text: &str) -> String {
        let moment = clock::format(clock::now());
        let moment = String::from_utf8_lossy(&moment);
        if self.json {
            format!("{}\n", serde_json::json!({ "level": "error", "msg": text, "time": moment }))
        } else {
            format!("time=\"{moment}\" level=error msg={text:?}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_holds_level_message_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = Log { path: Some(path.clone()), json: true };
        log.error(&super::super::error::OciError::NotFound { id: "a\"b".into() });
        let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(
            (line["level"].as_str(), line["msg"].as_str()),
            (Some("error"), Some("container `a\"b` does not exist"))
        );
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }
}
