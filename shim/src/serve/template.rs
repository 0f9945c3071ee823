//! What further processes of a container run as, folded small: it is kept for a container's whole life, and used now and then.
//! Pure, in the shim's only thread; unfolding costs some microseconds.
//! Owns two allocations, where a parsed process is a hundred that hold whole pages of the heap.
//! Must never lose a byte of the environment: it need not be UTF-8.

use keelson_shim::spec::Process;

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

    /// The process with other arguments and no terminal, and the environment that replaces its own.
    pub(super) fn unfold(&self, args: Vec<String>) -> serde_json::Result<(Process, Vec<Vec<u8>>)> {
        let own: Process = serde_json::from_slice(&self.process)?;
        let entries = self.env.split_inclusive(|byte| *byte == 0);
        let env = entries.map(|entry| entry.strip_suffix(b"\0").unwrap_or(entry).to_vec()).collect();
        Ok((Process { args, terminal: false, ..own }, env))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_folded_comes_back() {
        let process = Process { cwd: "/x".into(), terminal: true, env: vec!["A=b".into()], ..Process::default() };
        let env = [b"B=\xff\xfe".to_vec(), b"EMPTY=".to_vec()];
        let (unfolded, unfolded_env) = Template::fold(&process, &env).unfold(vec!["id".into()]).unwrap();
        assert_eq!(unfolded, Process { args: vec!["id".into()], terminal: false, ..process.clone() });
        assert_eq!(unfolded_env, env);
        assert!(Template::fold(&process, &[]).unfold(Vec::new()).unwrap().1.is_empty());
    }
}
