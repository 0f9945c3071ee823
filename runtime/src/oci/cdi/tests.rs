use std::fs;

use super::*;

/// Folders in their order of rank, with files as name and text.
struct Folders {
    scratch: tempfile::TempDir,
    folders: Vec<PathBuf>,
}

fn node(files: &[(&str, &str)]) -> Folders {
    let scratch = tempfile::tempdir().unwrap();
    let folders = vec![scratch.path().join("etc"), scratch.path().join("run")];
    for (path, text) in files {
        let path = scratch.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        crate::store::write_new(&path, text.as_bytes(), 0o644).unwrap();
    }
    Folders { scratch, folders }
}

impl Folders {
    fn resolve(&self, names: &[&str]) -> Result<Edits, ContainerError> {
        resolve(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), &self.folders)
    }

    fn refusal(&self, name: &str) -> String {
        self.resolve(&[name]).unwrap_err().to_string()
    }
}

const FULL: &str = r#"{
  "cdiVersion": "1.1.0", "kind": "vendor.com/gpu", "annotations": {"a": "b"},
  "containerEdits": {
    "env": ["ALL=1"],
    "hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook", "args": ["hook", "x"], "env": ["A=b"], "timeout": 5}]
  },
  "devices": [
    {"name": "0", "containerEdits": {
      "env": ["GPU=0"],
      "deviceNodes": [
        {"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "fileMode": 438, "permissions": "rw", "uid": 7},
        {"path": "/dev/nothing", "hostPath": "/dev/null"}
      ],
      "mounts": [{"hostPath": "/usr/lib/libgpu.so", "containerPath": "/usr/lib/libgpu.so", "options": ["ro", "nosuid"]}],
      "additionalGids": [44, 0]
    }},
    {"name": "1", "containerEdits": {"env": ["GPU=1"]}}
  ]
}"#;

#[test]
fn a_device_brings_its_own_edits_and_those_of_its_spec_once() {
    let node = node(&[("etc/v.json", FULL)]);
    let edits = node.resolve(&["vendor.com/gpu=0", "vendor.com/gpu=1", "vendor.com/gpu=0"]).unwrap();
    assert_eq!(edits.environment().collect::<Vec<_>>(), [("ALL", "1"), ("GPU", "0"), ("GPU", "1")]);
    assert_eq!(edits.groups(), [44]);
    let nodes = edits.nodes(1000, 100);
    assert_eq!((nodes[0].major(), nodes[0].minor(), nodes[0].uid(), nodes[0].gid()), (195, 0, Some(7), Some(100)));
    assert_eq!((nodes[1].path().as_path(), nodes[1].major(), nodes[1].minor()), (Path::new("/dev/nothing"), 1, 3));
    assert_eq!((nodes[0].file_mode(), nodes[1].file_mode()), (Some(0o666), None));
    let access: Vec<_> = edits.rules().iter().map(|rule| rule.access().clone().unwrap()).collect();
    assert_eq!(access, ["rw", "rwm"]);
    let mounts = edits.mounts();
    assert_eq!(mounts[0].options().clone().unwrap(), ["bind", "ro", "nosuid"]);
    let hooks = edits.hooks().unwrap();
    assert_eq!(hooks.create_container().as_ref().unwrap().len(), 1);
    assert!(hooks.poststop().is_none());
}

#[test]
fn yaml_is_read_as_vendors_write_it() {
    let text = "---\ncdiVersion: \"0.6.0\"\nkind: vendor.com/net.x\ndevices:\n- name: nic0\n  annotations: {slot: \"3\"}\n  \
        containerEdits:\n    deviceNodes:\n    - path: /dev/x\n      type: c\n      major: 10\n      minor: 0x10\n      \
        fileMode: 0660\n    env: [A=1, 'B=x: y']\n";
    let node = node(&[("run/v.yaml", text)]);
    let edits = node.resolve(&["vendor.com/net.x=nic0"]).unwrap();
    assert_eq!((edits.nodes[0].minor, edits.nodes[0].mode), (16, Some(0o660)));
    assert_eq!(edits.env, ["A=1", "B=x: y"]);
}

