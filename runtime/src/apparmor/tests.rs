use std::{
    cell::Cell,
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::*;

/// A host whose kernel's list is a file, and whose compiler counts and obeys.
struct Host {
    apparmor: AppArmor,
    list: tempfile::NamedTempFile,
}

thread_local! {
    static LOADS: Cell<usize> = const { Cell::new(0) };
    static ANSWER: Cell<Result<(), &'static str>> = const { Cell::new(Ok(())) };
}

fn load(text: &str) -> Result<(), String> {
    assert!(text.contains("profile keelson-default flags="), "{text}");
    LOADS.set(LOADS.get() + 1);
    ANSWER.get().map_err(str::to_owned)
}

fn host(enabled: bool, list: &str) -> Host {
    LOADS.set(0);
    ANSWER.set(Ok(()));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(list.as_bytes()).unwrap();
    let apparmor =
        AppArmor { enabled, loaded: file.path().to_owned(), load, turn: Mutex::default(), default: Mutex::default() };
    Host { apparmor, list: file }
}

impl Host {
    fn of(&self, apparmor: Asked, privileged: bool) -> Result<Option<String>, String> {
        let security = Security { apparmor, privileged, ..Default::default() };
        self.apparmor.of(&security).map_err(|error| error.to_string())
    }

    fn set(&self, list: &str) {
        self.list.as_file().set_len(0).unwrap();
        std::io::Seek::rewind(&mut self.list.as_file()).unwrap();
        self.list.as_file().write_all(list.as_bytes()).unwrap();
    }
}

const DEFAULT_LOADED: &str = "keelson-default (enforce)\n";

#[test]
fn a_kernel_without_apparmor_refuses_what_names_a_profile() {
    let host = host(false, "");
    assert!(host.of(Asked::Localhost("mine".into()), false).unwrap_err().contains("no AppArmor"));
    assert!(host.of(Asked::Localhost("mine".into()), true).is_err());
    for asked in [Asked::Unspecified, Asked::RuntimeDefault, Asked::Unconfined] {
        assert_eq!(host.of(asked, false), Ok(None));
    }
    assert_eq!(LOADS.get(), 0);
}

#[test]
fn a_profile_of_the_host_has_to_be_loaded() {
    let host = host(true, "mine (enforce)\nmine too (complain)\nmine//child (enforce)\nminer (enforce)\n");
    let of = |name: &str| host.of(Asked::Localhost(name.into()), false);
    assert_eq!(of("mine"), Ok(Some("mine".into())));
    assert_eq!(of("mine too"), Ok(Some("mine too".into())));
    assert_eq!(host.of(Asked::Localhost("mine".into()), true), Ok(Some("mine".into())), "also the privileged get it");
    for name in ["min", "mine t", "other", "unconfined", ""] {
        assert!(of(name).unwrap_err().contains("is not loaded on this node"), "{name}");
    }
    assert_eq!(LOADS.get(), 0);
}

#[test]
fn the_default_is_loaded_once_and_again_when_it_was_taken_away() {
    let host = host(true, "");
    for asked in [Asked::Unconfined, Asked::Localhost("other".into())] {
        let _ = host.of(asked, false);
    }
    assert_eq!(host.of(Asked::RuntimeDefault, true), Ok(None), "the privileged have none");
    assert_eq!(LOADS.get(), 0, "loaded for nobody");
    assert_eq!(host.of(Asked::RuntimeDefault, false), Ok(Some(DEFAULT.into())));
    host.set(DEFAULT_LOADED);
    for _ in 0..3 {
        assert_eq!(host.of(Asked::Unspecified, false), Ok(Some(DEFAULT.into())));
    }
    assert_eq!(LOADS.get(), 1);
    host.set("another (enforce)\n");
    host.of(Asked::RuntimeDefault, false).unwrap();
    assert_eq!(LOADS.get(), 2);
}

#[test]
fn a_profile_of_another_daemon_is_replaced() {
    let host = host(true, DEFAULT_LOADED);
    host.of(Asked::RuntimeDefault, false).unwrap();
    assert_eq!(LOADS.get(), 1, "who says that it is of this text?");
}

#[test]
fn without_the_means_who_asks_is_refused_and_who_does_not_runs_as_without_apparmor() {
    let host = host(true, "");
    ANSWER.set(Err("no compiler"));
    assert!(host.of(Asked::RuntimeDefault, false).unwrap_err().contains("no compiler"));
    assert_eq!(host.of(Asked::Unspecified, false), Ok(None));
    assert_eq!(LOADS.get(), 1, "not tried for each container");
    assert_eq!(host.apparmor.status(), AppArmorStatus { enabled: true, problem: Some("no compiler".into()) });
}

#[test]
fn those_who_come_at_once_wait_for_one_load() {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    fn slow(_: &str) -> Result<(), String> {
        COUNT.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }
    let mut host = host(true, DEFAULT_LOADED);
    host.apparmor.load = slow;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(host.of(Asked::RuntimeDefault, false), Ok(Some(DEFAULT.into()))));
        }
    });
    assert_eq!(COUNT.load(Ordering::SeqCst), 1);
}

/// The compiler's own judgement, where there is one; nothing is loaded.
#[test]
fn the_text_compiles() {
    let Ok(program) = parser::find() else {
        println!("SKIP the_text_compiles: no apparmor_parser here");
        return;
    };
    for abi in [false, Path::new(profile::ABI).exists()] {
        let mut child = std::process::Command::new(program)
            .args(["--skip-kernel-load", "--skip-cache", "--quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(profile::text(abi).as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}
