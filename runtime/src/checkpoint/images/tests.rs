//! T14: images as a hostile archive would have them. Each is an honest set with one thing changed; the honest set is taken.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;

use super::{
    super::wire::{self, put_bytes, put_number, put_text, write_image},
    *,
};

const FILTER: &[u8] = b"8 bytes.";

/// A message as its fields: nested ones are messages themselves.
#[derive(Clone)]
enum Field {
    Number(u64),
    Text(String),
    Message(Message),
}

type Message = Vec<(u64, Field)>;

fn n(field: u64, number: u64) -> (u64, Field) {
    (field, Field::Number(number))
}

fn t(field: u64, text: &str) -> (u64, Field) {
    (field, Field::Text(text.to_owned()))
}

fn m(field: u64, fields: Message) -> (u64, Field) {
    (field, Field::Message(fields))
}

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (field, value) in message {
        match value {
            Field::Number(number) => put_number(&mut bytes, *field, *number),
            Field::Text(text) => put_text(&mut bytes, *field, text),
            Field::Message(message) => put_bytes(&mut bytes, *field, &encode(message)),
        }
    }
    bytes
}

type Set = BTreeMap<String, Vec<Message>>;

fn ids(pid: u64, net: u64, mount: u64) -> Message {
    vec![n(1, 2), n(2, 2), n(3, 2), n(4, 2), n(5, pid), n(6, net), n(7, 3), n(8, 4), n(9, mount), n(10, 7), n(12, 5)]
}

fn creds() -> Message {
    let ids = (1..=8).map(|field| n(field, 100));
    let sets = [9, 10, 11, 12, 19].into_iter().flat_map(|field| [n(field, 33), n(field, 0)]);
    ids.chain(sets).chain([n(13, 0), n(14, 101), n(18, 1)]).collect()
}

fn thread(creds: Message) -> Message {
    vec![n(3, 0), n(4, 0), m(10, creds), n(11, 2), n(12, 0)]
}

fn task() -> Message {
    vec![m(8, vec![m(1, vec![n(1, 5), n(2, 10)])]), n(14, 100)]
}

fn honest() -> Set {
    let regular = |name: &str| vec![n(1, 1), n(2, 1), m(3, vec![n(1, 1), t(6, name)])];
    let mut set = Set::new();
    let mut add = |name: &str, messages: Vec<Message>| set.insert(format!("{name}.img"), messages);
    add("inventory", vec![vec![n(1, 2), m(3, ids(1, 2, 6))]]);
    add("pstree", vec![vec![n(1, 1), n(2, 0)], vec![n(1, 7), n(2, 1)]]);
    add("seccomp", vec![vec![m(1, vec![t(1, "8 bytes.")])]]);
    add("files", vec![regular("/bin/busybox"), vec![n(1, 1), n(2, 2), m(3, vec![t(6, "file[1:2]"), n(9, 1)])]]);
    add("ids-1", vec![ids(9, 2, 10)]);
    add("core-1", vec![vec![n(1, 1), m(3, task()), m(5, thread(creds()))]]);
    add("mountpoints-10", vec![vec![n(2, 43), t(7, "/")]]);
    add("mm-1", vec![vec![n(1, 1)]]);
    set
}

fn bounds() -> Bounds {
    Bounds {
        capabilities: 33,
        uid: 100,
        gids: vec![100, 101],
        no_new_privileges: true,
        seccomp: Some(FILTER.to_vec()),
        labelled: false,
        rlimits: vec![Some(10)],
        oom_score_adj: 100,
        stdio: vec!["file[1:2]".into()],
        host_network: true,
    }
}

fn taken(set: &Set, bounds: &Bounds) -> Result<Vec<String>, String> {
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    for (name, messages) in set {
        let messages: Vec<Vec<u8>> = messages.iter().map(encode).collect();
        let mut image = write_image(1, &messages);
        if name == "inventory.img" {
            image.splice(..8, wire::INVENTORY.to_le_bytes());
        }
        fs::write(from.join(name), image).unwrap();
    }
    fs::write(from.join("pages-1.img"), b"memory").unwrap();
    fs::write(from.join("cgroup.img"), b"not ours").unwrap();
    take(&from, &to, bounds).map_err(|error| error.to_string())?;
    let mut names: Vec<_> = fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    Ok(names)
}

#[test]
fn an_honest_set_is_taken_without_cgroups_and_mounts() {
    let names = taken(&honest(), &bounds()).unwrap();
    let wanted = [
        "core-1.img",
        "files.img",
        "ids-1.img",
        "inventory.img",
        "mm-1.img",
        "pages-1.img",
        "pstree.img",
        "seccomp.img",
    ];
    assert_eq!(names, wanted);
}