#[test]
fn the_later_folder_rules_and_two_files_of_one_folder_may_not_disagree() {
    let spec = |value: &str| {
        format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "v.com/d", "devices": [{{"name": "x", "containerEdits": {{"env": ["A={value}"]}}}}]}}"#
        )
    };
    let two = node(&[("etc/v.json", &spec("etc")), ("run/other.json", &spec("run"))]);
    assert_eq!(two.resolve(&["v.com/d=x"]).unwrap().env, ["A=run"]);
    let torn = node(&[("run/a.json", &spec("a")), ("run/b.yaml", &spec("b")), ("run/.c.json", &spec("c"))]);
    let text = torn.refusal("v.com/d=x");
    assert!(text.contains("described twice") && text.contains("a.json") && text.contains("b.yaml"), "{text}");
}

#[test]
fn what_cannot_be_resolved_says_where_was_looked_and_what_is_there() {
    let node = node(&[("etc/v.json", FULL), ("etc/bad.json", "{\"cdiVersion\""), ("run/notes.txt", "not a spec")]);
    let text = node.refusal("other.com/gpu=0");
    assert!(text.contains("`other.com/gpu=0`") && text.contains("bad.json"), "{text}");
    assert!(node.folders.iter().all(|folder| text.contains(&*folder.to_string_lossy())), "{text}");
    let text = node.refusal("vendor.com/gpu=9");
    assert!(text.contains("there are: 0, 1"), "{text}");
    assert!(node.refusal("vendor.com/gpu").contains("has no `=`"));
    assert!(node.resolve(&["vendor.com/gpu=1"]).is_ok(), "a bad file hides no good one");
    fs::remove_dir_all(node.scratch.path().join("etc")).unwrap();
    assert!(node.refusal("vendor.com/gpu=0").contains("no spec in"));
}

