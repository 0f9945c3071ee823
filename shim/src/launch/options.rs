//! Mount options as people write them, sorted into what the kernel takes apart: attributes, propagation, the rest.
//! Pure; in the shim, before the clone.
//! Owns strings.
//! Must never pass an option on that has a meaning of its own here.

use keelson_sys::child::{Attributes, Parameter, Propagation};

use super::{LaunchError, c_string};

/// The options of one mount.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) bind: bool,
    pub(super) recursive: bool,
    pub(super) attributes: Attributes,
    /// For every mount below a recursive bind too.
    pub(super) recursive_attributes: Attributes,
    pub(super) propagation: Option<(Propagation, bool)>,
    /// Shift ids; `true`: recursively.
    pub(super) idmap: Option<bool>,
    /// For the filesystem itself.
    pub(super) parameters: Vec<Parameter>,
}

pub(super) fn parse(options: &[String]) -> Result<Options, LaunchError> {
    let mut parsed = Options::default();
    for option in options {
        let name = option.as_str();
        if let Some(change) = attribute(name) {
            change.apply(&mut parsed.attributes);
        } else if let Some(change) = name.strip_prefix('r').and_then(attribute).filter(|_| name != "relatime") {
            change.apply(&mut parsed.recursive_attributes);
        } else if let Some(propagation) = propagation(name) {
            parsed.propagation = Some(propagation);
        } else {
            match name {
                "bind" => parsed.bind = true,
                "rbind" => (parsed.bind, parsed.recursive) = (true, true),
                "idmap" => parsed.idmap = Some(false),
                "ridmap" => parsed.idmap = Some(true),
                // The kernel's defaults, and words of userland.
                "defaults" | "" | "async" | "loud" | "silent" | "nomand" | "mand" | "norelatime" | "nostrictatime"
                | "auto" | "noauto" | "copy-symlink" => {}
                "remount" | "tmpcopyup" => {
                    return Err(LaunchError::unsupported("use mount option", name, "not offered"));
                }
                _ => parsed.parameters.push(parameter(name)?),
            }
        }
    }
    Ok(parsed)
}

/// Name of a propagation, `r` for the whole tree.
pub(super) fn propagation(name: &str) -> Option<(Propagation, bool)> {
    Some(match name {
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        "unbindable" => (Propagation::Unbindable, false),
        "runbindable" => (Propagation::Unbindable, true),
        _ => return None,
    })
}

fn parameter(option: &str) -> Result<Parameter, LaunchError> {
    const STEP: &str = "use mount option";
    Ok(match option.split_once('=') {
        Some((key, value)) => Parameter::Value(c_string(STEP, key)?, c_string(STEP, value)?),
        None => Parameter::Flag(c_string(STEP, option)?),
    })
}

enum Change {
    Set(u64),
    Clear(u64),
    /// The access time field has one value.
    Atime(u64),
}

impl Change {
    fn apply(&self, attributes: &mut Attributes) {
        let (set, clear) = match *self {
            Change::Set(bits) => (bits, 0),
            Change::Clear(bits) => (0, bits),
            Change::Atime(value) => {
                attributes.set &= !Attributes::ATIME;
                attributes.clear |= Attributes::ATIME;
                attributes.set |= value;
                return;
            }
        };
        attributes.set = (attributes.set | set) & !clear;
        attributes.clear = (attributes.clear | clear) & !set;
    }
}

fn attribute(name: &str) -> Option<Change> {
    Some(match name {
        "ro" => Change::Set(Attributes::RDONLY),
        "rw" => Change::Clear(Attributes::RDONLY),
        "nosuid" => Change::Set(Attributes::NOSUID),
        "suid" => Change::Clear(Attributes::NOSUID),
        "nodev" => Change::Set(Attributes::NODEV),
        "dev" => Change::Clear(Attributes::NODEV),
        "noexec" => Change::Set(Attributes::NOEXEC),
        "exec" => Change::Clear(Attributes::NOEXEC),
        "nosymfollow" => Change::Set(Attributes::NOSYMFOLLOW),
        "symfollow" => Change::Clear(Attributes::NOSYMFOLLOW),
        "nodiratime" => Change::Set(Attributes::NODIRATIME),
        "diratime" => Change::Clear(Attributes::NODIRATIME),
        "noatime" => Change::Atime(Attributes::NOATIME),
        "strictatime" => Change::Atime(Attributes::STRICTATIME),
        "relatime" | "atime" => Change::Atime(0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Options {
        parse(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn flags_become_attributes_and_the_rest_parameters() {
        let options = of(&["nosuid", "strictatime", "mode=755", "size=64k", "newinstance"]);
        assert_eq!(options.attributes.set, Attributes::NOSUID | Attributes::STRICTATIME);
        assert_eq!(options.attributes.clear, Attributes::ATIME);
        assert_eq!(options.parameters.len(), 3);
        assert_eq!(options.parameters.last(), Some(&Parameter::Flag(c"newinstance".into())));
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        assert_eq!(of(&["ro", "rw"]).attributes, Attributes { set: 0, clear: Attributes::RDONLY });
        assert_eq!(of(&["rw", "ro"]).attributes, Attributes { set: Attributes::RDONLY, clear: 0 });
        assert_eq!(of(&["noatime", "relatime"]).attributes.set, 0);
    }

    #[test]
    fn recursive_spellings_are_told_apart() {
        let options = of(&["rbind", "rro", "ro", "rslave"]);
        assert!(options.bind && options.recursive);
        assert_eq!(options.recursive_attributes.set, Attributes::RDONLY);
        assert_eq!(options.propagation, Some((Propagation::Slave, true)));
        assert_eq!(of(&["rw"]).recursive_attributes, Attributes::default());
        assert_eq!(of(&["relatime"]).recursive_attributes, Attributes::default());
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        assert!(parse(&["remount".to_owned()]).is_err());
        assert!(parse(&["a\0b".to_owned()]).is_err());
    }
}
