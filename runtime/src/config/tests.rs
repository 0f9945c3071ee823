//! What the configuration accepts, refuses, and says.

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "config.toml", &Overrides::default())
}

fn refusal(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn the_printed_default_is_the_built_in_default() {
    assert_eq!(parse(DEFAULT_TEXT).unwrap(), parse("").unwrap());
}

#[test]
fn the_default_file_sets_every_key_that_is_known() {
    // `locate` takes the known keys from the default text; serde refuses the ones it does not know, so only the
    // other direction is left to prove: a key that serde knows and the text lacks would be refused as unknown.
    let raw = include_str!("raw.rs");
    let fields = raw.lines().filter_map(|line| line.trim().strip_prefix("pub(super) ")?.split_once(": ")).count();
    let keys =
        DEFAULT_TEXT.lines().filter(|line| line.starts_with('[') || line.contains(" = ") && !line.starts_with('#'));
    assert_eq!(keys.count(), fields);
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_key() {
    assert_eq!(
        refusal("root = \"/r\"\n[images]\nhost_dir = \"/x\"\n"),
        "config.toml:3: unknown key `images.host_dir`; the nearest is `images.hosts_dir`; \
         `keelson config default` prints every key"
    );
}

#[test]
fn wrong_types_and_broken_syntax_name_their_line() {
    let text = refusal("\n[network]\nenabled = \"yes\"\n");
    assert!(text.starts_with("config.toml:3: ") && text.contains("boolean"), "{text}");
    let text = refusal("[log]\nlevel = \n");
    assert!(text.starts_with("config.toml:2: "), "{text}");
    let text = refusal("[network]\nmtu = \"big\"\n");
    assert!(text.starts_with("config.toml:2: ") && text.contains("a number or \"auto\""), "{text}");
}

#[test]
fn runtimes_have_names_of_their_own() {
    let config =
        parse("[runtimes.runc]\npath = \"/usr/sbin/runc\"\n[runtimes.crun-2]\npath = \"/c\"\noptions = [\"--debug\"]");
    let runtimes = config.unwrap().runtimes;
    assert_eq!(runtimes["runc"], Runtime { path: "/usr/sbin/runc".into(), options: Vec::new(), sandboxed: false });
    assert_eq!(runtimes["crun-2"].options, ["--debug"]);
    let sandboxed = parse("[runtimes.runsc]\npath = \"/usr/bin/runsc\"\nsandboxed = true").unwrap();
    assert!(sandboxed.runtimes["runsc"].sandboxed);
    for (text, said) in [
        ("[runtimes.runc]", "has no `path`"),
        ("[runtimes.runc]\npath = \"runc\"", "want an absolute path"),
        ("[runtimes.native]\npath = \"/x\"", "the built-in launcher"),
        ("[runtimes.Runc]\npath = \"/x\"", "lower-case letters"),
        ("[runtimes.x]\npath = \"/x\"\noptions = [\"--root=/tmp\"]", "set by keelson itself"),
        ("[runtimes.x]\npath = \"/x\"\noptions = [\"-log\"]", "set by keelson itself"),
        ("[runtimes.x]\nprogram = \"/x\"", "unknown key `runtimes.x.program`"),
    ] {
        let refused = refusal(text);
        assert!(refused.contains(said), "{text}: {refused}");
    }
}

#[test]
fn values_that_make_no_sense_are_refused_with_what_would() {
    for (text, start) in [
        ("root = \"relative\"", "config.toml:1: `root` is `relative`: want an absolute path"),
        ("root = \"/a/../b\"", "config.toml:1: `root` is `/a/../b`"),
        ("root = \"/\"", "config.toml:1: `root` is `/`"),
        ("root = \"/x\"\nstate = \"/x\"", "config.toml:2: `state` is `/x`: must be another folder"),
        ("[log]\nlevel = \"loud\"", "config.toml:2: `log.level` is `loud`: want one of error, warn"),
        ("[metrics]\naddress = \"0.0.0.0:9469\"", "config.toml:2: `metrics.address` is `0.0.0.0:9469`: want off, auto"),
        ("[metrics]\naddress = \"unix://relative\"", "config.toml:2: `metrics.address` is `relative`"),
        ("[traces]\nendpoint = \"localhost:4317\"", "config.toml:2: `traces.endpoint`"),
        ("[traces]\nendpoint = \"http://user:word@host:4317\"", "config.toml:2: `traces.endpoint` is `..`"),
        ("[stats]\nwritable_layer_seconds = 0", "config.toml:2: `stats.writable_layer_seconds` is `0`: want 1 to 3600"),
        ("[traces]\nsample_ratio = 1.5", "config.toml:2: `traces.sample_ratio` is `1.5`: want 0 to 1"),
        ("[images]\nplatform = \"linux\"", "config.toml:2: `images.platform` is `linux`"),
        ("[images]\nplatform = \"linux//arm64\"", "config.toml:2: `images.platform`"),
        ("[images]\nmax_concurrent_downloads = 0", "config.toml:2: `images.max_concurrent_downloads` is `0`"),
        ("[network]\nbridge = \"way-too-long-a-name\"", "config.toml:2: `network.bridge`"),
        ("[network]\nbridge = \"a/b\"", "config.toml:2: `network.bridge`"),
        ("[network]\nipv4 = \"10.0.0.1/16\"", "config.toml:2: `network.ipv4` is `10.0.0.1/16`: has host bits"),
        ("[network]\nipv4 = \"off\"\nipv6 = \"off\"", "config.toml:2: `network.ipv4` is `off`"),
        ("[network]\nipv4 = \"fd00::/64\"", "config.toml:2: `network.ipv4` is `fd00::/64`: want auto"),
        ("[network]\nipv6 = \"fd00::/129\"", "config.toml:2: `network.ipv6`"),
        ("[network]\nmtu = 100", "config.toml:2: `network.mtu` is `100`"),
        ("[streaming]\naddress = \"localhost\"", "config.toml:2: `streaming.address` is `localhost`: want an address"),
        ("[streaming]\ntls_key = \"/k\"", "config.toml:2: `streaming.tls_key` is `set`: needs streaming.tls_cert too"),
        ("[streaming]\nidle_timeout = 0", "config.toml:2: `streaming.idle_timeout` is `0`: want at least 1"),
        ("[cgroup]\ndriver = \"openrc\"", "config.toml:2: `cgroup.driver` is `openrc`: want one of auto"),
        ("[containers]\nnofile = \"10:5\"", "config.toml:2: `containers.nofile` is `10:5`"),
        ("[containers]\nlog_line_max = 1", "config.toml:2: `containers.log_line_max` is `1`"),
        ("[containers]\nseccomp = \"off\"", "config.toml:2: `containers.seccomp`"),
    ] {
        let said = refusal(text);
        assert!(said.starts_with(start), "{text}\n{said}");
    }
}

#[test]
fn values_arrive() {
    let config = parse(
        "root = \"/data/\"\nstate = \"/s\"\n[images]\nplatform = \"linux/arm64/v8\"\n[network]\nenabled = false\n\
         bridge = \"br-x\"\nipv4 = \"10.9.0.0/24\"\nipv6 = \"off\"\nmtu = 9000\n[cgroup]\ndriver = \"systemd\"\n\
         [containers]\nnofile = \"64:128\"\npids_limit = 100\nseccomp = \"unconfined\"\n",
    )
    .unwrap();
    assert_eq!((config.root.to_str(), config.socket.to_str()), (Some("/data"), Some("/s/keelson.sock")));
    assert_eq!(config.images.platform.unwrap().variant.as_deref(), Some("v8"));
    assert_eq!(config.network.ipv4, Subnet::Fixed { address: Ipv4Addr::new(10, 9, 0, 0), prefix: 24 });
    assert_eq!((config.network.ipv6, config.network.mtu, config.network.enabled), (Subnet::Off, Some(9000), false));
    assert_eq!(config.cgroup, CgroupDriver::Systemd);
    assert_eq!((config.containers.nofile, config.containers.pids_limit), (Nofile { soft: 64, hard: 128 }, Some(100)));
}

#[test]
fn flags_win_over_the_file_and_the_socket_follows_the_state_folder() {
    let overrides = Overrides { state: Some("/flag".into()), ..Overrides::default() };
    let config = Config::parse("state = \"/file\"\n", "c", &overrides).unwrap();
    assert_eq!(config.socket, Path::new("/flag/keelson.sock"));
    let overrides = Overrides { socket: Some("relative".into()), ..Overrides::default() };
    let said = Config::parse("", "c", &overrides).unwrap_err().to_string();
    assert!(said.starts_with("command line: `socket` is `relative`"), "{said}");
}

#[test]
fn a_socket_path_the_kernel_cannot_bind_is_refused_early() {
    let overrides = Overrides { state: Some(format!("/{}", "x".repeat(110)).into()), ..Overrides::default() };
    let said = Config::parse("", "c", &overrides).unwrap_err().to_string();
    assert!(said.contains("at most 107 bytes"), "{said}");
}

#[test]
fn each_root_has_its_own_bridge() {
    let bridge = |root: &str| parse(&format!("root = \"{root}\"")).unwrap().network.bridge;
    assert_eq!(bridge("/var/lib/keelson"), "keelson0");
    assert_ne!(bridge("/a"), bridge("/b"));
    assert!(bridge("/a").starts_with("kl-") && bridge("/a").len() == 11);
}

#[test]
fn an_absent_default_file_is_fine_and_an_absent_named_one_is_not() {
    let said =
        Config::load(Some(Path::new("/nonexistent/keelson.toml")), &Overrides::default()).unwrap_err().to_string();
    assert_eq!(said, "read configuration `/nonexistent/keelson.toml`");
}

#[test]
fn where_numbers_and_traces_go_is_read() {
    let config = parse("state = \"/s\"").unwrap();
    assert_eq!(config.metrics, Metrics::Unix("/s/metrics.sock".into()));
    assert_eq!(config.traces, Traces { endpoint: None, sample_per_million: 1_000_000 });
    let metrics = |address: &str| parse(&format!("[metrics]\naddress = \"{address}\"")).unwrap().metrics;
    assert_eq!(metrics("off"), Metrics::Off);
    assert_eq!(metrics("unix:///run/m.sock"), Metrics::Unix("/run/m.sock".into()));
    assert_eq!(metrics("[::1]:9469"), Metrics::Tcp("[::1]:9469".parse().unwrap()));
    let traces = parse("[traces]\nendpoint = \"http://127.0.0.1:4317\"\nsample_ratio = 0.05").unwrap().traces;
    assert_eq!(traces, Traces { endpoint: Some("http://127.0.0.1:4317".to_owned()), sample_per_million: 50_000 });
}

#[test]
fn a_flag_for_the_log_goes_over_the_file_in_the_same_words() {
    let flags = |level: &str| Overrides { log_level: Some(level.to_owned()), ..Overrides::default() };
    let text = "[log]\nlevel = \"warn\"\nformat = \"json\"";
    let log = Config::parse(text, "config.toml", &flags("debug")).unwrap().log;
    assert_eq!(log, Log { level: LogLevel::Debug, format: LogFormat::Json });
    let said = Config::parse("", "config.toml", &flags("loud")).unwrap_err().to_string();
    assert!(said.starts_with("command line: `log.level` is `loud`"), "{said}");
}
