//! What each test image is made of. A change of a recipe's text changes its key and so rebuilds it.

mod critest;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Compression;

/// One layer: packages unpacked, then finished by a function.
pub struct LayerRecipe {
    pub packages: Vec<&'static str>,
    pub closure: bool,
    pub compression: Compression,
    pub finish: fn(&Path) -> Result<()>,
}

/// One image.
pub struct Recipe {
    /// File name of its record.
    pub file: &'static str,
    /// `repository:tag` names it is served under.
    pub names: Vec<String>,
    pub layers: Vec<LayerRecipe>,
    /// The `config` object of the image config.
    pub config: Value,
    /// Docker schema 2 media types instead of OCI.
    pub docker: bool,
    /// Serve an index with a foreign platform beside it.
    pub index: bool,
    /// Raised when `finish` changes.
    pub version: u32,
}

impl Recipe {
    pub fn key(&self) -> String {
        let layers: Vec<_> =
            self.layers.iter().map(|l| format!("{:?}{}{:?}", l.packages, l.closure, l.compression)).collect();
        let text = format!("{:?}{layers:?}{}{}{}{}", self.names, self.config, self.docker, self.index, self.version);
        super::sha256(text.as_bytes())
    }
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}

fn layer(
    packages: &[&'static str],
    closure: bool,
    compression: Compression,
    finish: fn(&Path) -> Result<()>,
) -> LayerRecipe {
    LayerRecipe { packages: packages.to_vec(), closure, compression, finish }
}

/// Every image there is.
pub fn all() -> Vec<Recipe> {
    let busybox = || layer(&["busybox", "libc6"], false, Compression::Gzip, finish_busybox);
    let many = |compression| {
        vec![
            layer(&["busybox", "libc6"], false, compression, finish_busybox),
            layer(&["perl-modules-5.36"], false, compression, keep),
            layer(&["libpython3.11-stdlib"], false, compression, keep),
            layer(&["tzdata", "vim-runtime"], false, compression, keep),
        ]
    };
    let mut all = vec![
        Recipe {
            file: "busybox",
            names: names(&["library/busybox:latest", "busybox:latest", "e2e-test-images/busybox:1.29-2"]),
            layers: vec![busybox()],
            config: json!({ "Cmd": ["sh"], "Env": [PATH] }),
            docker: true,
            index: false,
            version: 4,
        },
        Recipe {
            file: "nginx",
            names: names(&["library/nginx:latest", "nginx:latest", "e2e-test-images/nginx:1.14-2"]),
            layers: vec![layer(
                &["nginx-light", "dash", "coreutils", "grep", "sed"],
                true,
                Compression::Gzip,
                finish_nginx,
            )],
            config: json!({
                "Cmd": ["nginx", "-g", "daemon off;"], "Env": [PATH], "ExposedPorts": { "80/tcp": {} }, "StopSignal": "SIGQUIT",
            }),
            docker: false,
            index: true,
            version: 4,
        },
        Recipe {
            file: "debian",
            names: names(&["library/debian:bookworm", "library/debian:latest"]),
            layers: vec![layer(
                &[
                    "apt",
                    "bash",
                    "base-files",
                    "coreutils",
                    "findutils",
                    "grep",
                    "sed",
                    "tar",
                    "util-linux",
                    "procps",
                    "iproute2",
                    "perl-base",
                    "hostname",
                ],
                true,
                Compression::Gzip,
                finish_debian,
            )],
            config: json!({ "Cmd": ["bash"], "Env": [PATH, "LANG=C.UTF-8"] }),
            docker: false,
            index: false,
            version: 4,
        },
        Recipe {
            file: "manyfiles-gzip",
            names: names(&["library/manyfiles:gzip"]),
            layers: many(Compression::Gzip),
            config: json!({ "Cmd": ["sh"], "Env": [PATH] }),
            docker: false,
            index: false,
            version: 3,
        },
        Recipe {
            file: "manyfiles-zstd",
            names: names(&["library/manyfiles:zstd"]),
            layers: many(Compression::Zstd),
            config: json!({ "Cmd": ["sh"], "Env": [PATH] }),
            docker: false,
            index: true,
            version: 3,
        },
        Recipe {
            file: "pause",
            names: names(&["pause:3.9", "pause:3.10.2"]),
            layers: vec![layer(&[], false, Compression::Gzip, finish_pause)],
            config: json!({ "Entrypoint": ["/pause"] }),
            docker: false,
            index: false,
            version: 2,
        },
        Recipe {
            file: "user",
            names: names(&["library/user:latest"]),
            layers: vec![busybox(), layer(&[], false, Compression::None, finish_user)],
            config: json!({
                "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["id; echo from-cmd; sleep 3600"], "Env": [PATH, "GREETING=from-image"],
                "User": "worker", "WorkingDir": "/srv/work", "Volumes": { "/data": {} }, "StopSignal": "SIGUSR1",
                "Labels": { "keelson.test": "user" },
            }),
            docker: false,
            index: false,
            version: 3,
        },
    ];
    all.extend(critest::all());
    all
}

fn keep(_: &Path) -> Result<()> {
    Ok(())
}

fn write(root: &Path, path: &str, mode: u32, text: &str) -> Result<()> {
    let path = root.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, text).with_context(|| format!("write `{}`", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn skeleton(root: &Path) -> Result<()> {
    for dir in ["tmp", "var/tmp", "proc", "sys", "dev", "root", "etc", "run", "home", "var/run"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for dir in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(dir), fs::Permissions::from_mode(0o1777))?;
    }
    write(
        root,
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    write(root, "etc/group", 0o644, "root:x:0:\nadm:x:4:\nwww-data:x:33:\nnogroup:x:65534:\n")?;
    Ok(())
}

/// Applets as hard links: a mask over one of them must leave the others alone.
fn finish_busybox(root: &Path) -> Result<()> {
    skeleton(root)?;
    let busybox = root.join("bin/busybox");
    // The program is of another layer root: ask it through its own loader.
    let list = Command::new(root.join("lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(root.join("lib/x86_64-linux-gnu"))
        .arg(&busybox)
        .arg("--list")
        .output()
        .context("run busybox --list")?;
    ensure!(list.status.success(), "busybox --list ended with {}", list.status);
    for applet in String::from_utf8(list.stdout)?.lines().filter(|a| *a != "busybox") {
        let path = root.join("bin").join(applet);
        if !path.exists() {
            fs::hard_link(&busybox, &path).with_context(|| format!("link `{}`", path.display()))?;
        }
    }
    for (name, text) in [
        // pgrep PATTERN: pids of processes whose name matches, as pgrep(1) without -f.
        (
            "pgrep",
            "#!/bin/sh\nfound=1\nfor p in /proc/[0-9]*; do\n  if grep -q -- \"$1\" $p/comm 2>/dev/null; then echo ${p#/proc/}; found=0; fi\ndone\nexit $found\n",
        ),
        // ipcs -m: the shared memory segments of this IPC namespace.
        ("ipcs", "#!/bin/sh\necho '------ Shared Memory Segments --------'\ncat /proc/sysvipc/shm\n"),
    ] {
        write(root, &format!("bin/{name}"), 0o755, text)?;
    }
    for dir in ["usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/initramfs-tools"] {
        let _ = fs::remove_dir_all(root.join(dir));
    }
    Ok(())
}

fn finish_nginx(root: &Path) -> Result<()> {
    skeleton(root)?;
    for dir in ["var/log/nginx", "var/lib/nginx/body", "run", "var/www/html"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let _ = fs::remove_dir(root.join("var/run"));
    let _ = symlink("/run", root.join("var/run"));
    let _ = symlink("dash", root.join("bin/sh"));
    // critest greps in /proc/1/cmdline, which has NULs, and wants an empty stderr: the grep of the image it was written for (2.27) tells
    // of binary files on stdout, this one on stderr.
    let grep = ["bin/grep", "usr/bin/grep"].map(|path| root.join(path)).into_iter().find(|path| path.exists());
    let grep = grep.context("the layer has no grep")?;
    fs::rename(&grep, grep.with_file_name("grep.debian"))?;
    fs::write(&grep, "#!/bin/sh\nexec grep.debian -a \"$@\"\n")?;
    fs::set_permissions(&grep, fs::Permissions::from_mode(0o755))?;
    write(root, "var/www/html/index.html", 0o644, "<title>Welcome to nginx!</title>\n")?;
    write(
        root,
        "etc/nginx/nginx.conf",
        0o644,
        "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr;\nevents { worker_connections 64; }\nhttp {\n  access_log /dev/stdout;\n  server { listen 80 default_server; listen [::]:80 default_server; root /var/www/html; }\n}\n",
    )?;
    for dir in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl5"] {
        let _ = fs::remove_dir_all(root.join(dir));
    }
    Ok(())
}

fn finish_debian(root: &Path) -> Result<()> {
    skeleton(root)?;
    let _ = symlink("bash", root.join("bin/sh"));
    Ok(())
}

/// What peers hold a pod's namespaces with: one static program that waits.
fn finish_pause(root: &Path) -> Result<()> {
    compile(
        root,
        "pause",
        "#include <unistd.h>\n#include <signal.h>\nstatic void end(int s) { (void)s; _exit(0); }\nint main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }\n",
    )
}

/// A static program at the root of the image.
fn compile(root: &Path, name: &str, source: &str) -> Result<()> {
    let file = root.join(format!("{name}.c"));
    write(root, &format!("{name}.c"), 0o644, source)?;
    let status = Command::new("cc").args(["-Os", "-static", "-s", "-o"]).arg(root.join(name)).arg(&file).status();
    ensure!(status.context("run cc")?.success(), "cc cannot build {name}");
    fs::remove_file(file)?;
    Ok(())
}

fn finish_user(root: &Path) -> Result<()> {
    skeleton(root)?;
    write(root, "etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nworker:x:1234:1234:worker:/srv/work:/bin/sh\n")?;
    write(root, "etc/group", 0o644, "root:x:0:\nworker:x:1234:\nextra:x:5000:worker\n")?;
    fs::create_dir_all(root.join("srv/work"))?;
    write(root, "data/seed", 0o644, "from the image\n")?;
    Ok(())
}
