//! Interfaces of the host that a sandbox has while it lives, because a CDI device of one of its containers is such.
//! Blocks on netlink; on the blocking pool, while a container is created that asks for one, and while a sandbox is taken down.
//! Owns `interfaces.json` in the sandbox's run directory: written before an interface is moved. It stays with the sandbox beyond the
//! container, whose successor asks for it again. Must never let an interface go down with a sandbox's namespace.

use std::{io, sync::Mutex, sync::PoisonError};

use keelson_network::{Loan, LoanError, Netns, netns::NetnsError};
use rustix::io::Errno;

use crate::{
    dirs::SandboxDir,
    store::{read_bounded, write_new},
};

/// More than a host has.
const FILE_MAX: u64 = 1 << 20;
/// Containers of one sandbox are made at once.
static TURN: Mutex<()> = Mutex::new(());

/// Why an interface was not moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The record cannot be read or written.
    #[error("keep the record of lent interfaces")]
    Record(#[source] io::Error),
    /// The sandbox's network cannot be reached.
    #[error("reach the sandbox's network")]
    Namespace(#[source] NetnsError),
    /// Of one interface.
    #[error(transparent)]
    Loan(LoanError),
}

/// Moves those (`(host, sandbox)` names) that the sandbox has not yet. After a failure it has what it had before.
pub(crate) fn lend(dir: &SandboxDir, wanted: &[(String, String)]) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let netns = Netns::open(&dir.net()).map_err(Error::Namespace)?;
    let before = read(dir).map_err(Error::Record)?;
    let mut loans = before.clone();
    let lent = wanted.iter().try_for_each(|(host, pod)| {
        let at = match loans.iter().position(|loan| loan.host == *host && loan.pod == *pod) {
            Some(at) => at,
            None => {
                loans.push(Loan::of(host, pod).map_err(Error::Loan)?);
                write(dir, &loans).map_err(Error::Record)?;
                loans.len() - 1
            }
        };
        let Some(loan) = loans.get_mut(at) else { return Ok(()) };
        loan.index = loan.lend(&netns).map_err(Error::Loan)?;
        write(dir, &loans).map_err(Error::Record)
    });
    if lent.is_err() {
        let back = loans.iter().skip(before.len()).try_for_each(|loan| loan.give_back(&netns));
        // What is still there stays on record, for the sandbox's end.
        if back.is_ok() {
            write(dir, &before).map_err(Error::Record)?;
        }
    }
    lent
}

/// Moves all back to the host. Before the sandbox's network namespace goes.
pub(crate) fn give_back(dir: &SandboxDir) -> Result<(), Error> {
    let loans = read(dir).map_err(Error::Record)?;
    // Without its namespace there is nothing to be had any more.
    if loans.is_empty() || !dir.net().exists() {
        return Ok(());
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let netns = match Netns::open(&dir.net()) {
        Ok(netns) => netns,
        // A pin that was made and not yet mounted, or is unmounted already.
        Err(NetnsError::Enter { source }) if source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            return Ok(());
        }
        Err(error) => return Err(Error::Namespace(error)),
    };
    loans.iter().try_for_each(|loan| loan.give_back(&netns)).map_err(Error::Loan)?;
    write(dir, &[]).map_err(Error::Record)
}

fn read(dir: &SandboxDir) -> io::Result<Vec<Loan>> {
    match read_bounded(&dir.interfaces(), FILE_MAX) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn write(dir: &SandboxDir, loans: &[Loan]) -> io::Result<()> {
    // Whole or not at all: a daemon that is killed here must not lose what it wrote before.
    let new = dir.interfaces().with_extension("new");
    write_new(&new, &serde_json::to_vec(loans)?, 0o600)?;
    std::fs::rename(new, dir.interfaces())
}
