//! The container's own output on its way from a pipe or terminal to the log file.
//! Runs in the shim's only thread; reads are non-blocking, a loud stream gets a bounded turn.
//! Owns the reading ends and, while there is data, the two buffers that all streams share.
//! Must never hold memory while the container is quiet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::attach::Attach;
use super::log::{Log, Prefix, Splitter, Stream};
use crate::clock;

/// First size of the read buffer: a page or two of it is touched by a container that says a line now and then.
const SMALL: usize = 16 * 1024;
/// Size of the read buffer of a loud container.
const LARGE: usize = 128 * 1024;
/// Records gathered before they are written.
const BATCH: usize = 192 * 1024;
/// Pipe of a loud container: it need not wait for this process to be scheduled.
const WIDE_PIPE: usize = 256 * 1024;
const NARROW_PIPE: usize = 64 * 1024;
/// Batches read from one stream before the others get their turn.
const TURN: usize = 4;
/// Buffers are given back after this long without output.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// The buffers, shared by all streams; empty while nothing is said.
#[derive(Default)]
pub(super) struct Scratch {
    input: Vec<u8>,
    records: Vec<u8>,
    used: Option<Instant>,
}

/// One stream of the container.
pub(super) struct Output {
    pub(super) stream: Stream,
    source: OwnedFd,
    splitter: Splitter,
    wide: bool,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// More will come, or is there already.
    Open,
    /// The last writer is gone; what waited has been written.
    Ended,
}

impl Scratch {
    /// When the buffers may be given back.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.used.map(|used| used + QUIET)
    }

    /// Gives the buffers back; true when that frees more than a few pages.
    pub(super) fn release(&mut self) -> bool {
        let large = self.input.capacity() > SMALL;
        *self = Scratch::default();
        large
    }

    /// Room for one read.
    fn ready(&mut self, now: Instant) {
        self.used = Some(now);
        self.input.clear();
        if self.input.capacity() == 0 {
            self.input = Vec::with_capacity(SMALL);
        }
    }

    fn grow(&mut self) {
        if self.input.capacity() < LARGE {
            self.input = Vec::with_capacity(LARGE);
            self.records = Vec::with_capacity(BATCH + LARGE / 2);
        }
    }
}

impl Output {
    /// Takes the reading end over; it must be non-blocking.
    pub(super) fn new(stream: Stream, source: OwnedFd, max_line: usize) -> Output {
        Output { stream, source, splitter: Splitter::new(max_line), wide: false }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// One turn: reads what is there, up to a bound, logs it, and passes it on to whoever is attached.
    pub(super) fn pump(&mut self, mut log: Option<&mut Log>, attached: &mut [Attach], scratch: &mut Scratch) -> Flow {
        for _ in 0..TURN {
            scratch.ready(Instant::now());
            let got = match rustix::io::read(&self.source, spare_capacity(&mut scratch.input)) {
                Ok(0) => {
                    self.finish(log, scratch);
                    return Flow::Ended;
                }
                Ok(got) => got,
                Err(Errno::AGAIN | Errno::INTR) => return Flow::Open,
                // A terminal without a process behind it says EIO; nothing else is known to happen.
                Err(_) => {
                    self.finish(log, scratch);
                    return Flow::Ended;
                }
            };
            for attach in attached.iter_mut() {
                attach.take(self.stream, &scratch.input);
            }
            if let Some(log) = log.as_deref_mut() {
                let moment = clock::now();
                let prefix = Prefix::new(self.stream, moment);
                let mut rest = scratch.input.as_slice();
                while !rest.is_empty() {
                    rest = self.splitter.push(rest, &prefix, &mut scratch.records, BATCH);
                    log.append(&scratch.records, moment);
                    scratch.records.clear();
                }
            }
            if got < scratch.input.capacity() {
                return Flow::Open;
            }
            scratch.grow();
            self.widen();
        }
        Flow::Open
    }

    /// Nothing more will be read: what waits for the end of its line is written.
    pub(super) fn finish(&mut self, log: Option<&mut Log>, scratch: &mut Scratch) {
        if let Some(log) = log {
            let moment = clock::now();
            scratch.records.clear();
            self.splitter.finish(&Prefix::new(self.stream, moment), &mut scratch.records);
            log.append(&scratch.records, moment);
            scratch.records.clear();
        }
    }

    /// The container is loud: let it write ahead. A limit on pipe memory is no reason to fail.
    fn widen(&mut self) {
        if !self.wide {
            self.wide = true;
            let _ = rustix::pipe::fcntl_setpipe_size(&self.source, WIDE_PIPE);
        }
    }

    /// The container is quiet again.
    pub(super) fn narrow(&mut self) {
        if self.wide && rustix::pipe::fcntl_setpipe_size(&self.source, NARROW_PIPE).is_ok() {
            self.wide = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piped(max: usize) -> (OwnedFd, Output) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
        (writer, Output::new(Stream::Stdout, reader, max))
    }

    #[test]
    fn what_is_written_is_logged_and_buffers_grow_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        let (writer, mut output) = piped(16 * 1024);
        let mut scratch = Scratch::default();
        assert_eq!(output.pump(Some(&mut log), &mut [], &mut scratch), Flow::Open);
        let block = format!("{}\n", "y".repeat(99)).repeat(640);
        for _ in 0..3 {
            assert_eq!(rustix::io::write(&writer, block.as_bytes()).unwrap(), block.len());
            while output.pump(Some(&mut log), &mut [], &mut scratch) == Flow::Open
                && rustix::io::ioctl_fionread(&output.source).unwrap() > 0
            {}
        }
        assert!(scratch.input.capacity() >= LARGE && output.wide);
        output.narrow();
        assert!(!output.wide && scratch.release() && scratch.input.capacity() == 0);
        rustix::io::write(&writer, b"last words").unwrap();
        drop(writer);
        assert_eq!(output.pump(Some(&mut log), &mut [], &mut scratch), Flow::Open);
        assert_eq!(output.pump(Some(&mut log), &mut [], &mut scratch), Flow::Ended);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3 * 640 + 1);
        assert!(text.ends_with(" stdout P last words\n"));
    }

    #[test]
    fn without_a_log_output_is_taken_and_forgotten() {
        let (writer, mut output) = piped(10);
        let mut scratch = Scratch::default();
        rustix::io::write(&writer, b"unheard\n").unwrap();
        assert_eq!(output.pump(None, &mut [], &mut scratch), Flow::Open);
        assert_eq!(rustix::io::ioctl_fionread(&output.source).unwrap(), 0);
    }
}