#[test]
fn interfaces_shares_of_cache_and_late_hooks_are_read() {
    let edits = r#""netDevices": [{"hostInterfaceName": "ens1f0v3", "name": "net1"}, {"hostInterfaceName": "ib0"}],
        "intelRdt": {"closID": "gold", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50\n", "schemata": ["L2:0=3"], "enableMonitoring": true},
        "hooks": [{"hookName": "poststart", "path": "/x"}, {"hookName": "poststop", "path": "/y", "timeout": 3}]"#;
    let spec = format!(
        r#"{{"cdiVersion": "1.1.0", "kind": "v.com/d", "devices": [{{"name": "x", "containerEdits": {{{edits}}}}}]}}"#
    );
    let edits = node(&[("etc/v.json", &spec)]).resolve(&["v.com/d=x"]).unwrap();
    let names = |host: &str, pod: &str| (host.to_owned(), pod.to_owned());
    assert_eq!(edits.interfaces, [names("ens1f0v3", "net1"), names("ib0", "ib0")]);
    let rdt = edits.rdt.as_ref().unwrap();
    assert_eq!(
        (rdt.clos_id.as_str(), rdt.lines(), rdt.monitors()),
        ("gold", vec!["L3:0=f", "MB:0=50", "L2:0=3"], true)
    );
    let hooks = edits.hooks().unwrap();
    assert_eq!(hooks.poststart().as_ref().unwrap()[0].timeout(), Some(60), "a hook without a time gets one");
    assert_eq!(hooks.poststop().as_ref().unwrap()[0].timeout(), Some(3));
}

#[test]
fn what_cannot_be_given_is_refused_by_name() {
    for (edit, words) in [
        (
            r#""netDevices": [{"hostInterfaceName": "a", "name": "n"}, {"hostInterfaceName": "b", "name": "n"}]"#,
            "conflicts",
        ),
        (r#""deviceNodes": [{"path": "/dev/no-such-device"}]"#, "/dev/no-such-device"),
        (r#""deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]"#, "not a device"),
        (r#""deviceNodes": [{"path": "/dev/null", "type": "b"}]"#, "is of type c"),
    ] {
        let spec = format!(
            r#"{{"cdiVersion": "1.1.0", "kind": "v.com/d", "devices": [{{"name": "x", "containerEdits": {{{edit}}}}}]}}"#
        );
        let text = node(&[("etc/v.json", &spec)]).refusal("v.com/d=x");
        assert!(text.contains(words) && text.contains("v.com/d=x"), "{text}");
    }
}

#[test]
fn a_spec_that_is_not_right_in_full_is_not_used() {
    let with = |version: &str, kind: &str, edit: &str| {
        format!(
            r#"{{"cdiVersion": "{version}", "kind": "{kind}", "devices": [{{"name": "x", "containerEdits": {{{edit}}}}}]}}"#
        )
    };
    let many = format!(r#""env": [{}]"#, vec!["\"A=1\""; 20_000].join(","));
    for (version, kind, edit, words) in [
        ("2.0.0", "v.com/d", "", "cdiVersion `2.0.0`"),
        ("v1.0.0", "v.com/d", "", "cdiVersion `v1.0.0`"),
        ("1.0.0", "v.com", "", "has no `/`"),
        ("0.6.0", "v.com/d", r#""additionalGids": [1]"#, "additionalGids needs cdiVersion 0.7.0"),
        ("1.0.0", "v.com/d", r#""netDevices": [{"hostInterfaceName": "a"}]"#, "netDevices needs cdiVersion 1.1.0"),
        (
            "0.4.0",
            "v.com/d",
            r#""deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}]"#,
            "needs cdiVersion 0.5.0",
        ),
        ("0.3.0", "v.com/d", r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]"#, "0.4.0"),
        ("0.5.0", "v.com/d.e", "", "a class with a dot needs"),
        ("1.1.0", "v.com/d", r#""newField": 1"#, "newField"),
        ("1.1.0", "v.com/d", r#""env": ["NOVALUE"]"#, "is not NAME=value"),
        ("1.1.0", "v.com/d", r#""mounts": [{"hostPath": "/a", "containerPath": "/b/../../etc"}]"#, "without `..`"),
        ("1.1.0", "v.com/d", r#""mounts": [{"hostPath": "/a", "containerPath": "/"}]"#, "over `/`"),
        ("1.1.0", "v.com/d", r#""mounts": [{"hostPath": "a", "containerPath": "/b"}]"#, "absolute"),
        ("1.1.0", "v.com/d", r#""hooks": [{"hookName": "onStart", "path": "/x"}]"#, "hook `onStart`"),
        ("1.1.0", "v.com/d", r#""hooks": [{"hookName": "prestart", "path": "x"}]"#, "hooks.path"),
        ("1.1.0", "v.com/d", r#""hooks": [{"hookName": "prestart", "path": "/x", "timeout": 0}]"#, "timeout"),
        ("1.1.0", "v.com/d", r#""deviceNodes": [{"path": "/dev/x", "permissions": "rwx"}]"#, "rwm"),
        ("1.1.0", "v.com/d", r#""netDevices": [{"hostInterfaceName": "eth%d"}]"#, "no name of an interface"),
        ("1.1.0", "v.com/d", r#""netDevices": [{"hostInterfaceName": "eth0", "name": "../x"}]"#, "netDevices.name"),
        ("1.1.0", "v.com/d", r#""netDevices": [{"hostInterfaceName": "lo"}]"#, "no name of an interface"),
        ("1.1.0", "v.com/d", r#""intelRdt": {"closID": "../../etc"}"#, "intelRdt.closID"),
        ("1.1.0", "v.com/d", r#""intelRdt": {"schemata": ["x"]}"#, "RESOURCE"),
        ("1.1.0", "v.com/d", &many, "more than 16384 changes"),
    ] {
        let text = node(&[("etc/v.json", &with(version, kind, edit))]).refusal("v.com/d=x");
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn hostile_files_cost_a_line_each_and_no_more() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
        d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    let deep = "[".repeat(100_000);
    let big = " ".repeat((8 << 20) + 1);
    let node = node(&[
        ("etc/bomb.yaml", bomb),
        ("etc/deep.json", &deep),
        ("etc/deep.yaml", &deep),
        ("etc/big.json", &big),
        ("etc/good.json", FULL),
    ]);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        node.scratch.path().join("etc/pipe.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let found = folder::read(&node.folders);
    assert_eq!(found.problems.len(), 5, "{:?}", found.problems);
    assert!(found.problems.iter().all(|problem| problem.len() < 400), "{:?}", found.problems);
    assert!(node.resolve(&["vendor.com/gpu=1"]).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_spec_or_refused(text in "[\\PC\n:\\-{}\\[\\]\"]{0,200}") {
        let node = node(&[("etc/a.yaml", &text), ("etc/b.json", &text)]);
        proptest::prop_assert!(node.resolve(&["v.com/d=x"]).is_err());
    }
}