#[test]
fn a_process_that_had_ended_has_an_exit_code_and_nothing_else() {
    let with = |core: Message| {
        let mut set = honest();
        set.insert("core-7.img".into(), vec![core]);
        set
    };
    // As CRIU 4.1.1 writes it: state, exit code, personality, flags, signals, name.
    let ended = |state| with(vec![n(1, 1), m(3, vec![n(1, state), n(2, 0), n(3, 0), n(4, 0), n(5, 0), t(6, "sleep")])]);
    assert!(taken(&ended(2), &bounds()).unwrap().contains(&"core-7.img".to_owned()));
    for set in [ended(1), ended(3), ended(6), with(vec![n(1, 1)])] {
        assert!(taken(&set, &bounds()).unwrap_err().contains("a thread without a description"));
    }
    // One that is called dead and has a thread is looked at like any other.
    let thread = thread(creds().into_iter().filter(|(field, _)| *field != 3).collect());
    let set = with(vec![n(1, 1), m(3, vec![n(1, 2)]), m(5, thread)]);
    assert!(taken(&set, &bounds()).unwrap_err().contains("a user id is missing"));
}

#[track_caller]
fn refused(words: &str, change: impl FnOnce(&mut Set)) {
    let mut set = honest();
    change(&mut set);
    let error = taken(&set, &bounds()).expect_err(words);
    assert!(error.contains(words), "{error}");
}

fn put(set: &mut Set, name: &str, messages: Vec<Message>) {
    set.insert(format!("{name}.img"), messages);
}

/// The honest init with other credentials.
fn with_creds(set: &mut Set, change: impl FnOnce(&mut Message)) {
    let mut creds = creds();
    change(&mut creds);
    put(set, "core-1", vec![vec![n(1, 1), m(3, task()), m(5, thread(creds))]]);
}

/// The honest set with one more file open.
fn with_open(name: &str) -> Set {
    let mut set = honest();
    with_file(&mut set, vec![n(1, 1), n(2, 9), m(3, vec![t(6, name)])]);
    set
}

fn with_file(set: &mut Set, file: Message) {
    set.get_mut("files.img").unwrap().push(file);
}

#[test]
fn processes_in_the_runtime_s_own_namespaces_are_refused() {
    refused("PID or mount namespace", |set| put(set, "ids-1", vec![ids(1, 2, 10)]));
    refused("PID or mount namespace", |set| put(set, "ids-1", vec![ids(9, 2, 6)]));
    refused("of its own", |set| put(set, "ids-1", vec![ids(9, 8, 10)]));
    refused("more than one mount namespace", |set| put(set, "ids-7", vec![ids(9, 2, 11)]));
    refused("more than one mount namespace", |set| put(set, "mountpoints-11", vec![vec![n(2, 1), t(7, "/")]]));
    refused("not of the processes'", |set| drop(set.remove("ids-1.img")));
    refused("comes twice", |set| {
        set.get_mut("ids-1.img").unwrap()[0].push(n(9, 6));
    });
    refused("PID or mount namespace", |set| {
        set.get_mut("core-1.img").unwrap()[0].push(m(4, ids(1, 2, 6)));
    });
    refused("not the init", |set| put(set, "pstree", vec![vec![n(1, 7), n(2, 0)]]));
    refused("more than one tree", |set| put(set, "pstree", vec![vec![n(1, 1), n(2, 0)], vec![n(1, 7), n(2, 0)]]));
}

#[test]
fn rights_that_the_container_has_not_are_refused() {
    refused("capabilities", |set| {
        with_creds(set, |creds| creds.iter_mut().filter(|f| f.0 == 10).for_each(|f| f.1 = Field::Number(35)))
    });
    refused("capabilities", |set| {
        with_creds(set, |creds| {
            creds.retain_mut(|f| {
                f.0 != 12 || {
                    f.1 = Field::Number(1);
                    true
                }
            })
        })
    });
    refused("two words", |set| with_creds(set, |creds| creds.push(n(11, 0))));
    refused("user id", |set| with_creds(set, |creds| creds[2] = n(3, 0)));
    refused("user id is missing", |set| with_creds(set, |creds| creds.retain(|f| f.0 != 7)));
    refused("group id", |set| with_creds(set, |creds| creds[3] = n(4, 0)));
    refused("group id", |set| with_creds(set, |creds| creds.push(n(14, 0))));
    refused("gain privileges", |set| with_creds(set, |creds| creds.retain(|f| f.0 != 18)));
    refused("label or profile", |set| with_creds(set, |creds| creds.push(t(15, "system_u:system_r:spc_t:s0"))));
    refused("resource limit", |set| {
        let task = vec![m(8, vec![m(1, vec![n(1, 5), n(2, 11)])])];
        put(set, "core-1", vec![vec![n(1, 1), m(3, task), m(5, thread(creds()))]]);
    });
    refused("oom_score_adj", |set| {
        put(set, "core-1", vec![vec![n(1, 1), m(3, vec![n(14, 99)]), m(5, thread(creds()))]]);
    });
    refused("real-time", |set| {
        let mut thread = thread(creds());
        thread[1] = n(4, 1);
        put(set, "core-7", vec![vec![n(1, 1), m(5, thread)]]);
    });
    refused("raised priority", |set| {
        let mut thread = thread(creds());
        thread[0] = n(3, 39);
        put(set, "core-7", vec![vec![n(1, 1), m(5, thread)]]);
    });
    refused("without credentials", |set| put(set, "core-7", vec![vec![n(1, 1), m(5, vec![n(11, 2)])]]));
    refused("comes twice", |set| {
        let twice = vec![n(1, 1), m(5, thread(creds())), m(5, thread(creds()))];
        put(set, "core-7", vec![twice]);
    });
}

