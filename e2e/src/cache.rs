//! Where built images, tools and peers are kept between runs: outside the repository.

use std::path::PathBuf;

/// The cache folder: `$KEELSON_CACHE`, else `$XDG_CACHE_HOME/keelson`, else `~/.cache/keelson` (as `tools/cache-dir` prints it).
pub fn dir() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("KEELSON_CACHE").unwrap_or_else(|| {
        let base =
            from("XDG_CACHE_HOME").unwrap_or_else(|| from("HOME").unwrap_or_else(|| "/root".into()).join(".cache"));
        base.join("keelson")
    })
}
