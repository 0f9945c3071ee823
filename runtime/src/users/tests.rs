use super::*;
use crate::store::write_new;

/// An image with these files, and its view.
fn image(passwd: &str, group: &str) -> (tempfile::TempDir, RootView) {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir(scratch.path().join("etc")).unwrap();
    write_new(&scratch.path().join("etc/passwd"), passwd.as_bytes(), 0o644).unwrap();
    write_new(&scratch.path().join("etc/group"), group.as_bytes(), 0o644).unwrap();
    let view = RootView::open(&[scratch.path().to_owned()]).unwrap();
    (scratch, view)
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    # a comment\n\
    web:x:1000:1001:Web:/home/web:/bin/sh\n\
    2147483648:x:0:0::/:/bin/sh\n\
    4294967296:x:0:0::/:/bin/sh\n\
    00:x:0:0::/:/bin/sh\n\
    0x0:x:0:0::/:/bin/sh\n\
    -1:x:0:0::/:/bin/sh\n\
    huge:x:4294967296:0::/:/bin/sh\n\
    minus:x:-1:-1::/:/bin/sh\n\
    nohome:x:1003:1003::nowhere:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwheel:x:10:root,web\nstaff:x:50:web, other\nbad:x:99999999999:web\n";

fn user(security: &Security, image_user: &str) -> Result<Identity, UserError> {
    let (_scratch, view) = image(PASSWD, GROUP);
    resolve(security, image_user, &view)
}

#[test]
fn the_images_user_is_made_numbers() {
    for (text, uid, gid, groups) in [
        ("", 0, 0, vec![0, 10]),
        ("0", 0, 0, vec![0, 10]),
        ("root", 0, 0, vec![0, 10]),
        ("web", 1000, 1001, vec![1001, 10, 50]),
        ("1000", 1000, 1001, vec![1001, 10, 50]),
        ("web:wheel", 1000, 10, vec![10, 50]),
        ("1000:7", 1000, 7, vec![7, 10, 50]),
        ("4242", 4242, 0, vec![0]),
        ("4242:50", 4242, 50, vec![50]),
        ("2147483647", 2_147_483_647, 0, vec![0]),
    ] {
        let got = user(&Security::default(), text).unwrap();
        assert_eq!(got.user, User { uid, gid, additional_gids: groups }, "{text}");
    }
}

#[test]
fn neither_numbers_nor_names_are_refused_whatever_the_passwd_file_says() {
    for text in [
        "2147483648",
        "4294967296",
        "99999999999",
        "-1",
        "0x0",
        "00",
        "0 ",
        " 0",
        "+0",
        "0:",
        ":0",
        ":",
        "0:00",
        "0:-1",
        "web:",
        "we b",
        "web\n",
        "w\u{e9}b",
        "huge",
        "minus",
        "nobody",
        "web:nogroup",
        "0:bad",
        "0\0",
        "1e3",
        "web:10:10",
    ] {
        assert!(user(&Security::default(), text).is_err(), "{text:?}");
        let security = Security { run_as: RunAs::Name(text.into()), ..Default::default() };
        assert!(user(&security, "").is_err(), "run as {text:?}");
    }
}

#[test]
fn numbers_of_the_request_are_checked_too() {
    for value in [-1, 2_147_483_648, 4_294_967_296, i64::MIN, i64::MAX] {
        let uid = Security { run_as: RunAs::Uid(value), ..Default::default() };
        let gid = Security { run_as: RunAs::Uid(1), run_as_group: Some(value), ..Default::default() };
        let group = Security { supplementary_groups: vec![value], ..Default::default() };
        for security in [uid, gid, group] {
            assert!(matches!(user(&security, ""), Err(UserError::Range { .. })), "{security:?}");
        }
    }
}

#[test]
fn a_group_needs_a_user() {
    let security = Security { run_as_group: Some(5), ..Default::default() };
    assert!(matches!(user(&security, "web"), Err(UserError::GroupWithoutUser)));
}

#[test]
fn the_request_rules_and_policies_differ_in_the_images_groups_alone() {
    let merge = Security {
        run_as: RunAs::Uid(1000),
        run_as_group: Some(3000),
        supplementary_groups: vec![4000, 3000, 4000],
        ..Default::default()
    };
    assert_eq!(user(&merge, "root:root").unwrap().user.additional_gids, [3000, 4000, 10, 50]);
    let strict = Security { groups_policy: GroupsPolicy::Strict, ..merge };
    assert_eq!(user(&strict, "root:root").unwrap().user.additional_gids, [3000, 4000]);
    let named = Security { run_as: RunAs::Name("web".into()), ..Default::default() };
    assert_eq!(user(&named, "0").unwrap().user.uid, 1000);
}

#[test]
fn home_comes_from_the_image_when_it_is_a_path() {
    assert_eq!(user(&Security::default(), "web").unwrap().home.as_deref(), Some("/home/web"));
    assert_eq!(user(&Security::default(), "nohome").unwrap().home, None);
    assert_eq!(user(&Security::default(), "4242").unwrap().home, None);
}

#[test]
fn a_hostile_passwd_file_is_an_error_and_never_a_hang() {
    let (scratch, view) = image(PASSWD, GROUP);
    let passwd = scratch.path().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(matches!(resolve(&Security::default(), "web", &view), Err(UserError::File { .. })));
    std::fs::remove_file(&passwd).unwrap();
    std::os::unix::fs::symlink("/proc/self/environ", &passwd).unwrap();
    // A dangling link inside the image: as if there were no file.
    assert!(matches!(resolve(&Security::default(), "web", &view), Err(UserError::Unknown { .. })));
    assert_eq!(resolve(&Security::default(), "7", &view).unwrap().user.uid, 7);
}

proptest::proptest! {
    #[test]
    fn any_text_and_any_files_give_small_numbers_or_an_error(text in ".{0,20}", passwd in "(.{0,60}\n){0,5}", group in "(.{0,60}\n){0,5}") {
        let (_scratch, view) = image(&passwd, &group);
        if let Ok(identity) = resolve(&Security::default(), &text, &view) {
            let max = u32::try_from(i32::MAX).unwrap();
            proptest::prop_assert!(identity.user.uid <= max && identity.user.gid <= max);
            proptest::prop_assert!(identity.user.additional_gids.iter().all(|gid| *gid <= max));
        }
    }
}
