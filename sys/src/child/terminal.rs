//! A terminal of the container's own devpts, made without trusting a path: the peer comes from the master by ioctl.
//! Runs in the child before exec.
//! Owns nothing afterwards: the streams belong to the program, the master to the parent.
//! Must never open a terminal by name (CVE-2025-52565).

use rustix::io::{self, Errno};

use super::mount::Places;
use super::op::{Node, Terminal};
use super::resolve;
use crate::raw;

const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// An error's number is 0 for the terminal itself, 1 for the console.
pub(super) fn open(places: &Places, terminal: Terminal, socket: i32) -> Result<(), (u32, Errno)> {
    let master = master(places).map_err(|errno| (0, errno))?;
    let slave = peer(master, terminal).map_err(|errno| (0, errno))?;
    if terminal.console {
        places.bind(slave, c"/dev/console", Node::File).map_err(|errno| (1, errno))?;
    }
    connect(master, slave, socket).map_err(|errno| (0, errno))
}

fn master(places: &Places) -> io::Result<i32> {
    let found = if places.pts >= 0 {
        places.pts
    } else {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        raw::openat2(places.root, c"/dev/pts", flags, 0, resolve::IN_ROOT | resolve::NO_MAGICLINKS)?
    };
    if raw::filesystem(found)? != DEVPTS_SUPER_MAGIC {
        return Err(Errno::NODEV);
    }
    let resolve = resolve::BENEATH | resolve::NO_SYMLINKS | resolve::NO_XDEV;
    raw::openat2(found, c"ptmx", libc::O_RDWR | libc::O_NOCTTY, 0, resolve)
}

fn peer(master: i32, terminal: Terminal) -> io::Result<i32> {
    let unlocked = 0_i32;
    raw::ioctl(master, libc::TIOCSPTLCK, (&raw const unlocked) as usize)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let slave = raw::ioctl(master, libc::TIOCGPTPEER, flags as usize)? as i32;
    if let Some((rows, columns)) = terminal.size {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        raw::ioctl(master, libc::TIOCSWINSZ, (&raw const size) as usize)?;
    }
    if terminal.uid != 0 {
        raw::fchownat(slave, c"", terminal.uid, u32::MAX, libc::AT_EMPTY_PATH)?;
    }
    Ok(slave)
}

fn connect(master: i32, slave: i32, socket: i32) -> io::Result<()> {
    raw::ioctl(slave, libc::TIOCSCTTY, 0)?;
    for stream in 0..3 {
        raw::dup3(slave, stream, 0)?;
    }
    raw::send_fd(socket, master, &[super::TERMINAL])?;
    raw::close(master);
    raw::close(slave);
    Ok(())
}
