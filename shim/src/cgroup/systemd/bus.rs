//! A connection to systemd: its own socket, which works without a bus, or else the system bus.
//! Blocking, with a deadline for each wait; whoever talks to systemd.
//! Owns one stream socket.
//! Must never wait without end: a systemd that does not answer fails one container, not the shim.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::wire::{self, Address, Message, Value};
use super::{BusError, MANAGER};

const PRIVATE: &str = "/run/systemd/private";
const SYSTEM: &str = "/run/dbus/system_bus_socket";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const PATIENCE: Duration = Duration::from_secs(30);
/// Hexadecimal digits of the server's id.
const GUID: usize = 32;

pub(super) struct Bus<S = UnixStream> {
    stream: S,
    serial: u32,
    /// Jobs that ended while something else was awaited.
    ended: Vec<(String, String)>,
    deadline: Instant,
}

impl Bus {
    pub(super) fn connect() -> Result<Bus, BusError> {
        let deadline = Instant::now() + PATIENCE;
        let open = |path| {
            let stream = UnixStream::connect(path).map_err(|source| BusError::Connect { path, source })?;
            stream.set_read_timeout(Some(PATIENCE)).map_err(|source| BusError::Talk { source })?;
            stream.set_write_timeout(Some(PATIENCE)).map_err(|source| BusError::Talk { source })?;
            Ok(Bus { stream, serial: 0, ended: Vec::new(), deadline })
        };
        match open(PRIVATE).and_then(|mut bus| bus.authenticate().map(|()| bus)) {
            // Here systemd sends its signals to everyone who is connected.
            Ok(bus) => Ok(bus),
            Err(_) => {
                let mut bus = open(SYSTEM)?;
                bus.authenticate()?;
                bus.greet()?;
                Ok(bus)
            }
        }
    }
}

impl<S: Read + Write> Bus<S> {
    #[cfg(test)]
    pub(super) fn over(stream: S) -> Bus<S> {
        Bus { stream, serial: 0, ended: Vec::new(), deadline: Instant::now() + PATIENCE }
    }

    /// SASL's EXTERNAL: the kernel vouches for the user id. All in one write: systemd does not look at a message that it has
    /// received in one piece with a BEGIN of its own until something else arrives, and answers never.
    pub(super) fn authenticate(&mut self) -> Result<(), BusError> {
        let uid: String = rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes())?;
        // Signals may follow at once: not a byte more than the line.
        let mut reply = vec![0; "OK \r\n".len() + GUID];
        self.receive(reply.get_mut(..3).unwrap_or_default())?;
        if reply.starts_with(b"OK ") {
            self.receive(reply.get_mut(3..).unwrap_or_default())?;
        }
        match reply.starts_with(b"OK ") && reply.ends_with(b"\r\n") {
            true => Ok(()),
            false => Err(BusError::Authenticate {
                reply: String::from_utf8_lossy(&reply).trim_matches(['\0', '\r', '\n']).to_owned(),
            }),
        }
    }

    /// On a bus one has to say hello, and ask for signals.
    fn greet(&mut self) -> Result<(), BusError> {
        let driver = Address {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
        };
        self.call_at(driver, "Hello", &[])?;
        let rule = format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'");
        self.call_at(driver, "AddMatch", &[Value::String(rule)])?;
        self.call(MANAGER, "Subscribe", &[])?;
        Ok(())
    }

    pub(super) fn call(&mut self, interface: &str, member: &str, arguments: &[Value]) -> Result<Message, BusError> {
        self.call_at(Address { destination: SYSTEMD, path: OBJECT, interface }, member, arguments)
    }

    fn call_at(&mut self, address: Address<'_>, member: &str, arguments: &[Value]) -> Result<Message, BusError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&wire::call(serial, address, member, arguments))?;
        loop {
            let message = self.next()?;
            match message.kind {
                wire::RETURN if message.reply_to == Some(serial) => return Ok(message),
                wire::ERROR if message.reply_to == Some(serial) => {
                    let text = message.first_text()?;
                    return Err(BusError::Refused { name: message.error, message: text });
                }
                _ => self.ended.extend(message.job_removed()?),
            }
        }
    }

    /// Waits until the job has ended, well.
    pub(super) fn await_job(&mut self, job: &str) -> Result<(), BusError> {
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| ended == job) {
                return match result.as_str() {
                    "done" => Ok(()),
                    _ => Err(BusError::Job { result: result.clone() }),
                };
            }
            let message = self.next()?;
            self.ended.extend(message.job_removed()?);
        }
    }

    fn next(&mut self) -> Result<Message, BusError> {
        let mut start = [0; 16];
        self.receive(&mut start)?;
        let mut bytes = vec![0; wire::total_length(&start)?];
        let (head, rest) = bytes.split_at_mut(16);
        head.copy_from_slice(&start);
        self.receive(rest)?;
        Message::parse(&bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), BusError> {
        self.stream.write_all(bytes).map_err(failed)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), BusError> {
        // Signals of other units must not keep us here for ever.
        if Instant::now() > self.deadline {
            return Err(BusError::Timeout { seconds: PATIENCE.as_secs() });
        }
        self.stream.read_exact(bytes).map_err(failed)
    }
}

fn failed(source: std::io::Error) -> BusError {
    match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => BusError::Timeout { seconds: PATIENCE.as_secs() },
        _ => BusError::Talk { source },
    }
}
