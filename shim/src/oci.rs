//! placeholder
pub(crate) fn run(_parser: &mut lexopt::Parser) -> std::process::ExitCode { std::process::ExitCode::FAILURE }
