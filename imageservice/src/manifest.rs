//! Manifests, indexes and image configs as registries send them.
//! Plain data. Owns their grammar. Must never do I/O.
