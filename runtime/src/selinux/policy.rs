//! The loaded policy, as far as containers are concerned: what it calls them, and which labels it knows.
//! Files of the host and of the kernel, read when the engine opens; afterwards one write for each label that is checked.
//! Owns nothing. Must never take a label for known that the kernel refuses.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use crate::container::spec::SelinuxLabel;

const KERNEL: &str = "/sys/fs/selinux";
const HOST: &str = "/etc/selinux";
/// Role and type in policies without a word on it.
const PROCESS: [&str; 2] = ["system_r", "container_t"];
const FILE: [&str; 2] = ["object_r", "container_file_t"];

/// A label in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) user: String,
    pub(super) role: String,
    pub(super) kind: String,
    /// Empty in a policy without levels.
    pub(super) level: String,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Policy {
    process: Context,
    file: Context,
    mls: bool,
    /// The kernel's folder.
    kernel: PathBuf,
    problem: Option<String>,
}

impl Context {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(4, ':');
        let mut next = || parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
        Some(Self { user: next()?, role: next()?, kind: next()?, level: next().unwrap_or_default() })
    }

    /// The same at another level; an empty one changes nothing.
    pub(super) fn at(&self, level: &str) -> Self {
        let level = if level.is_empty() { &self.level } else { level };
        Self { level: level.to_owned(), ..self.clone() }
    }

    /// The same with what is asked for in its place; what is empty changes nothing.
    pub(super) fn with(&self, asked: &SelinuxLabel) -> Self {
        let part = |asked: &str, own: &str| if asked.is_empty() { own.to_owned() } else { asked.to_owned() };
        Self {
            user: part(&asked.user, &self.user),
            role: part(&asked.role, &self.role),
            kind: part(&asked.kind, &self.kind),
            level: part(&asked.level, &self.level),
        }
    }
}

impl Policy {
    /// `None`: no SELinux here.
    pub(super) fn of_this_host() -> Option<Self> {
        Self::at(Path::new(KERNEL), Path::new(HOST))
    }

    /// With the kernel's files in one folder and the host's configuration in another.
    pub(super) fn at(kernel: &Path, host: &Path) -> Option<Self> {
        if !kernel.join("enforce").exists() {
            return None;
        }
        let contexts = contexts(host);
        let (process, file) = names(&contexts);
        let mls = fs::read(kernel.join("mls")).is_ok_and(|text| text.first() == Some(&b'1'));
        let mut policy = Self { process, file, mls, kernel: kernel.to_owned(), problem: None };
        let known = policy.check(&policy.process).and_then(|()| policy.check(&policy.file));
        policy.problem = known.err().map(|reason| format!("{reason}: is there a policy for containers on this node?"));
        Some(policy)
    }

    /// What containers' processes are called.
    pub(super) fn process(&self) -> &Context {
        &self.process
    }

    /// What containers' files are called.
    pub(super) fn file(&self) -> &Context {
        &self.file
    }

    /// Whether labels have levels.
    pub(super) fn mls(&self) -> bool {
        self.mls
    }

    /// Why the policy has no containers.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    pub(super) fn text(&self, context: &Context) -> String {
        let Context { user, role, kind, level } = context;
        if self.mls && !level.is_empty() {
            format!("{user}:{role}:{kind}:{level}")
        } else {
            format!("{user}:{role}:{kind}")
        }
    }

    /// Whether the loaded policy knows the label.
    pub(super) fn check(&self, context: &Context) -> Result<(), String> {
        self.check_text(&self.text(context))
    }

    pub(super) fn check_text(&self, label: &str) -> Result<(), String> {
        let path = self.kernel.join("context");
        let ask = || -> io::Result<()> { fs::OpenOptions::new().write(true).open(&path)?.write_all(label.as_bytes()) };
        ask().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => format!("`{label}` is no label of the loaded policy"),
            _ => format!("ask `{}` about `{label}`: {error}", path.display()),
        })
    }
}

/// The file of the host's policy that names what runtimes need.
fn contexts(host: &Path) -> String {
    let config = fs::read_to_string(host.join("config")).unwrap_or_default();
    let kind = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).unwrap_or("targeted").trim();
    // A name, not a path.
    let kind = kind.trim_matches('"').replace('/', "");
    fs::read_to_string(host.join(kind).join("contexts/lxc_contexts")).unwrap_or_default()
}

/// Lines of `name = "label"`.
fn names(contexts: &str) -> (Context, Context) {
    let find = |name: &str| {
        let of = |line: &str| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| Context::parse(value.trim().trim_matches('"'))).flatten()
        };
        contexts.lines().find_map(of)
    };
    let usual = |[role, kind]: [&str; 2]| Context {
        user: "system_u".to_owned(),
        role: role.to_owned(),
        kind: kind.to_owned(),
        level: "s0".to_owned(),
    };
    (find("process").unwrap_or_else(|| usual(PROCESS)), find("file").unwrap_or_else(|| usual(FILE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policys_own_names_are_used() {
        let (process, file) = names(
            "process = \"system_u:system_r:svirt_lxc_net_t:s0\"\ncontent = \"x:y:z:s0\"\nfile=\"system_u:object_r:svirt_sandbox_file_t:s0\"\n",
        );
        assert_eq!((process.kind.as_str(), file.kind.as_str()), ("svirt_lxc_net_t", "svirt_sandbox_file_t"));
        let (process, file) = names("process = \"broken\"\n");
        assert_eq!((process.kind.as_str(), file.kind.as_str()), ("container_t", "container_file_t"));
        assert_eq!(file.role, "object_r");
        assert_eq!(Context::parse("u:r:t:s0-s0:c0.c1023").unwrap().level, "s0-s0:c0.c1023");
    }

    #[test]
    fn a_host_is_read() {
        let scratch = tempfile::tempdir().unwrap();
        let (kernel, host) = (scratch.path().join("kernel"), scratch.path().join("host"));
        assert!(Policy::at(&kernel, &host).is_none());
        for folder in [&kernel, &host.join("strict/contexts")] {
            fs::create_dir_all(folder).unwrap();
        }
        let write = |path: PathBuf, text: &str| fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
        write(kernel.join("enforce"), "0");
        write(kernel.join("mls"), "1");
        write(host.join("config"), "# a comment\nSELINUX=permissive\nSELINUXTYPE=strict\n");
        write(host.join("strict/contexts/lxc_contexts"), "process = \"system_u:system_r:mine_t:s0\"\n");
        // No kernel to ask.
        assert!(Policy::at(&kernel, &host).unwrap().problem().unwrap().contains("ask `"));
        write(kernel.join("context"), "");
        let policy = Policy::at(&kernel, &host).unwrap();
        assert_eq!((policy.process().kind.as_str(), policy.problem(), policy.mls()), ("mine_t", None, true));
        assert_eq!(policy.text(&policy.file().at("s0:c1,c2")), "system_u:object_r:container_file_t:s0:c1,c2");
        write(kernel.join("mls"), "0");
        let policy = Policy::at(&kernel, &host).unwrap();
        assert_eq!(policy.text(&policy.file().at("s0:c1,c2")), "system_u:object_r:container_file_t");
    }
}
