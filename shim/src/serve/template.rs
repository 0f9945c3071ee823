//! What further processes of a container run as, folded small: it is kept for a container's whole life, and used now and then.
//! Pure, in the shim's only thread; unfolding costs some microseconds.
//! Owns two allocations, where a parsed process is a hundred that hold whole pages of the heap.
//! Must never lose a byte of the environment: it need not be UTF-8.

use keelson_shim::spec::Process;

use super::streams::Wanted;

/// A folded process.
pub(super) struct Template {
    /// JSON.
    process: Box<[u8]>,
    /// `NAME=value`, each ended by a zero byte.
    env: Box<[u8]>,
}

impl Template {
    /// `env` replaces the process's own when it is not empty.
    pub(super) fn fold(process: &Process, env: &[Vec<u8>]) -> Template {
        // A process that came from JSON has a JSON form.
        let process = serde_json::to_vec(process).unwrap_or_default();
        let env: Vec<u8> = env.iter().flat_map(|entry| entry.iter().copied().chain([0])).collect();
        Template { process: process.into(), env: env.into() }
    }

    /// The process with other arguments and streams, and the environment that replaces its own when it is not empty.
    pub(super) fn unfold(&self, args: Vec<String>, wanted: Wanted) -> serde_json::Result<(Process, Vec<Vec<u8>>)> {
        let own: Process = serde_json::from_slice(&self.process)?;
        let entries = self.env.split_inclusive(|byte| *byte == 0);
        let mut env: Vec<Vec<u8>> = entries.map(|entry| entry.strip_suffix(b"\0").unwrap_or(entry).to_vec()).collect();
        let mut process = Process { args, terminal: false, console_size: None, ..own };
        if let Wanted::Terminal(size) = wanted {
            process.terminal = true;
            process.console_size = size;
            name_terminal(&mut process.env, &mut env);
        }
        Ok((process, env))
    }
}

/// Programs draw by the terminal's kind; a container that was made without a terminal has not been told any.
fn name_terminal(own: &mut Vec<String>, env: &mut Vec<Vec<u8>>) {
    if env.is_empty() {
        if !own.iter().any(|entry| entry.starts_with("TERM=")) {
            own.push("TERM=xterm".to_owned());
        }
    } else if !env.iter().any(|entry| entry.starts_with(b"TERM=")) {
        env.push(b"TERM=xterm".to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_folded_comes_back() {
        let process = Process { cwd: "/x".into(), terminal: true, env: vec!["A=b".into()], ..Process::default() };
        let env = [b"B=\xff\xfe".to_vec(), b"EMPTY=".to_vec()];
        let (unfolded, unfolded_env) =
            Template::fold(&process, &env).unfold(vec!["id".into()], Wanted::COLLECTED).unwrap();
        assert_eq!(unfolded, Process { args: vec!["id".into()], terminal: false, ..process.clone() });
        assert_eq!(unfolded_env, env);
        assert!(Template::fold(&process, &[]).unfold(Vec::new(), Wanted::COLLECTED).unwrap().1.is_empty());
    }

    #[test]
    fn a_terminal_has_a_size_and_a_name() {
        use keelson_shim::spec::ConsoleSize;

        let size = ConsoleSize { height: 24, width: 80 };
        let named = |process: &Process, env: &[Vec<u8>]| {
            Template::fold(process, env).unfold(Vec::new(), Wanted::Terminal(Some(size))).unwrap()
        };
        let (process, env) = named(&Process::default(), &[]);
        assert!(process.terminal && process.console_size == Some(size) && env.is_empty());
        assert_eq!(process.env, ["TERM=xterm"]);
        assert_eq!(named(&Process::default(), &[b"A=b".to_vec()]).1, [b"A=b".to_vec(), b"TERM=xterm".to_vec()]);
        assert_eq!(named(&Process::default(), &[b"TERM=vt100".to_vec()]).1, [b"TERM=vt100".to_vec()]);
    }
}
