use std::{fs, io::Write as _, sync::Arc};

use super::*;
use crate::{sandbox::spec::SandboxSpec, store::record::tests::sandbox};

/// A host whose kernel knows every label: its file takes what is written to it.
fn host() -> (Selinux, tempfile::TempDir) {
    let kernel = tempfile::tempdir().unwrap();
    for (file, text) in [("enforce", "1"), ("mls", "1"), ("context", "")] {
        fs::File::create(kernel.path().join(file)).unwrap().write_all(text.as_bytes()).unwrap();
    }
    (Selinux(Policy::at(kernel.path(), Path::new("/no/such/folder"))), kernel)
}

fn record(level: Option<&str>, selinux: Option<SelinuxLabel>) -> SandboxRecord {
    let mut record = sandbox(1);
    record.spec = Arc::new(SandboxSpec { selinux, ..SandboxSpec::clone(&record.spec) });
    record.level = level.map(str::to_owned);
    record
}

fn level(level: &str) -> Option<SelinuxLabel> {
    Some(SelinuxLabel { level: level.into(), ..Default::default() })
}

fn process(host: &Selinux, record: &SandboxRecord, security: &Security) -> (String, String) {
    let labels = host.labels(record, security).unwrap().unwrap();
    (labels.process, labels.file)
}

#[test]
fn a_host_without_selinux_gives_no_label_and_refuses_those_asked_for() {
    let host = Selinux(None);
    assert_eq!(host.labels(&record(None, None), &Security::default()), Ok(None));
    assert_eq!(host.labels(&record(None, Some(SelinuxLabel::default())), &Security::default()), Ok(None));
    assert_eq!(host.wants_level(Some(&SelinuxLabel::default())), Ok(false));
    assert!(matches!(host.wants_level(level("s0").as_ref()), Err(Refusal::Unsupported(_))));
    let asked = Security { selinux: level("s0"), ..Default::default() };
    assert!(matches!(host.labels(&record(None, None), &asked), Err(Refusal::Unsupported(_))));
    assert!(matches!(host.labels(&record(None, level("s0")), &Security::default()), Err(Refusal::Unsupported(_))));
    assert_eq!(host.common(&record(Some("s0:c1,c2"), None)), None);
}

#[test]
fn containers_have_their_sandboxs_level_unless_they_name_another() {
    let (host, _kernel) = host();
    let sandbox = record(Some("s0:c1,c2"), None);
    let plain = ("system_u:system_r:container_t:s0:c1,c2".into(), "system_u:object_r:container_file_t:s0:c1,c2".into());
    assert_eq!(process(&host, &sandbox, &Security::default()), plain);
    let own = Security { selinux: level("s0:c7,c8"), ..Default::default() };
    let want = ("system_u:system_r:container_t:s0:c7,c8".into(), "system_u:object_r:container_file_t:s0:c7,c8".into());
    assert_eq!(process(&host, &sandbox, &own), want);
    let label = SelinuxLabel { user: "u".into(), role: "r".into(), kind: "t".into(), level: "s0:c4,c5".into() };
    let whole = Security { selinux: Some(label.clone()), ..Default::default() };
    assert_eq!(process(&host, &sandbox, &whole).0, "u:r:t:s0:c4,c5");
    // What the sandbox says counts for its containers too.
    let inherited = record(Some("s0:c4,c5"), Some(label));
    assert_eq!(process(&host, &inherited, &Security::default()).0, "u:r:t:s0:c4,c5");
    assert_eq!(process(&host, &inherited, &own).0, "u:r:t:s0:c7,c8");
    assert_eq!(host.common(&inherited).as_deref(), Some("system_u:object_r:container_file_t:s0:c4,c5"));
}

#[test]
fn the_privileged_are_confined_by_nothing_but_their_files_stay_the_sandboxs() {
    let (host, _kernel) = host();
    let privileged = Security { privileged: true, ..Default::default() };
    let (process, file) = process(&host, &record(Some("s0:c1,c2"), None), &privileged);
    assert_eq!(process, "system_u:system_r:spc_t:s0");
    assert_eq!(file, "system_u:object_r:container_file_t:s0:c1,c2");
}

#[test]
fn a_label_that_the_kernel_does_not_know_is_refused() {
    let (host, kernel) = host();
    assert_eq!(host.wants_level(None), Ok(true));
    // A folder takes nothing that is written.
    let context = kernel.path().join("context");
    fs::remove_file(&context).unwrap();
    fs::create_dir(&context).unwrap();
    assert!(matches!(host.labels(&record(None, None), &Security::default()), Err(Refusal::Invalid(_))));
    assert!(matches!(host.wants_level(level("s0").as_ref()), Err(Refusal::Invalid(_))));
    // Such a policy has no containers: those that ask for nothing get nothing, and it can be told.
    let host = Selinux(Policy::at(kernel.path(), Path::new("/no/such/folder")));
    assert_eq!(host.wants_level(None), Ok(false));
    assert_eq!(host.labels(&record(None, None), &Security::default()), Ok(None));
    assert!(host.status().problem.is_some());
}
