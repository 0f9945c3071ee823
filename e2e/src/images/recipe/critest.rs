//! The images that critest pulls, under the names it pulls them by.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Compression, PATH, Recipe, compile, finish_busybox, finish_nginx, layer, names, skeleton, write};

fn busybox(file: &'static str, list: &[&str], mut config: Value) -> Recipe {
    // A label of its own: another image, though the layer is shared.
    config["Labels"] = json!({ "keelson.test": file });
    config["Env"] = json!([PATH]);
    Recipe {
        file,
        names: names(list),
        layers: vec![layer(&["busybox", "libc6"], false, Compression::Gzip, finish_busybox)],
        config,
        docker: true,
        index: false,
        version: 2,
    }
}

pub(super) fn all() -> Vec<Recipe> {
    let tools = "k8s-staging-cri-tools";
    let named = |name: &str| format!("{tools}/{name}");
    let sh = || json!({ "Cmd": ["sh"] });
    let user = |user: &str| json!({ "Cmd": ["sh"], "User": user });
    let mut recipes = vec![
        busybox(
            "critest-httpd",
            &["e2e-test-images/httpd:2.4.39-4"],
            json!({ "Cmd": ["sh", "-c", "mkdir -p /www; echo It works > /www/index.html; echo httpd: serving on 80; exec httpd -f -p 80 -h /www"] }),
        ),
        busybox("critest-user-uid", &[&named("test-image-user-uid:latest")], user("1002")),
        busybox("critest-user-username", &[&named("test-image-user-username:latest")], user("www-data")),
        busybox("critest-user-uid-group", &[&named("test-image-user-uid-group:latest")], user("1003:1004")),
        busybox(
            "critest-user-username-group",
            &[&named("test-image-user-username-group:latest")],
            user("www-data:1004"),
        ),
        busybox("critest-latest", &[&named("test-image-latest:latest")], sh()),
        busybox("critest-digest", &[&named("test-image-digest:latest")], sh()),
        busybox("critest-tag", &[&named("test-image-tag:test"), &named("test-image-tag:all")], sh()),
        busybox("critest-1", &[&named("test-image-1:latest")], sh()),
        busybox("critest-2", &[&named("test-image-2:latest")], sh()),
        busybox("critest-3", &[&named("test-image-3:latest")], sh()),
        busybox(
            "critest-tags",
            &[&named("test-image-tags:1"), &named("test-image-tags:2"), &named("test-image-tags:3")],
            sh(),
        ),
    ];
    for (file, tag) in [
        ("critest-bench-1", "1"),
        ("critest-bench-glibc", "1-glibc"),
        ("critest-bench-musl", "1-musl"),
        ("critest-bench-uclibc", "1-uclibc"),
        ("critest-bench-1.35", "1.35.0-glibc"),
    ] {
        recipes.push(busybox(file, &[&format!("docker/library/busybox:{tag}")], sh()));
    }
    let mut group = busybox("critest-predefined-group", &[&named("test-image-predefined-group:latest")], user("1000"));
    group.layers.push(layer(&[], false, Compression::Gzip, finish_group));
    recipes.push(group);
    recipes.push(Recipe {
        file: "critest-nonewprivs",
        names: names(&["e2e-test-images/nonewprivs:1.3"]),
        layers: vec![layer(&[], false, Compression::Gzip, finish_nonewprivs)],
        config: json!({ "Entrypoint": ["/nnp"] }),
        docker: false,
        index: false,
        version: 2,
    });
    recipes.push(Recipe {
        file: "critest-hostnet-nginx",
        names: names(&[
            "k8s-staging-cri-tools/hostnet-nginx-amd64:latest",
            "k8s-staging-cri-tools/hostnet-nginx-arm64:latest",
        ]),
        layers: vec![
            layer(&["nginx-light", "dash", "coreutils", "grep", "sed"], true, Compression::Gzip, finish_nginx),
            layer(&[], false, Compression::Gzip, finish_hostnet),
        ],
        config: json!({ "Cmd": ["nginx", "-g", "daemon off;"], "Env": [PATH] }),
        docker: false,
        index: false,
        version: 2,
    });
    recipes
}

fn finish_group(root: &Path) -> Result<()> {
    skeleton(root)?;
    write(
        root,
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    write(
        root,
        "etc/group",
        0o644,
        "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n",
    )
}

fn finish_nonewprivs(root: &Path) -> Result<()> {
    skeleton(root)?;
    compile(
        root,
        "nnp",
        "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"Effective uid: %d\\n\", geteuid()); return 0; }\n",
    )?;
    fs::set_permissions(root.join("nnp"), fs::Permissions::from_mode(0o4755))?;
    Ok(())
}

fn finish_hostnet(root: &Path) -> Result<()> {
    write(
        root,
        "etc/nginx/nginx.conf",
        0o644,
        "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr;\nevents { worker_connections 64; }\nhttp {\n  access_log /dev/stdout;\n  server { listen 12003 default_server; root /var/www/html; }\n}\n",
    )
}