#[test]
fn a_thread_without_the_container_s_filter_is_refused() {
    let with = |set: &mut Set, mode, at| {
        let mut thread = thread(creds());
        thread.retain(|field| !matches!(field.0, 11 | 12));
        thread.extend([n(11, mode), n(12, at)]);
        put(set, "core-1", vec![vec![n(1, 1), m(3, task()), m(5, thread)]]);
    };
    refused("no system call filter", |set| with(set, 0, 0));
    refused("not there", |set| with(set, 2, 9));
    refused("not the container's", |set| put(set, "seccomp", vec![vec![m(1, vec![t(1, "allow it")])]]));
    refused("circle", |set| put(set, "seccomp", vec![vec![m(1, vec![t(1, "8 bytes."), n(2, 0)])]]));
    // A filter that the program put on top of it is its own business.
    let mut set = honest();
    put(&mut set, "seccomp", vec![vec![m(1, vec![t(1, "8 bytes.")]), m(1, vec![t(1, "another."), n(2, 0)])]]);
    with(&mut set, 2, 1);
    taken(&set, &bounds()).unwrap();
}

#[test]
fn files_that_belong_to_no_container_are_refused() {
    let regular = |name: &str, outside| vec![n(1, 1), m(3, vec![t(6, name), n(9, outside)])];
    refused("no standard stream", |set| with_file(set, regular("file[9:9]", 1)));
    refused("no standard stream", |set| with_file(set, regular("/etc/shadow", 1)));
    refused("plain path", |set| with_file(set, regular("/a/../../etc/shadow", 0)));
    refused("plain path", |set| with_file(set, regular("file[1:2]", 0)));
    for name in ["/proc/kmsg", "/proc/kallsyms", "/proc/7/mem", "/proc/1/pagemap", "/proc/7/net/../environ"] {
        assert!(taken(&with_open(name), &bounds()).is_err(), "{name}");
    }
    for name in ["/proc/7/stat", "/proc/meminfo", "/proc/sys/kernel/hostname", "/proc/7/net/tcp", "/procfile"] {
        taken(&with_open(name), &bounds()).unwrap();
    }
    for kind in [0, 10, 11, 12, 14, 15, 16, 19, 21, 127] {
        refused("belongs to no container", |set| with_file(set, vec![n(1, kind), n(2, 9)]));
    }
    refused("raw socket", |set| with_file(set, vec![n(1, 4), m(4, vec![n(4, 3)])]));
    refused("port of the host", |set| with_file(set, vec![n(1, 4), m(4, vec![n(4, 1), n(7, 80)])]));
    refused("mark", |set| with_file(set, vec![n(1, 4), m(4, vec![n(4, 1), m(14, vec![n(10, 1)])])]));
    refused("set-id", |set| put(set, "ghost-file-1", vec![vec![n(1, 0), n(2, 0), n(3, 0o104_755)]]));
    refused("no regular file", |set| put(set, "ghost-file-1", vec![vec![n(1, 0), n(2, 0), n(3, 0o060_660), n(6, 1)]]));
    refused("another name", |set| put(set, "remap-fpath", vec![vec![n(1, 1), n(2, 2), n(3, 0)]]));
}

#[test]
fn images_that_no_container_s_checkpoint_has_are_refused() {
    for name in [
        "netdev-9",
        "tmpfs-dev-41.tar.gz",
        "userns-9",
        "apparmor",
        "reg-files",
        "tty-info",
        "ipcns-shm-9",
        "core-x",
        "core-",
    ] {
        refused("no such image", |set| put(set, name, Vec::new()));
    }
    refused("plugins", |set| put(set, "inventory", vec![vec![m(3, ids(1, 2, 6)), m(12, vec![t(12, "cuda_plugin")])]]));
    refused("missing", |set| drop(set.remove("pstree.img")));
}

#[test]
fn links_among_the_images_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc/shadow", scratch.path().join("pages-1.img")).unwrap();
    let error = take(scratch.path(), scratch.path(), &bounds()).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}
