//! Images as volumes, and sources that must not move: what is mounted, where links lead, and what is refused.

use std::fs;
use std::os::unix::fs::symlink;

use keelson_shim::launch::ImageVolume;
use keelson_shim::spec::Mount;

use crate::harness::{Bundle, bind};
use crate::namespaces::with_user_namespace;

/// Two layers as the daemon gives them: an empty top, a tree below.
fn image(bundle: &mut Bundle, destination: &str, sub_path: &str) {
    let path = bundle.folder.path();
    let (top, layer) = (path.join("image-top"), path.join("image-layer"));
    if !top.exists() {
        fs::create_dir(&top).unwrap();
        fs::create_dir_all(layer.join("etc/deep")).unwrap();
        fs::write(layer.join("etc/passwd"), "of the image\n").unwrap();
        fs::write(layer.join("etc/deep/file"), "deep\n").unwrap();
        symlink("/etc/deep", layer.join("absolute")).unwrap();
        symlink("../../../../../..", layer.join("etc/up")).unwrap();
    }
    bundle.spec.mounts.push(Mount {
        destination: destination.into(),
        kind: "overlay".into(),
        source: "overlay".into(),
        options: ["ro", "nosuid", "nodev", &format!("lowerdir={}:{}", top.display(), layer.display())]
            .map(str::to_owned)
            .to_vec(),
        ..Mount::default()
    });
    bundle.image_volumes.push(ImageVolume {
        destination: destination.into(),
        lower: vec![top, layer],
        sub_path: sub_path.into(),
    });
}

#[test]
fn privileged_an_image_is_a_read_only_volume() {
    let mut bundle = Bundle::new(
        "cat /image/etc/passwd; touch /image/x 2>/dev/null && echo writable; mount -o remount,rw,bind /image 2>/dev/null; \
         touch /image/x 2>/dev/null && echo writable; grep ' /image ' /proc/self/mountinfo; ls /image",
    );
    image(&mut bundle, "/image", "");
    let text = bundle.output();
    assert!(text.starts_with("of the image\n") && !text.contains("writable"), "{text}");
    assert!(text.contains(" ro,nosuid,nodev") && text.contains("- overlay"), "{text}");
    assert!(text.ends_with("absolute\netc\n"), "{text}");
}

#[test]
fn privileged_a_folder_of_an_image_is_mounted_and_nothing_else_of_it() {
    for (sub_path, listing) in [
        ("etc", "deep\npasswd\nup\n"),
        ("/etc/deep/", "file\n"),
        ("absolute", "file\n"),
        ("etc/up", "absolute\netc\n"),
        ("../../etc/deep", "file\n"),
    ] {
        let mut bundle = Bundle::new(
            "ls /new/place; touch /new/place/x 2>/dev/null && echo writable; echo; \
             grep -c ' /new/place ' /proc/self/mountinfo; umount /new/place 2>/dev/null; ls /new/place",
        );
        bundle.process().capabilities = None;
        image(&mut bundle, "/new/place", sub_path);
        let text = bundle.output();
        let (shown, rest) = text.split_once("\n\n").unwrap();
        assert_eq!(format!("{shown}\n"), listing, "{sub_path}");
        assert!(rest.starts_with("1\n"), "{sub_path}: one mount, not the whole image beneath it: {text}");
    }
}

#[test]
fn privileged_what_is_no_folder_of_the_image_is_refused_by_name() {
    for (sub_path, reason) in
        [("missing", "is not in the image"), ("etc/passwd", "is not a folder"), ("etc/passwd/x", "is not a folder")]
    {
        let mut bundle = Bundle::new("true");
        image(&mut bundle, "/image", sub_path);
        let error = bundle.try_run().unwrap_err();
        assert_eq!(error.step, "mount image volume");
        assert!(error.hint.contains(reason) && error.object.contains("/image"), "{error:?}");
    }
    let mut bundle = Bundle::new("true");
    image(&mut bundle, "/image", "");
    bundle.image_volumes[0].lower[1] = "/no/such/layer".into();
    let error = bundle.try_run().unwrap_err();
    assert_eq!(error.step, "mount image volume");
    assert!(error.object.contains("/no/such/layer"), "{error:?}");
}

#[test]
fn privileged_images_lie_in_volumes_and_volumes_in_images() {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("inner")).unwrap();
    let mut bundle = Bundle::new("cat /outer/inner/passwd; ls /outer/inner/deep; cat /outer/mark");
    fs::write(host.path().join("mark"), "host\n").unwrap();
    bundle.mount(host.path(), "/outer", &["rw"]);
    image(&mut bundle, "/outer/inner", "etc");
    bundle.mount(host.path(), "/outer/inner/deep", &["ro"]);
    assert_eq!(bundle.output(), "of the image\ninner\nmark\nhost\n");
}

#[test]
fn privileged_a_link_put_into_a_resolved_source_is_refused() {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir_all(host.path().join("a/b")).unwrap();
    let source = host.path().join("a/b");
    let mut bundle = Bundle::new("echo ran");
    bundle.spec.mounts.push(bind(&source, "/volume", &["rw"]));
    bundle.resolved_sources = vec![source.to_str().unwrap().to_owned()];
    assert_eq!(bundle.output(), "ran\n");
    // What a pod does that owns the folder above its own: after the path was resolved it leads elsewhere.
    fs::remove_dir(&source).unwrap();
    symlink("/etc", &source).unwrap();
    let error = bundle.try_run().unwrap_err();
    assert_eq!((error.step, error.errno), ("open mount source", rustix::io::Errno::LOOP.raw_os_error()), "{error:?}");
    assert!(error.hint.contains("symbolic link"), "{error:?}");
    bundle.resolved_sources.clear();
    assert_eq!(bundle.output(), "ran\n", "an OCI spec's own source may be a link");
}

#[test]
fn privileged_an_image_volume_has_the_ids_of_the_user_namespace() {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(5), Some(19)) {
        println!(
            "SKIP privileged_an_image_volume_has_the_ids_of_the_user_namespace: Linux {release} shifts no layers of an overlay"
        );
        return;
    }
    let mut bundle =
        Bundle::new("stat -c %u /image /image/passwd; touch /image/x 2>/dev/null && echo writable; cat /image/passwd");
    with_user_namespace(&mut bundle);
    bundle.use_overlay();
    bundle.overlay.as_mut().unwrap().idmapped = true;
    image(&mut bundle, "/image", "etc");
    assert_eq!(bundle.output(), "0\n0\nof the image\n");
}
