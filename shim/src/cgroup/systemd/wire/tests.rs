//! Messages against bytes written down by hand from the D-Bus specification, and a conversation with a made-up systemd.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::bus::Bus;
use super::*;

const MANAGER: &str = "org.freedesktop.systemd1.Manager";

#[test]
fn a_call_is_written_as_the_specification_says() {
    let address = Address { destination: "d.e", path: "/p", interface: "i.f" };
    let arguments =
        [Value::String("ab".into()), Value::Properties(vec![("N", Value::U64(258)), ("P", Value::U32s(vec![7]))])];
    let bytes = call(9, address, "Go", &arguments);
    #[rustfmt::skip]
    let expected: Vec<u8> = [
        // little-endian, call, no flags, version 1; body length, serial, length of the fields
        &b"l\x01\x00\x01"[..], &[0x3c, 0, 0, 0], &[9, 0, 0, 0], &[0x4c, 0, 0, 0],
        // path
        b"\x01\x01o\0", &[2, 0, 0, 0], b"/p\0", &[0; 5],
        // interface
        b"\x02\x01s\0", &[3, 0, 0, 0], b"i.f\0", &[0; 4],
        // member
        b"\x03\x01s\0", &[2, 0, 0, 0], b"Go\0", &[0; 5],
        // destination
        b"\x06\x01s\0", &[3, 0, 0, 0], b"d.e\0", &[0; 4],
        // signature, and the end of the header
        b"\x08\x01g\0", b"\x06sa(sv)\0", &[0; 4],
        // "ab"
        &[2, 0, 0, 0], b"ab\0", &[0; 1],
        // the array's length, its entries at multiples of eight
        &[0x2c, 0, 0, 0], &[0; 4],
        &[1, 0, 0, 0], b"N\0", b"\x01t\0", &[0; 7], &[2, 1, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0], b"P\0", b"\x02au\0", &[0; 2], &[4, 0, 0, 0], &[7, 0, 0, 0],
    ].concat();
    assert_eq!(bytes, expected, "\n{bytes:02x?}\n{expected:02x?}");
    let start: [u8; 16] = bytes[..16].try_into().unwrap();
    assert_eq!(total_length(&start).unwrap(), bytes.len());
}

/// A message from systemd, made by the writer with fields that only the other side sends.
fn message(kind: u8, fields: &[(u8, &str, &str)], reply_to: Option<u32>, body: &[u8], signature: &str) -> Vec<u8> {
    let mut writer = Writer(vec![b'l', kind, 0, 1]);
    writer.u32(length(body.len()));
    writer.u32(1);
    let mut all: Vec<(u8, &str, String)> =
        fields.iter().map(|(code, kind, value)| (*code, *kind, (*value).to_owned())).collect();
    all.push((SIGNATURE, "g", signature.to_owned()));
    all.extend(reply_to.map(|serial| (REPLY_SERIAL, "u", serial.to_string())));
    writer.array(8, &all, |to, (code, kind, value)| {
        to.align(8);
        to.0.push(*code);
        to.signature(kind);
        match *kind {
            "g" => to.signature(value),
            "u" => to.u32(value.parse().unwrap()),
            _ => to.string(value),
        }
    });
    writer.align(8);
    writer.0.extend(body);
    writer.0
}

fn job_removed(job: &str, result: &str) -> Vec<u8> {
    let mut body = Writer(Vec::new());
    body.u32(5);
    for text in [job, "x.scope", result] {
        body.string(text);
    }
    let fields = [(PATH, "o", "/org/freedesktop/systemd1"), (INTERFACE, "s", MANAGER), (MEMBER, "s", "JobRemoved")];
    message(SIGNAL, &fields, None, &body.0, "uoss")
}

fn text_body(text: &str) -> Vec<u8> {
    let mut body = Writer(Vec::new());
    body.string(text);
    body.0
}

#[test]
fn replies_errors_and_signals_are_read() {
    let reply =
        Message::parse(&message(RETURN, &[(DESTINATION, "s", ":1.2")], Some(7), &text_body("/job/1"), "o")).unwrap();
    assert_eq!((reply.kind, reply.reply_to, reply.first_text().unwrap().as_str()), (RETURN, Some(7), "/job/1"));
    let error = [(ERROR_NAME, "s", "org.freedesktop.systemd1.NoSuchUnit")];
    let error = Message::parse(&message(ERROR, &error, Some(8), &text_body("Unit x not loaded."), "s")).unwrap();
    assert_eq!(error.error, "org.freedesktop.systemd1.NoSuchUnit");
    assert_eq!(error.first_text().unwrap(), "Unit x not loaded.");
    let signal = Message::parse(&job_removed("/job/1", "done")).unwrap();
    assert_eq!(signal.job_removed().unwrap(), Some(("/job/1".into(), "done".into())));
    assert_eq!(reply.job_removed().unwrap(), None);
}

#[test]
fn a_torn_message_is_an_error_at_every_length() {
    let whole = job_removed("/job/1", "done");
    for length in 0..whole.len() {
        let torn = Message::parse(&whole[..length]).and_then(|message| message.job_removed());
        assert!(matches!(torn, Err(_) | Ok(None)), "{length}");
    }
    let mut wild = whole.clone();
    for at in 0..wild.len() {
        for byte in [0, 1, 0x7f, 0xff] {
            let kept = std::mem::replace(&mut wild[at], byte);
            let start: [u8; 16] = wild[..16].try_into().unwrap();
            let _ = total_length(&start);
            let _ = Message::parse(&wild).and_then(|message| message.job_removed());
            wild[at] = kept;
        }
    }
    assert!(total_length(b"B\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0").is_err(), "big-endian");
    assert!(total_length(b"l\x01\0\x01\xff\xff\xff\x7f\0\0\0\0\0\0\0\0").is_err(), "too long");
}

#[test]
fn a_conversation_waits_for_its_own_reply_and_its_own_job() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let systemd = std::thread::spawn(move || {
        let mut auth = Vec::new();
        while !auth.ends_with(b"BEGIN\r\n") {
            let mut byte = [0];
            theirs.read_exact(&mut byte).unwrap();
            auth.extend(byte);
        }
        theirs.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").unwrap();
        let mut start = [0; 16];
        theirs.read_exact(&mut start).unwrap();
        let mut rest = vec![0; total_length(&start).unwrap() - 16];
        theirs.read_exact(&mut rest).unwrap();
        // Another's job, our job's end before the reply, a reply to nobody, then ours.
        theirs.write_all(&job_removed("/job/other", "failed")).unwrap();
        theirs.write_all(&job_removed("/job/ours", "done")).unwrap();
        theirs.write_all(&message(RETURN, &[], Some(99), &text_body("/job/other"), "o")).unwrap();
        theirs.write_all(&message(RETURN, &[], Some(1), &text_body("/job/ours"), "o")).unwrap();
        theirs.write_all(&job_removed("/job/late", "timeout")).unwrap();
        auth
    });
    let mut bus = Bus::over(ours);
    bus.authenticate().unwrap();
    let reply = bus.call(MANAGER, "StartTransientUnit", &[Value::String("x.scope".into())]).unwrap();
    bus.await_job(&reply.first_text().unwrap()).unwrap();
    let error = bus.await_job("/job/late").unwrap_err();
    assert!(matches!(error, BusError::Job { ref result } if result == "timeout"), "{error}");
    let auth = systemd.join().unwrap();
    let uid: String = rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
    assert_eq!(auth, format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").into_bytes());
    assert!(matches!(bus.call(MANAGER, "Reload", &[]), Err(BusError::Talk { .. })), "systemd is gone");
}
