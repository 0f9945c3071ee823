//! Who a container's process runs as: the request's word, the image's `USER`, and the image's passwd and group files, made numbers.
//! Runs on the blocking pool of the daemon while a container is created. The one parser of user strings of the project.
//! Owns nothing. Must never take a number for a name or a name for a number, nor trust a line of a hostile file.
//!
//! A text of digits alone is a number, canonical and at most 2^31-1, or it is refused; it is never looked up as a name
//! (CVE-2024-40635, CVE-2026-46680). Names start with a letter or `_`. So `-1`, `00`, `0x0`, `0 ` are neither.

pub(crate) mod rootfs;

use std::path::{Path, PathBuf};

use rootfs::{FileError, RootView};

use crate::container::{
    spec::{GroupsPolicy, RunAs, Security},
    view::User,
};

/// Longest passwd or group file that is read, bytes.
const FILE_MAX: u64 = 8 * 1024 * 1024;
/// The kernel takes at most so many supplementary groups.
const GROUPS_MAX: usize = 65_536;

/// Why a user could not be made numbers.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum UserError {
    /// The text is neither a name nor a number.
    #[error("user `{text}`: {reason}")]
    Text {
        /// As given, cut to 100 characters.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A number out of range.
    #[error("{what} {value}: want 0 to 2147483647")]
    Range {
        /// `run_as_user`, `run_as_group`, `supplementary group`.
        what: &'static str,
        /// As given.
        value: i64,
    },
    /// A group but no user.
    #[error("run_as_group without run_as_user or run_as_username: say whom the group is for")]
    GroupWithoutUser,
    /// No such name in the image.
    #[error("{what} `{name}` is not in the image's {file}: use a name that is, or a number")]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// The file.
        file: &'static str,
    },
    /// More supplementary groups than the kernel takes.
    #[error("{count} supplementary groups: the kernel takes at most 65536")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A passwd or group file is not a regular file, or too long, or cannot be read.
    #[error("{file}: {reason}")]
    File {
        /// In the image.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// The process's identity and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Ids.
    pub(crate) user: User,
    /// Home directory of the user as the image says; none when it says none.
    pub(crate) home: Option<String>,
}

/// A user or group part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Number(u32),
    Name(String),
}

/// One usable line of a passwd file.
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// One usable line of a group file.
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Makes numbers of what the request and the image say. `image_user` is the image's `USER`.
///
/// # Errors
/// See [`UserError`].
pub(crate) fn resolve(security: &Security, image_user: &str, root: &RootView) -> Result<Identity, UserError> {
    let (user, image_group) = match &security.run_as {
        RunAs::Uid(value) => (Word::Number(number("run_as_user", *value)?), None),
        RunAs::Name(name) => (word(name)?, None),
        RunAs::Image if security.run_as_group.is_some() => return Err(UserError::GroupWithoutUser),
        RunAs::Image => match image_user.split_once(':') {
            _ if image_user.is_empty() => (Word::Number(0), None),
            Some((user, group)) => (word(user)?, Some(word(group)?)),
            None => (word(image_user)?, None),
        },
    };
    let accounts = accounts(root)?;
    let groups = groups(root)?;
    let account = match &user {
        Word::Number(uid) => accounts.iter().find(|account| account.uid == *uid),
        Word::Name(name) => {
            let found = accounts.iter().find(|account| account.name == *name);
            Some(found.ok_or_else(|| UserError::Unknown { what: "user", name: name.clone(), file: "/etc/passwd" })?)
        }
    };
    let uid = match user {
        Word::Number(uid) => uid,
        Word::Name(_) => account.map_or(0, |account| account.uid),
    };
    let gid = match (security.run_as_group, image_group) {
        (Some(value), _) => number("run_as_group", value)?,
        (None, Some(Word::Number(gid))) => gid,
        (None, Some(Word::Name(name))) => {
            let found = groups.iter().find(|group| group.name == name);
            found.ok_or(UserError::Unknown { what: "group", name, file: "/etc/group" })?.gid
        }
        (None, None) => account.map_or(0, |account| account.gid),
    };
    // The primary group is always among them: a process that is given it by setgroups keeps it (CVE-2022-36109).
    let mut additional_gids = vec![gid];
    let mut add = |gid: u32| {
        if !additional_gids.contains(&gid) {
            additional_gids.push(gid);
        }
    };
    for value in &security.supplementary_groups {
        add(number("supplementary group", *value)?);
    }
    if let (GroupsPolicy::Merge, Some(account)) = (security.groups_policy, account) {
        for group in groups.iter().filter(|group| group.members.contains(&account.name)) {
            add(group.gid);
        }
    }
    if additional_gids.len() > GROUPS_MAX {
        return Err(UserError::TooMany { count: additional_gids.len() });
    }
    let home = account.map(|account| account.home.clone()).filter(|home| home.starts_with('/'));
    Ok(Identity { user: User { uid, gid, additional_gids }, home })
}

/// A user or group as the request gives it: an integer of any size.
fn number(what: &'static str, value: i64) -> Result<u32, UserError> {
    u32::try_from(value).ok().filter(|id| i32::try_from(*id).is_ok()).ok_or(UserError::Range { what, value })
}

/// A user or group as a text gives it.
fn word(text: &str) -> Result<Word, UserError> {
    let bad = |reason| UserError::Text { text: text.chars().take(100).collect(), reason };
    let Some(first) = text.bytes().next() else { return Err(bad("empty")) };
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        if text.len() > 1 && first == b'0' {
            return Err(bad("a number with a leading zero: write it without"));
        }
        let id = text.parse().ok().filter(|id| i32::try_from(*id).is_ok());
        return id.map(Word::Number).ok_or_else(|| bad("a number above 2147483647"));
    }
    if !(first.is_ascii_alphabetic() || first == b'_') {
        return Err(bad("neither a number nor a name: a name starts with a letter or `_`"));
    }
    if text.len() > 255 {
        return Err(bad("longer than 255 characters"));
    }
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'@' | b'$' | b'+' | b'\\');
    if text.bytes().all(allowed) {
        Ok(Word::Name(text.to_owned()))
    } else {
        Err(bad("a name holds letters, digits and `_-.@$+\\` alone"))
    }
}

/// Usable lines alone: seven fields, a name, canonical ids in range.
fn accounts(root: &RootView) -> Result<Vec<Account>, UserError> {
    let text = read(root, "/etc/passwd")?;
    let accounts = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid, _, home) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (Ok(Word::Name(name)), Ok(Word::Number(uid)), Ok(Word::Number(gid))) = (word(name), word(uid), word(gid))
        else {
            return None;
        };
        Some(Account { name, uid, gid, home: home.to_owned() })
    });
    Ok(accounts.collect())
}

/// Usable lines alone: four fields, a name, a canonical id in range.
fn groups(root: &RootView) -> Result<Vec<Group>, UserError> {
    let text = read(root, "/etc/group")?;
    let groups = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (Ok(Word::Name(name)), Ok(Word::Number(gid))) = (word(name), word(gid)) else { return None };
        let members = members.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some(Group { name, gid, members })
    });
    Ok(groups.collect())
}

/// The file's text; an absent file is an empty one. Bytes that are not UTF-8 spoil only their own line.
fn read(root: &RootView, path: &str) -> Result<String, UserError> {
    match root.read(Path::new(path), FILE_MAX) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(FileError::Missing) => Ok(String::new()),
        Err(error) => Err(UserError::File { file: path.into(), reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests;
