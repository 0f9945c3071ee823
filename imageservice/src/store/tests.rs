//! What the store promises: an image exists wholly or not at all, names move, layers outlive their use, crashes leave nothing.
